"""What surrounds a run: flags, what is said at the start, and one line for every kind of bad input."""

import json
import os
import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT, picture, small_config, write_checkpoint
from short_run import SMALL_RUN, adapter_of, equal, run, stopped

import train
from data import Processor
from harness.arguments import evaluation_sets, planned_steps
from harness.encodings import ahead
from harness.processes import all_processes
from model import VLM


def test_defaults_depend_on_the_data_the_model_and_the_method():
    drawn, real = train.parse_args([]), train.parse_args(["--data", "refcoco"])
    assert (drawn.steps, drawn.heads, drawn.batch, drawn.gamma, drawn.lr) == (300, 12, 32, 1.0, 2e-2)
    assert (real.steps, real.heads, real.batch, real.gamma, real.lr) == (None, None, 4, 0.01, 5e-3)
    assert (drawn.accumulate, real.accumulate, train.parse_args(["--data", "refcoco", "--batch", "8"]).accumulate) == (1, 2, 1)
    assert train.parse_args(["--data", "refcoco", "--method", "lora"]).lr == 1e-3
    assert train.parse_args(["--epochs", "2"]).steps is None and planned_steps(real, 17) == 3  # of 4 x 2 rows
    evaluated = train.parse_args(["--adapter", "x", "--eval", "gsm8k=X", "sums"])
    assert (evaluated.method, evaluated.data, evaluated.batch) == ("none", "gsm8k=X", 4)


def test_scenes_are_evaluated_by_their_parts_and_other_data_by_itself():
    def sets(*flags):
        return [f"{name} {split}" for name, _, split, _ in evaluation_sets(train.parse_args([*flags]))]

    assert sets() == ["scenes-fog val", "scenes-day val", "sums val"]
    assert sets("--eval-split", "test") == ["scenes-fog test", "scenes-day test", "sums test"]
    assert sets("--data", "refcoco") == ["refcoco val"]
    assert sets("--data", "refcoco", "--eval", "refcoco", "gsm8k=X", "--eval-split", "testA") == ["refcoco testA", "gsm8k test"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "1", "--epochs", "1"], "--steps and --epochs exclude each other"),
        (["--rank", "0"], "--rank 0: must be a positive number"),
        (["--lr", "nan"], "--lr nan: must be a positive number"),
        (["--limit", "-1"], "--limit -1: must be 0 or a positive number"),
        (["--targets", "x"], "--targets x: choose from q, k, v, o"),
        (["--min-pixels", "200", "--max-pixels", "100"], "max_pixels 100 is below min_pixels 200"),
        (["--method", "full", "--dtype", "float16"], "--method full: --dtype must be float32 or bfloat16"),
        (["--method", "lora", "--ablate", "norm=off"], "--ablate changes --method image-lora"),
        (["--adapter", "x", "--method", "lora"], "--adapter is evaluated, not trained"),
        (["--ablate", "norm"], "--ablate norm"),
        (["--eval", "sums", "coco"], "unknown data set 'coco'"),
        (["--eval", "sums", "sums"], "--eval: sums is named twice"),
    ],
    ids=str,
)
def test_flags_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    code, line = stopped(capsys, train.main, flags)
    assert code == 2 and message in line and not list(tmp_path.iterdir())


# -- what a run says, and where it runs


def test_start_up_says_what_was_decided(checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path)
    text = capsys.readouterr().out
    parts = ["parameters in float32 on cpu", "tokens a row (min / median / max): visual 49 / 49 / 49", "<|image_pad|> x 49"]
    parts += [">>>{", "<|im_end|><<<", "4 steps of 4 rows, learning rate", f"--image {tmp_path / 'scene.png'} --find TEXT"]
    assert [part for part in parts if part not in text] == [] and (tmp_path / "scene.png").exists()
    assert re.search(r"[\d,]+ trainable parameters \(\d+\.\d\d%\)", text)
    assert re.search(r"heads    1 of 6 value heads are adapted; layer \d: \[\d\]", text)
    train.encodings.load_model(train.parse_args([]))
    assert "drawn scenes alone" in capsys.readouterr().out  # of the tiny model, and of no other
    assert "drawn scenes alone" not in text


def test_images_are_kept_only_as_far_as_the_memory_given(checkpoint, tmp_path, capsys):
    image_bytes = 49 * VLM.from_pretrained(checkpoint).config.hidden * 4
    run(checkpoint, tmp_path, f"--cache-vision={2.5 * image_bytes / 2**30}")
    assert "images   2 of " in capsys.readouterr().out


def test_rows_longer_than_the_positions_are_counted_named_and_skipped(tmp_path, monkeypatch, capsys):
    folder = write_checkpoint(tmp_path / "model", raw=small_config() | {"max_position_embeddings": 120})
    rows = [{"prompt": "2+2?", "answer": "4"}, {"prompt": "long " * 99, "answer": "5"}, {"prompt": "2?", "answer": "x" * 10**6}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "val.jsonl").write_text(json.dumps(rows[0]))
    where, encode = ["--model", str(folder), "--data", f"jsonl={tmp_path}", "--out", str(tmp_path / "out")], Processor.token_ids
    monkeypatch.setattr(Processor, "token_ids", lambda self, text: encode(self, text if len(text) < 1000 else "x"))
    train.main([*where, "--method", "lora", "--steps", "1", "--max-new-tokens", "4"])
    line = f"skipped  2 of 3 rows, longer than 120 tokens: {tmp_path}/train.jsonl:2, {tmp_path}/train.jsonl:3"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads_make_few_batches_ahead_in_order_and_what_fails_in_them_fails(threads):
    begun = []
    numbers = ahead(lambda n: 1 / n, (begun.append(n) or n for n in [4, 2, 1, 0, 8]), threads)
    assert next(numbers) == 0.25 and len(begun) == threads + 1
    assert [next(numbers), next(numbers)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(numbers)


@pytest.mark.parametrize("evaluated", ["jsonl=./mine.jsonl", "llava=mine.jsonl", "jsonl=sub/../mine.jsonl"])
def test_the_file_that_is_trained_on_is_held_out_in_part_however_it_is_spelled(monkeypatch, tmp_path, evaluated):
    monkeypatch.chdir(tmp_path)
    for file in ("mine.jsonl", "other.jsonl", "sub"):
        (tmp_path / file).touch() if "." in file else (tmp_path / file).mkdir()
    for sets, split in ((evaluated, "val"), ("jsonl=other.jsonl", "test")):
        args = train.parse_args(["--data", f"jsonl={tmp_path}/mine.jsonl", "--eval", sets])
        assert [split_of for _, _, split_of, _ in evaluation_sets(args)] == [split]


@pytest.mark.parametrize("left", ["abc", ""])
def test_a_rank_that_is_no_number_is_one_line_too(left):
    command = [sys.executable, "train.py", "--model", "/no/such/folder"]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"RANK": left}, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("error: RANK or WORLD_SIZE is set, WORLD_SIZE is not")


@pytest.mark.parametrize("left", ["RANK", "WORLD_SIZE"])
def test_what_torchrun_left_in_the_environment_is_named_before_any_work(monkeypatch, capsys, left):
    monkeypatch.setenv(left, "1")
    code, line = stopped(capsys, train.main, ["--model", "/no/such/folder"])
    assert code == 2 and "error: RANK or WORLD_SIZE is set, " in line and " is not: unset them" in line


def test_a_reader_that_stops_ends_a_command_without_a_word(finished):
    command = [sys.executable, "-m", "harness.evaluate", str(finished[0] / "predictions.jsonl")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"PYTHONUNBUFFERED": ""}}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    process.stdout.close()
    assert process.communicate()[1] == b"" and process.returncode == 141


def test_a_run_without_the_module_resource_says_no_memory_and_gives_the_same_adapter(
    finished, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows: importing it fails
    report = run(checkpoint, tmp_path)
    assert report["peak_memory_bytes"] is None and equal(adapter_of(finished[0]), adapter_of(tmp_path))


@pytest.mark.parametrize("own", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", None])
def test_the_gpus_memory_is_in_segments_that_grow_unless_the_user_says_otherwise(monkeypatch, own):
    environment = {} if own is None else {own: "backend:native"}
    monkeypatch.setattr(os, "environ", environment | {"PATH": ""})
    runpy.run_path(str(ROOT / "train.py"), run_name="imported")
    usual = None if own == "PYTORCH_ALLOC_CONF" else "expandable_segments:True"
    assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == environment.get("PYTORCH_CUDA_ALLOC_CONF", usual)


def test_a_console_that_lacks_a_letter_shows_its_escape(tmp_path, monkeypatch):
    with open(tmp_path / "console", "w", encoding="cp1252") as console, monkeypatch.context() as m:
        m.setattr(sys, "stdout", console)
        with all_processes():
            print("杯 cup")
    assert (tmp_path / "console").read_text() == "\\u676f cup\n"


# -- bad input: one line, exit code 2, nothing half-written


def refused(capsys, *flags):
    code, line = stopped(capsys, train.main, [*map(str, flags)])
    assert code == 2
    return line


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "sent": "cup", "bbox": [1, 2, 300, 4]}, "does not lie in its image"),
        ({"image": "a.png", "prompt": "cup", "answer": ""}, "train.jsonl:1: needs a text \"answer\""),
        ({"prompt": "cup", "answer": "b"}, "no image in any row"),
        ({"image": "broken.png", "prompt": "cup", "answer": "b"}, "broken.png: not a complete image"),
    ],
)
def test_bad_rows_end_the_run_with_their_name(checkpoint, tmp_path, capsys, row, message):
    picture(100, 80).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])  # its header is whole
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    (tmp_path / "val.jsonl").write_text(json.dumps({"prompt": "2+2?", "answer": "4"}))
    flags = ["--data", f"jsonl={tmp_path}", "--out", tmp_path / "out", "--selection=all", "--no-base", "--workers=1"]
    assert message in refused(capsys, "--model", checkpoint, *flags, "--steps", "1")
    assert not (tmp_path / "out/adapter.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "cuda:9"], "--device cuda:9: there is no such device here"),
        (["--selection", "magic"], "magic: no such file"),
        (["--out", "/dev/null/run"], "/dev/null/run"),
        (["--adapter", "/no/such.safetensors"], "/no/such.safetensors: no such file"),
    ],
)
def test_what_is_missing_is_named(checkpoint, tmp_path, capsys, flags, message):
    usual = ["--model", checkpoint, "--data", "scenes-day", *SMALL_RUN, "--out", tmp_path / "out"]
    assert message in refused(capsys, *usual, *flags)


def test_more_heads_than_the_model_has_are_refused_before_anything_is_evaluated(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(VLM, "generate", lambda *_: pytest.fail("it was evaluated"))
    flags = ["--model", checkpoint, "--data", "scenes-day", "--limit=4", "--eval-limit=2", "--out", tmp_path / "out"]
    assert "--heads 7: the model has 6 value heads, choose 1 to 6" in refused(capsys, *flags, "--heads", "7")

"""What surrounds a run: flags, start-up, workers, saved states, questions; and one line for every kind of bad input."""

import json
import math
import re
import shutil
import sys

import pytest
import torch
from conftest import picture, small_config, write_checkpoint
from short_run import SMALL_RUN, adapter_of, equal, run

import train
from data import load
from model import VLM
from parts.files import read_safetensors, write_safetensors
from parts.tasks.images import file_size


def test_pictures_are_kept_only_as_far_as_the_memory_given(checkpoint, tmp_path, capsys):
    vlm = VLM.from_pretrained(checkpoint)
    picture_bytes = 49 * vlm.config.hidden * 4
    run(checkpoint, tmp_path, f"--cache-vision={2.5 * picture_bytes / 2**30}")
    assert "images   2 of " in capsys.readouterr().out


def test_a_bad_picture_met_by_a_worker_is_one_line(checkpoint, tmp_path, capsys):
    rows = [{"image": f"{i}.jpg", "prompt": "What?", "answer": "a ring"} for i in range(4)]
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(4):
        picture(120, 120, i).save(tmp_path / f"{i}.jpg")
    file = tmp_path / "3.jpg"
    file.write_bytes(file.read_bytes()[:-400])  # its header is whole
    args = [
        "--model",
        str(checkpoint),
        f"--data=jsonl={tmp_path}",
        "--selection=all",
        "--method=lora",
    ]
    with pytest.raises(SystemExit) as stop:
        train.main([*args, "--eval-limit=1", "--batch=1", "--workers=1", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert (
        stop.value.code == 2 and "error: " in said and "3.jpg: not a complete image" in said and "Traceback" not in said
    )


def test_states_are_kept_where_asked(checkpoint, tmp_path):
    run(checkpoint, tmp_path, "--save-every=2", "--keep-states")
    steps = [torch.load(tmp_path / f"state-{n}.pt", weights_only=True)["step"] for n in (2, 4)]
    assert steps == [2, 4]


def test_a_run_of_another_version_is_not_resumed(checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path)
    saved = json.loads((tmp_path / "arguments.json").read_text())
    (tmp_path / "arguments.json").write_text(json.dumps({"gate": saved.pop("gamma")} | saved))
    assert "begun by another version" in refused(capsys, "--resume", tmp_path)
    assert "arguments.json: no such file" in refused(capsys, "--resume", tmp_path / "nowhere")


def test_rows_longer_than_the_positions_are_counted_named_and_skipped(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "model", raw=small_config() | {"max_position_embeddings": 120})
    rows = [{"prompt": "2+2?", "answer": "4"}, {"prompt": "long " * 99, "answer": "5"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "val.jsonl").write_text(json.dumps(rows[0]))
    where = ["--model", str(folder), "--data", f"jsonl={tmp_path}", "--out", str(tmp_path / "out")]
    train.main([*where, "--method", "lora", "--steps", "1", "--max-new-tokens", "4"])
    assert f"skipped  1 of 2 rows, longer than 120 tokens: {tmp_path}/train.jsonl:2" in capsys.readouterr().out


def test_start_up_says_what_was_decided(checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path)
    said = capsys.readouterr().out
    for part in (
        "parameters in float32 on cpu",
        "tokens a row (min / median / max): visual 49 / 49 / 49",
        "<|image_pad|> x 49",
        ">>>{",
        "<|im_end|><<<",
        "4 steps of 4 rows, learning rate",
    ):
        assert part in said
    assert re.search(r"[\d,]+ trainable parameters \(\d+\.\d\d%\)", said)
    assert re.search(r"heads    1 of 6 value heads are adapted; layer \d: \[\d\]", said)
    assert "drawn scenes alone" not in said  # that is said of the tiny model


def test_of_the_tiny_model_it_is_said_what_it_knows(capsys):
    train.load_model(train.arguments([]))
    assert "drawn scenes alone" in capsys.readouterr().out


def test_a_run_on_drawn_scenes_leaves_a_scene_to_ask_about(checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path)
    said = capsys.readouterr().out
    adapter, scene = tmp_path / "adapter.safetensors", tmp_path / "scene.png"
    assert f"python -m harness.ask --adapter {adapter} --image {scene} --find TEXT" in said
    assert scene.exists()


def test_a_run_without_the_module_resource_says_no_memory_and_gives_the_same_adapter(
    finished, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows: importing it fails
    report = run(checkpoint, tmp_path / "run")
    assert report["peak_memory_bytes"] is None
    assert equal(adapter_of(finished[0]), adapter_of(tmp_path / "run"))


# -- bad input: one line, exit code 2, nothing half-written


def refused(capsys, *arguments):
    """Run train.py; it must end with code 2 and one line on stderr, which is returned."""
    with pytest.raises(SystemExit) as stopped:
        train.main([*map(str, arguments)])
    assert stopped.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


@pytest.fixture
def own(tmp_path, checkpoint):
    """A folder with own rows; `own(train rows)` gives the arguments of a run on them."""
    picture(100, 80).save(tmp_path / "a.png")

    def arguments(*rows):
        good = {"image": "a.png", "sent": "cup", "bbox": [1, 2, 30, 40]}
        for split, content in (("train", rows or [good]), ("val", [good])):
            (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, content)))
        where = ["--data", f"jsonl={tmp_path}", "--out", tmp_path / "out", "--steps", "1"]
        return ["--model", checkpoint, *where, "--max-new-tokens", "4", "--probe-samples", "1"]

    return arguments


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "b.png", "sent": "cup", "bbox": [1, 2, 3, 4]}, "train.jsonl:1: its image b.png"),
        ({"image": "a.png", "sent": "cup", "bbox": [1, 2, 3]}, "train.jsonl:1: a box is four numbers"),
        ({"image": "a.png", "sent": "cup", "bbox": [1, 2, 300, 4]}, "does not lie in its image"),
        ({"image": "a.png", "prompt": "cup", "answer": ""}, "train.jsonl:1: the answer has no tokens"),
        ({"prompt": "cup", "answer": "b"}, "no image"),
    ],
)
def test_bad_rows_end_the_run_before_it_starts(own, tmp_path, capsys, row, message):
    assert message in refused(capsys, *own(row))
    assert not (tmp_path / "out").exists()


def test_broken_images_end_the_run_with_their_name(own, tmp_path, capsys):
    arguments = own()
    for content in (b"", (tmp_path / "a.png").read_bytes()[:200]):
        (tmp_path / "a.png").write_bytes(content)
        file_size.cache_clear()
        assert "a.png: not a complete image" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/folder"], "/no/such/folder: no such checkpoint folder"),
        (["--device", "cuda:9"], "--device cuda:9: there is no such device here"),
        (["--device", "gpu"], "--device gpu: there is no such device here"),
        (["--data", "cocoref"], "unknown data set 'cocoref'; known: refcoco"),
        (["--data", "refcoco=/no/such/folder"], "/no/such/folder: no refcoco here; put"),
        (["--data", "scenes-day", "--heads", "7"], "--heads 7: the model has 6 value heads"),
        (["--data", "scenes-day", "--selection", "magic"], "magic: no such file"),
        (["--data", "scenes-day", "--lr", "nan"], "--lr nan: must be a positive number"),
        (["--data", "scenes-day", "--max-pixels", "100", "--min-pixels", "200"], "--max-pixels 100 is below it"),
        (["--data", "scenes-day", "--out", "/dev/null/run"], "--out /dev/null/run: cannot be made"),
        (["--resume", "/no/such/run"], "arguments.json: no such file"),
        (
            ["--data", "scenes-day", "--adapter", "/no/such.safetensors"],
            "/no/such.safetensors: no such file",
        ),
    ],
)
def test_bad_arguments_end_the_run_with_one_line(checkpoint, tmp_path, capsys, arguments, message):
    assert message in refused(capsys, "--model", checkpoint, *SMALL_RUN, "--out", tmp_path / "out", *arguments)


def test_an_adapter_of_another_checkpoint_is_refused(finished, tmp_path, capsys):
    out, _ = finished
    other = write_checkpoint(tmp_path / "other", seed=9)
    arguments = [
        "--data",
        "scenes-day",
        "--adapter",
        out / "adapter.safetensors",
        "--out",
        tmp_path / "out",
    ]
    assert "made for another checkpoint" in refused(capsys, "--model", other, *SMALL_RUN, *arguments)


def test_a_misshapen_checkpoint_is_refused_with_the_tensors_name_and_shape(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "model")
    tensors = dict(read_safetensors(folder / "model.safetensors"))
    tensors["model.norm.weight"] = torch.zeros(3)
    write_safetensors(folder / "model.safetensors", tensors, {})
    said = refused(capsys, "--model", folder, "--out", tmp_path / "out")
    assert said == f"error: {folder}/model.safetensors: model.norm.weight is [3], config.json asks for [64]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "1", "--epochs", "1"],
        ["--steps", "0"],
        ["--epochs", "nan"],
        ["--limit", "-1"],
        ["--targets", "x"],
        ["--method", "full", "--dtype", "float16"],
        ["--method", "lora", "--ablate", "norm=off"],
        ["--rank", "0"],
        ["--adapter", "x", "--method", "lora"],
        ["--method", "dora"],
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(SystemExit) as stopped:
        train.arguments(arguments)
    assert stopped.value.code == 2


def test_help_gives_every_flag_a_help_string_and_its_default(capsys):
    with pytest.raises(SystemExit):
        train.arguments(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--tau X a layer's share of the heads is proportional to score^tau (default: 0.5)" in said


def test_drawn_data_needs_a_limit_and_train_gives_one(checkpoint):
    assert len(load("scenes-day", None, "train", 5)) == 5
    assert math.isfinite(train.arguments([]).limit)


def test_float16_is_closer_to_float32_than_bfloat16_and_trains(checkpoint, mixed, tmp_path):
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    exact, half, brain = (VLM.from_pretrained(checkpoint, dtype)(mixed) for dtype in dtypes)
    assert half.dtype == torch.float16
    assert 0 < (half.float() - exact).abs().max() < (brain.float() - exact).abs().max()
    run(checkpoint, tmp_path / "half", "--dtype=float16")
    run(checkpoint, tmp_path / "exact", "--dtype=float32")
    a, b = (torch.cat([t.flatten() for t in adapter_of(tmp_path / name).values()]) for name in ("half", "exact"))
    assert torch.cosine_similarity(a, b, dim=0) > 0.99 and a.isfinite().all()


def test_a_value_that_is_too_large_for_float16_ends_the_run_with_the_layers_name(checkpoint, tmp_path, capsys):
    tensors = dict(read_safetensors(checkpoint / "model.safetensors"))
    (name,) = (name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight") and "visual" not in name)
    tensors[name] = tensors[name] * 1e6
    large = tmp_path / "large"
    shutil.copytree(checkpoint, large)
    write_safetensors(large / "model.safetensors", tensors, {})
    run(large, tmp_path / "float32", "--dtype=float32")  # here nothing is too large
    with pytest.raises(SystemExit) as stop:
        run(large, tmp_path / "float16", "--dtype=float16")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "model.layers.1.mlp: a value is too large for float16" in said

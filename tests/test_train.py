"""The training script: whole runs, reports, repeatability, resuming, and one line for every kind of bad input."""

import json
import math
import os
import re
import subprocess
import sys
from itertools import islice

import pytest
import torch
from conftest import ROOT, picture, small_config, write_checkpoint
from PIL import Image

import train
from data import Example, load
from files import read_safetensors, write_safetensors
from model import VLM
from tasks.images import file_size

SMALL_RUN = [
    "--limit=12",
    "--eval-limit=6",
    "--steps=4",
    "--batch=4",
    "--probe-samples=3",
    "--max-new-tokens=4",
    "--also",
    "sums",
]
REPORT = {
    "method", "seed", "data", "steps", "trainable_parameters", "adapter_flops_per_step", "train_seconds",
    "peak_memory_bytes", "base", "tuned", "text_logit_max_change", "parse_failures", "heads", "versions", "command", "commit",
}  # fmt: skip


def run(checkpoint, out, *more):
    """One short run on drawn scenes; returns its report."""
    train.main(["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(out), *more])
    return json.loads((out / "report.json").read_text())


def adapter_of(out):
    return dict(read_safetensors(out / "adapter.safetensors"))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, run(checkpoint, out)


def test_a_run_writes_everything_it_promises(finished):
    out, report = finished
    assert REPORT <= report.keys()
    for name in ("adapter.safetensors", "log.jsonl", "predictions.jsonl", "heads.json"):
        assert (out / name).stat().st_size > 0
    for name in ("heads.png", "curve.png", "examples.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 200 and len(image.convert("RGB").resize((200, 200)).getcolors(40000)) > 10
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1, 2, 3] and {"loss", "lr", "ms", "wait_ms", "peak_mib"} <= log[
        0
    ].keys()
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 2 * 12 and {"prompt", "text", "parsed", "reference", "score"} <= predictions[0].keys()


def test_the_report_says_what_was_measured(finished, checkpoint):
    out, report = finished
    assert report["method"] == "image-lora" and report["steps"] == 4 and report["data"] == "scenes-day"
    assert report["trainable_parameters"] == sum(t.numel() for t in adapter_of(out).values())
    assert sum(len(hs) for hs in report["heads"].values()) == 1  # a quarter of 6, rounded down
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    visual, (hs,) = sum(line["visual_tokens"] for line in log) / 4, report["heads"].values()
    assert report["adapter_flops_per_step"] == pytest.approx(6 * visual * (64 * 8 + 8 * len(hs) * 16))
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    for when in ("base", "tuned"):
        seen = [p["score"] for p in predictions if p["when"] == when and p["images"]]
        assert report[when]["accuracy"] == sum(seen) / len(seen)


def test_image_lora_does_not_change_text_and_lora_does(finished, checkpoint, tmp_path):
    _, report = finished
    assert report["text_logit_max_change"] == 0.0
    assert report["base"]["text_accuracy"] == report["tuned"]["text_accuracy"]
    lora = run(checkpoint, tmp_path, "--method", "lora")
    assert lora["text_logit_max_change"] > 0
    assert lora["trainable_parameters"] == 3 * 8 * (4 * 64 + 2 * 64 + 2 * 32)
    assert lora["heads"] is None


def test_the_saved_adapter_gives_the_tuned_answers_again(finished, checkpoint, tmp_path):
    out, report = finished
    again = run(checkpoint, tmp_path, "--eval-only", "--adapter", str(out / "adapter.safetensors"))
    assert again["tuned"] == report["tuned"] and again["base"] == report["base"] and again["method"] == "image-lora"
    tuned = [
        [
            (p["prompt"], p["text"])
            for p in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
            if p["when"] == "tuned"
        ]
        for folder in (out, tmp_path)
    ]
    assert tuned[0] == tuned[1]


def test_full_training_writes_a_checkpoint_that_loads(checkpoint, tmp_path):
    report = run(checkpoint, tmp_path, "--method", "full", "--lr", "1e-3")
    tuned, base = VLM.from_pretrained(tmp_path / "checkpoint"), VLM.from_pretrained(checkpoint)
    assert report["trainable_parameters"] == sum(p.numel() for p in base.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(tuned.parameters(), base.parameters())]
    assert all(changed)
    again = run(tmp_path / "checkpoint", tmp_path / "again", "--eval-only")
    assert again["base"] == report["tuned"] and again["tuned"]["accuracy"] is None


def test_from_scratch_needs_no_weights(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(small_config()))
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / "model" / name).write_text((ROOT / "tiny" / name).read_text())
    report = run(tmp_path / "model", tmp_path / "out", "--method", "full", "--from-scratch", "--lr", "1e-3")
    assert report["base"]["accuracy"] is None and report["tuned"]["accuracy"] is not None
    log = [json.loads(line)["loss"] for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert log[-1] < log[0]


def test_method_none_only_evaluates(checkpoint, tmp_path):
    report = run(checkpoint, tmp_path, "--method", "none")
    assert report["tuned"] == {"accuracy": None, "text_accuracy": None, "by_kind": {}, "boxes": None}
    assert report["steps"] == 0
    assert not (tmp_path / "adapter.safetensors").exists()


def test_the_same_seed_gives_the_same_adapter_bit_for_bit_and_another_seed_another(finished, checkpoint, tmp_path):
    out, _ = finished
    run(checkpoint, tmp_path / "same")
    run(checkpoint, tmp_path / "other", "--seed", "1")
    assert equal(adapter_of(out), adapter_of(tmp_path / "same"))
    assert not equal(adapter_of(out), adapter_of(tmp_path / "other"))


@pytest.mark.parametrize("method", ["image-lora", "full"])
def test_a_killed_and_resumed_run_ends_in_the_same_weights_bit_for_bit(checkpoint, tmp_path, monkeypatch, method):
    weights = "adapter.safetensors" if method == "image-lora" else "checkpoint/model.safetensors"
    arguments = ("--save-every", "2", "--steps", "5", "--method", method)
    run(checkpoint, tmp_path / "whole", *arguments)

    real, calls = VLM.loss, []

    def killed(self, batch):
        calls.append(1)
        if len(calls) == 4 + (3 if method == "image-lora" else 0):  # in the fourth step, behind the probe's three
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(VLM, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, tmp_path / "killed", *arguments)
    monkeypatch.setattr(VLM, "loss", real)
    assert not (tmp_path / "killed/report.json").exists() and (tmp_path / "killed/state.pt").exists()
    train.main(["--resume", str(tmp_path / "killed")])
    assert equal(
        dict(read_safetensors(tmp_path / "whole" / weights)), dict(read_safetensors(tmp_path / "killed" / weights))
    )
    whole, resumed = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed"))
    for key in ("base", "tuned", "heads", "adapter_flops_per_step", "text_logit_max_change"):
        assert whole[key] == resumed[key]
    (tmp_path / "killed/state.pt").unlink()  # killed before anything was saved: begins again, with the same end
    train.main(["--resume", str(tmp_path / "killed")])
    assert equal(
        dict(read_safetensors(tmp_path / "whole" / weights)), dict(read_safetensors(tmp_path / "killed" / weights))
    )


def test_every_row_about_a_picture_stays_together_in_an_order_of_seed_and_epoch():
    examples = [Example([f"{n}.png"] if n else [], "?") for n in (1, 2, 1, 0, 3, 0, 2, 1)]
    first = list(islice(train.row_order(examples, seed=5), 16))
    assert (
        first == list(islice(train.row_order(examples, seed=5), 16)) != list(islice(train.row_order(examples, 6), 16))
    )
    assert sorted(first[:8]) == sorted(first[8:]) == list(range(8)) and first[:8] != first[8:]
    for epoch in (first[:8], first[8:]):
        assert {"0,2,7", "1,6"} <= {",".join(map(str, epoch[i : i + k])) for i in range(8) for k in (2, 3)}


@pytest.mark.parametrize(
    "flags", [["--cache-vision=0"], ["--cache-vision=0", "--workers=2"], ["--checkpointing"]], ids=str
)
def test_what_only_saves_time_or_memory_changes_no_result(finished, checkpoint, tmp_path, flags):
    out, report = finished  # pictures encoded once and kept, no workers, no checkpointing
    other = run(checkpoint, tmp_path, *flags)
    for name, tensor in adapter_of(out).items():
        assert torch.allclose(tensor, adapter_of(tmp_path)[name], rtol=1e-4, atol=1e-6), name
    assert other["base"] == report["base"]


def test_pictures_are_kept_only_as_far_as_the_memory_given(checkpoint, tmp_path, capsys):
    vlm = VLM.from_pretrained(checkpoint)
    picture_bytes = 16 * vlm.config.hidden * 4
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
        "--data=jsonl",
        "--data-root",
        str(tmp_path),
        "--selection=all",
        "--method=lora",
    ]
    with pytest.raises(SystemExit) as stop:
        train.main([*args, "--eval-limit=1", "--batch=1", "--workers=1", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "error: " in said and "3.jpg: not a complete image" in said and "Traceback" not in said


def test_training_goes_on_from_an_adapter_in_the_heads_that_both_have(finished, checkpoint, tmp_path):
    out, report = finished
    more = ["--continue-from", str(out / "adapter.safetensors"), "--steps=1", "--lr=1e-12"]
    run(checkpoint, tmp_path / "same", "--selection", str(out / "heads.json"), *more)
    old, same = adapter_of(out), adapter_of(tmp_path / "same")
    assert old.keys() == same.keys() and all(torch.allclose(old[name], same[name], atol=1e-8) for name in old)
    run(checkpoint, tmp_path / "all", "--selection=all", *more)
    everything = adapter_of(tmp_path / "all")
    for layer, heads in report["heads"].items():
        assert torch.allclose(everything[f"layers.{layer}.B"][heads], old[f"layers.{layer}.B"], atol=1e-8)
        new = [h for h in (0, 1) if h not in heads]
        assert (everything[f"layers.{layer}.B"][new].abs() < 1e-8).all()  # they start at zero


def test_states_are_kept_where_asked(checkpoint, tmp_path):
    run(checkpoint, tmp_path, "--save-every=2", "--keep-states")
    steps = [torch.load(tmp_path / f"state-{n}.pt", weights_only=True)["step"] for n in (2, 4)]
    assert steps == [2, 4]


def test_a_preamble_and_larger_pictures_change_the_share_of_text(checkpoint, tmp_path, capsys):
    lines = []
    for flags in ([], ["--preamble=40"], ["--min-pixels=50176"]):
        run(checkpoint, tmp_path / str(len(lines)), "--method=none", *flags)
        said = capsys.readouterr().out
        line = next(line for line in said.splitlines() if line.startswith("data     scenes-day val"))
        lines.append([int(n) for n in re.findall(r"/ (\d+) /", line)])  # medians: visual, text
    (visual, text), (same, longer), (more, equal) = lines
    assert same == visual == 16 and longer > text + 40
    assert more == 64 and text <= equal < text + 8  # larger coordinates have more digits


def test_two_processes_that_share_a_step_end_where_one_does(finished, checkpoint, tmp_path):
    out, report = finished
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "train.py"),
    ]
    args = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(tmp_path)]
    subprocess.run([*command, *args], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    two = json.loads((tmp_path / "report.json").read_text())
    for name, tensor in adapter_of(out).items():
        assert torch.allclose(tensor, adapter_of(tmp_path)[name], rtol=1e-5, atol=1e-6), name
    same = ("base", "steps", "heads", "trainable_parameters", "text_logit_max_change")
    assert two["processes"] == 2 and all(two[key] == report[key] for key in same)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (out, tmp_path)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_accumulated_parts_give_the_step_of_the_whole_batch(checkpoint, tmp_path):
    """Parts are weighted by their supervised tokens: two of 2 rows equal one of 4."""
    run(checkpoint, tmp_path / "whole", "--steps", "2")
    run(checkpoint, tmp_path / "parts", "--steps", "2", "--batch", "2", "--accumulate", "2")
    whole, parts = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "parts")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-3, atol=1e-5) for name in whole)


@pytest.mark.parametrize("selection", ["random", "all", "gate"])
def test_heads_are_chosen_as_asked(checkpoint, tmp_path, selection):
    report = run(checkpoint, tmp_path / selection, "--selection", selection, "--heads", "4", "--steps", "1")
    assert sum(len(hs) for hs in report["heads"].values()) == (6 if selection == "all" else 4)
    file = tmp_path / selection / "heads.json"
    again = run(checkpoint, tmp_path / "again", "--selection", str(file), "--steps", "1")
    assert again["heads"] == report["heads"]


def test_rows_about_one_picture_stay_together_and_every_epoch_has_every_row_once():
    images = [picture(30, 30, i) for i in range(5)]
    examples = [Example([images[i // 3]], str(i), "x") for i in range(15)] + [Example([], "t", "x")] * 2
    order = list(islice(train.row_order(examples, seed=3), 34))
    for epoch in (order[:17], order[17:]):
        assert sorted(epoch) == list(range(17))
        for first in range(0, 15, 3):
            at = epoch.index(first)
            assert epoch[at : at + 3] == [first, first + 1, first + 2]
    assert order[:17] != order[17:]
    assert order == list(islice(train.row_order(examples, seed=3), 34))
    assert order != list(islice(train.row_order(examples, seed=4), 34))


def test_the_rate_rises_then_follows_a_cosine_to_a_tenth():
    rates = [train.learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1.0 and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_rows_longer_than_the_positions_are_counted_named_and_skipped(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "model", raw=small_config() | {"max_position_embeddings": 120})
    rows = [{"prompt": "2+2?", "answer": "4"}, {"prompt": "long " * 99, "answer": "5"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "val.jsonl").write_text(json.dumps(rows[0]))
    where = ["--model", str(folder), "--data", "jsonl", "--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    train.main([*where, "--method", "lora", "--steps", "1", "--max-new-tokens", "4"])
    assert f"skipped  1 of 2 rows, longer than 120 tokens: {tmp_path}/train.jsonl:2" in capsys.readouterr().out


def test_start_up_says_what_was_decided(checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path)
    said = capsys.readouterr().out
    for part in (
        "parameters in float32 on cpu",
        "tokens a row (min / median / max): visual 16 / 16 / 16",
        ">>>[",
        "<|im_end|><<<",
    ):
        assert part in said
    assert (
        "<|image_pad|> x 16" in said
        and "trainable parameters, 4 steps of 4 rows, learning rate" in said
        and "layer" in said
    )


WITHOUT_RESOURCE = """
import multiprocessing, sys
sys.modules["resource"] = None  # as on Windows: importing it fails
sys.path.insert(0, sys.argv[1])
import train
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")  # as on Windows and macOS
    train.main(sys.argv[2:])
"""


def test_a_run_without_the_module_resource_and_with_spawned_workers_gives_the_same_adapter(
    finished, checkpoint, tmp_path
):
    out, _ = finished
    (tmp_path / "start.py").write_text(WITHOUT_RESOURCE)
    args = [
        "--model",
        str(checkpoint),
        "--data",
        "scenes-day",
        *SMALL_RUN,
        "--workers=1",
        "--out",
        str(tmp_path / "run"),
    ]
    command = [sys.executable, str(tmp_path / "start.py"), str(ROOT), *args]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert equal(adapter_of(out), adapter_of(tmp_path / "run"))
    assert json.loads((tmp_path / "run/report.json").read_text())["peak_memory_bytes"] is None


# -- real photographs


def test_the_refer_folder_of_real_photographs_runs_through(shared, checkpoint, tmp_path):
    where = [
        "--data",
        "refcoco",
        "--data-root",
        str(shared / "refcoco-mini"),
        "--train-split",
        "testA",
        "--eval-split",
        "val",
    ]
    run(checkpoint, tmp_path, *where, "--max-pixels", "50000", "--also")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["data"] == "refcoco" and report["parse_failures"] == {"base": 6, "tuned": 6}
    assert report["tuned"]["accuracy"] == 0 and report["tuned"]["text_accuracy"] is None


def test_coco_photographs_with_boxes_run_through(shared, checkpoint, tmp_path):
    report = run(
        checkpoint,
        tmp_path,
        "--data",
        "jsonl",
        "--data-root",
        str(shared / "coco-photos"),
        "--max-pixels",
        "50000",
        "--also",
    )
    assert report["steps"] == 4 and report["base"]["accuracy"] is not None


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
        where = ["--data", "jsonl", "--data-root", tmp_path, "--out", tmp_path / "out", "--steps", "1"]
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
        (["--data", "refcoco", "--data-root", "/no/such/folder"], "/no/such/folder: no refcoco here; put"),
        (["--data", "scenes-day", "--heads", "7"], "--heads 7: the model has 6 value heads"),
        (["--data", "scenes-day", "--selection", "magic"], "magic: no such file"),
        (["--data", "scenes-day", "--method", "full", "--lr", "1e30"], "the loss is nan"),
        (["--data", "scenes-day", "--max-pixels", "100"], "max_pixels 100 is below min_pixels"),
        (["--data", "scenes-day", "--out", "/dev/null/run"], "--out /dev/null/run: cannot be made"),
        (["--resume", "/no/such/run"], "arguments.json: no such file"),
        (
            ["--data", "scenes-day", "--eval-only", "--adapter", "/no/such.safetensors"],
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
        "--eval-only",
        "--adapter",
        out / "adapter.safetensors",
        "--out",
        tmp_path / "out",
    ]
    assert "made for another checkpoint" in refused(capsys, "--model", other, *SMALL_RUN, *arguments)


def test_a_misshapen_checkpoint_is_refused_from_the_command_line(checkpoint, tmp_path):
    """The same through a real process: exit code 2, one line, no traceback."""
    folder = write_checkpoint(tmp_path / "model")
    tensors = dict(read_safetensors(folder / "model.safetensors"))
    tensors["model.norm.weight"] = torch.zeros(3)
    write_safetensors(folder / "model.safetensors", tensors, {})
    command = [sys.executable, str(ROOT / "train.py"), "--model", str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {folder}/model.safetensors: model.norm.weight is [3], config.json asks for [64]\n"


def test_one_question_about_one_picture_is_answered_before_and_after(finished, checkpoint, tmp_path, capsys):
    out, _ = finished
    picture(112, 112).save(tmp_path / "photo.png")
    adapter = ["--adapter", str(out / "adapter.safetensors")]
    where = ["--image", str(tmp_path / "photo.png"), "--prompt", "What is this?", "--max-new-tokens", "5"]
    train.main(["--model", str(checkpoint), "--eval-only", *adapter, *where, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if line.startswith(("base", "tuned"))] == ["base", "tuned"]
    with Image.open(tmp_path / "out/answer.png") as drawn:
        assert min(drawn.size) > 300
    where[1] = str(tmp_path / "missing.png")
    assert "missing.png: no such image" in refused(capsys, "--model", checkpoint, "--eval-only", *where)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "1", "--epochs", "1"],
        ["--steps", "0"],
        ["--image", "x"],
        ["--rank", "0"],
        ["--adapter", "x"],
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
    assert "--tau TAU a layer's share of the budget goes with its score to this power (default: 0.5)" in said


def test_drawn_data_needs_a_limit_and_train_gives_one(checkpoint):
    assert len(load("scenes-day", None, "train", 5)) == 5
    assert math.isfinite(train.arguments([]).limit)

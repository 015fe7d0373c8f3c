"""The training script: complete runs, reports, repeatability, resuming."""

import json
from itertools import islice

import pytest
import torch
from conftest import picture
from PIL import Image
from short_run import SMALL_RUN, adapter_of, equal, run

import train
from data import Example
from harness import report
from harness.encodings import StepBatches
from model import VLM
from parts.files import read_safetensors

REPORT = {
    "method", "seed", "data", "steps", "trainable_parameters", "adapter_flops_per_step", "train_seconds",
    "peak_memory_bytes", "base", "tuned", "text_logit_max_change", "parse_failures", "heads", "versions", "command", "commit",
}  # fmt: skip


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
    again = run(checkpoint, tmp_path, "--adapter", str(out / "adapter.safetensors"))
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
    again = run(tmp_path / "checkpoint", tmp_path / "again", "--method", "none")
    assert again["base"] == report["tuned"] and again["tuned"]["accuracy"] is None


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
def test_a_killed_and_resumed_run_ends_in_the_same_weights_bit_for_bit(
    checkpoint, tmp_path, monkeypatch, capsys, method
):
    weights = "adapter.safetensors" if method == "image-lora" else "checkpoint/model.safetensors"
    arguments = ("--save-every", "2", "--eval-every", "1", "--steps", "5", "--method", method)
    run(checkpoint, tmp_path / "whole", *arguments)

    real, calls = VLM.loss, []

    def killed(self, batch):
        calls.append(1)
        if len(calls) == 4 + (3 if method == "image-lora" else 0):  # in the fourth step, behind the probe's three
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(VLM, "loss", killed)
    with pytest.raises(SystemExit) as stop:
        run(checkpoint, tmp_path / "killed", *arguments)
    assert stop.value.code == 130
    assert f"python train.py --resume {tmp_path / 'killed'} continues from step 2" in capsys.readouterr().err
    monkeypatch.setattr(VLM, "loss", real)
    assert len((tmp_path / "killed/log.jsonl").read_text().splitlines()) == 2  # it grows while the run lives
    assert not (tmp_path / "killed/report.json").exists() and (tmp_path / "killed/state.pt").exists()
    train.main(["--resume", str(tmp_path / "killed")])
    assert equal(
        dict(read_safetensors(tmp_path / "whole" / weights)), dict(read_safetensors(tmp_path / "killed" / weights))
    )
    whole, resumed = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed"))
    for key in ("base", "tuned", "heads", "adapter_flops_per_step", "text_logit_max_change", "curve"):
        assert whole[key] == resumed[key]
    assert [step for step, _ in whole["curve"]] == [0, 1, 2, 3, 4, 5]
    (tmp_path / "killed/state.pt").unlink()  # killed before anything was saved: begins again, with the same end
    train.main(["--resume", str(tmp_path / "killed")])
    assert equal(
        dict(read_safetensors(tmp_path / "whole" / weights)), dict(read_safetensors(tmp_path / "killed" / weights))
    )


def test_the_curve_has_the_accuracy_by_the_same_few_rows_at_every_point(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "CURVE_ROWS", 4)  # of six held-out rows
    seen = []
    real = report.accuracy_of
    monkeypatch.setattr(report, "accuracy_of", lambda found: seen.append([p["source"] for p in found]) or real(found))
    measured = run(checkpoint, tmp_path, "--eval-every", "3")
    assert [step for step, _ in measured["curve"]] == [0, 3, 4] and len(seen) == 3
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 4
    without = run(checkpoint, tmp_path / "without", "--eval-every", "0")
    assert without["curve"] == [measured["curve"][0], measured["curve"][2]]  # looking changes nothing
    assert equal(adapter_of(tmp_path), adapter_of(tmp_path / "without"))


def test_the_best_adapter_on_the_way_is_kept_beside_the_last(checkpoint, tmp_path, monkeypatch):
    accuracies = iter([0.2, 0.5, 0.5, *[0.1] * 9])
    monkeypatch.setattr(report, "accuracy_of", lambda found: next(accuracies))
    run(checkpoint, tmp_path, "--eval-every", "1", "--keep-states", "--save-every", "2")
    best = dict(read_safetensors(tmp_path / "best.safetensors"))  # of step 2: 0.5, and no better one after it
    saved = torch.load(tmp_path / "state-2.pt", weights_only=True)["parameters"]
    assert sorted(t.sum().item() for t in best.values()) == sorted(t.sum().item() for t in saved)
    assert not equal(best, adapter_of(tmp_path))


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--resume", "RUN", "--steps", "90"], "begun with --steps 4, now 90; leave it out"),
        (["--resume", "RUN", "--seed", "1"], "begun with --seed 0, now 1; leave it out"),
        (["--out", "RUN"], "holds a finished run; choose another folder"),
        (["--out", "RUN", "--seed", "1"], "begun with --seed 0, now 1; continue that run with --resume RUN"),
    ],
)
def test_a_folder_that_holds_a_run_is_not_used_for_another(finished, checkpoint, flags, said, capsys):
    out, _ = finished
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    flags = [flag.replace("RUN", str(out)) for flag in flags]
    if "--out" in flags:
        flags += ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN]
    with pytest.raises(SystemExit) as stop:
        train.main(flags)
    assert stop.value.code == 2 and said.replace("RUN", str(out)) in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_the_command_of_an_unfinished_run_continues_it(finished, checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path, "--save-every", "2", "--keep-states")
    (tmp_path / "report.json").unlink()
    (tmp_path / "state-2.pt").replace(tmp_path / "state.pt")
    run(checkpoint, tmp_path, "--save-every", "2", "--keep-states")
    assert f"resume   {tmp_path}, from step 2" in capsys.readouterr().out
    assert equal(adapter_of(finished[0]), adapter_of(tmp_path))


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


def test_rows_of_like_length_share_a_batch_which_saves_padding_and_keeps_the_loss(vlm, processor):
    lengths = (2, 60, 3, 55, 4, 58, 1, 62)
    examples = [Example([], "word " * n, "yes") for n in lengths] + [Example([picture(60, 60)], "What?", "a ring")]
    made = StepBatches(processor, examples, size=2)
    together, again = made[list(range(9))], made[list(range(9))]
    in_order = [processor(examples[i : i + 2]) for i in range(0, 9, 2)]

    def of(batches, value):
        return sum((batch.attention_mask == value).sum().item() for batch in batches)

    def loss(batches):
        return sum(vlm.loss(batch) * len(batch.answer_ids) for batch in batches)

    assert of(together, 1) == of(in_order, 1)
    assert of(together, 0) < of(in_order, 0) / 10
    torch.testing.assert_close(loss(together), loss(in_order), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(together, again, strict=True))


def test_the_rate_rises_then_follows_a_cosine_to_a_tenth():
    rates = [train.learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1.0 and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)


# -- real photographs


def test_the_refer_folder_of_real_photographs_runs_through(shared, checkpoint, tmp_path):
    where = ["--data", f"refcoco={shared / 'refcoco-mini'}", "--train-split", "testA", "--eval-split", "val"]
    report = run(checkpoint, tmp_path, *where, "--eval", "refcoco", "--max-pixels", "50000")
    assert report["data"] == "refcoco" and report["parse_failures"] == {"base": 6, "tuned": 6}
    assert report["tuned"]["accuracy"] == 0 and report["tuned"]["text_accuracy"] is None


def test_coco_photographs_with_boxes_run_through(shared, checkpoint, tmp_path):
    where = ["--data", f"jsonl={shared / 'coco-photos'}", "--eval", "jsonl", "--max-pixels", "50000"]
    report = run(checkpoint, tmp_path, *where)
    assert report["steps"] == 4 and report["base"]["accuracy"] is not None

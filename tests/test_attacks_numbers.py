"""Numbers that are not finite, too little memory, and states, adapters and folders that do not fit: one line each."""

import json
import re
import shutil
from argparse import Namespace

import pytest
import torch
from short_run import SMALL_RUN, adapter_of, at_loss, equal, run, stopped

import train
from harness import encodings, ending, state
from model import VLM
from parts.files import InputError, read_safetensors, write_safetensors

STEPS = 4  # of SMALL_RUN, after three batches of the probe


# -- numbers


@pytest.mark.parametrize("what", ["loss", "norm of the gradient"])
def test_a_number_that_is_not_finite_ends_the_run_and_the_last_good_state_continues(
    finished, checkpoint, tmp_path, monkeypatch, capsys, what
):
    def spoilt(loss):
        if what == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("inf"))  # the loss itself is finite
        return loss

    at_loss(monkeypatch, 3 + 4, spoilt)  # in the last step
    code, line = stopped(capsys, run, checkpoint, tmp_path, "--save-every=2")
    assert code == 2 and f"the {what} is" in line and "at step 3; lower --lr" in line
    assert not (tmp_path / "adapter.safetensors").exists() and "NaN" not in (tmp_path / "log.jsonl").read_text()
    monkeypatch.undo()
    train.main(["--resume", str(tmp_path)])
    assert "from step 2" in capsys.readouterr().out and equal(adapter_of(finished[0]), adapter_of(tmp_path))


def test_a_model_whose_numbers_overflow_is_said_to(checkpoint, tmp_path, capsys):
    tensors = dict(read_safetensors(checkpoint / "model.safetensors"))
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1e38  # finite, but its products are not
    shutil.copytree(checkpoint, tmp_path / "large")
    write_safetensors(tmp_path / "large/model.safetensors", tensors, {})
    code, line = stopped(capsys, run, tmp_path / "large", tmp_path / "run", "--selection=all")
    assert code == 2 and re.search(r"the loss is (nan|inf) at step 0; lower --lr", line)
    code, line = stopped(capsys, run, tmp_path / "large", tmp_path / "probe", "--probe-only")
    assert code == 2 and "probe scores are not finite: scenes-day train " in line
    assert not (tmp_path / "probe/heads.json").exists() and not (tmp_path / "run/state.pt").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    for value in (float("nan"), float("inf")):
        weights = [torch.zeros(3), torch.tensor([1.0, value])]
        with pytest.raises(InputError, match="a trained weight is not finite"):
            state.save_state({"step": 1, "parameters": weights, "optimizer": {}}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_best_adapter_on_the_way_is_finite(checkpoint, tmp_path, monkeypatch, capsys):
    def overflow(loss):
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    at_loss(monkeypatch, 3 + 1, overflow)
    code, line = stopped(capsys, run, checkpoint, tmp_path, "--eval-every=1")
    assert code == 2 and "not finite" in line and not list(tmp_path.glob("*.safetensors"))


def test_a_row_whose_probe_scores_are_not_finite_is_named(checkpoint, tmp_path, monkeypatch, capsys):
    real, bad = VLM.loss, []

    def loss(self, batch):  # that of the second row, whenever it comes
        bad.append(batch.input_ids)
        is_second = len(bad) > 1 and torch.equal(batch.input_ids, bad[1])
        return real(self, batch) * (float("inf") if is_second else 1)

    monkeypatch.setattr(VLM, "loss", loss)
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 2 and re.search(r"probe scores are not finite: scenes-day train \d\.\d;", line)


# -- memory


@pytest.mark.parametrize("kind", ["gpu", "cpu", "python"])
def test_too_little_memory_is_one_line_with_the_flags_to_lower(checkpoint, tmp_path, monkeypatch, capsys, kind):
    def fail(loss):
        if kind == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 3.")
        if kind == "python":
            raise MemoryError
        return torch.empty(2**60)

    at_loss(monkeypatch, 3 + 1, fail)
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 2 and re.search(r"out of memory with \d rows of \d{2,3} tokens in the decoder", line)
    assert "lower --max-pixels or --batch, or add --checkpointing" in line
    assert ("tried to allocate 2.00 gib" in line) == (kind == "gpu")


# -- the programmers' own mistakes


def test_data_that_end_too_early_are_an_error(checkpoint, tmp_path, monkeypatch):
    real, calls = encodings.StepBatches.__getitem__, []

    def ends(self, numbers):
        calls.append(1)
        if len(calls) == 2:
            raise StopIteration
        return real(self, numbers)

    monkeypatch.setattr(encodings.StepBatches, "__getitem__", ends)
    with pytest.raises(RuntimeError, match="the batches ended after step 0 of 4"):
        run(checkpoint, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_other_runtime_errors_keep_their_traceback(checkpoint, tmp_path, monkeypatch):
    at_loss(monkeypatch, 3 + 1, lambda loss: loss.backward(torch.zeros(3)))
    with pytest.raises(RuntimeError):
        run(checkpoint, tmp_path)


# -- folders


def test_two_runs_that_begin_in_the_same_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(state.time, "strftime", lambda form: "20300101-000000")
    made = []
    for _ in range(3):
        with ending.in_one_line():
            args, out, saved = state.start(train.arguments([]))
            made.append(state.make_folder(out, args, saved, Namespace(fingerprint=str), {}))
    assert [folder.name for folder in made] == [f"20300101-000000-scenes-image-lora{end}" for end in ("", "-2", "-3")]
    assert all((folder / "arguments.json").exists() for folder in made)


# -- --resume


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lr", "0.5"], "--lr 0.02, now 0.5"),
        (["--data", "scenes-fog"], "--data scenes-day, now scenes-fog"),
        (["--data", "scenes-day=elsewhere"], "--data scenes-day, now scenes-day=elsewhere"),
        (["--method", "lora"], "--method image-lora, now lora"),
        (["--ablate", "norm=off"], "--ablate [], now ['norm=off']"),
        (["--selection", "random"], "--selection probe, now random"),
        (["--eval", "sums"], "--eval ['scenes-day', 'sums'], now ['sums']"),
        (["--out", "elsewhere"], "--out {out}, now elsewhere"),
    ],
)
def test_a_resumed_run_refuses_every_other_flag(finished, flags, said, capsys):
    out, _ = finished
    code, line = stopped(capsys, train.main, ["--resume", str(out), *flags])
    assert code == 2 and f"begun with {said.format(out=out)}" in line


def test_a_resumed_run_accepts_its_own_flags_again(finished, checkpoint):
    out, _ = finished
    flags = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(out)]
    with ending.in_one_line():
        args, folder, saved = state.start(train.arguments(["--resume", str(out), *flags]))
    assert isinstance(args, Namespace) and folder == out and saved["step"] == STEPS
    assert json.loads((out / "arguments.json").read_text())["resume"] is None

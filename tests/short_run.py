"""One short run of train.py on drawn scenes, what it leaves, and what ends it before its time."""

import json

import pytest
import torch

import train
from model import VLM
from parts.files import read_safetensors

SMALL_RUN = ["--limit=12", "--eval-limit=6", "--steps=4", "--batch=4", "--probe-samples=3", "--max-new-tokens=4"]
SMALL_RUN += ["--eval", "scenes-day", "sums"]
PROBED = 3  # losses before those of the steps


def run(checkpoint, out, *more):
    """One short run; returns its report."""
    train.main(["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(out), *more])
    return json.loads((out / "report.json").read_text())


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def adapter_of(out):
    return dict(read_safetensors(out / "adapter.safetensors"))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stopped(capsys, function, *arguments):
    """(exit code, the only line on stderr that is ours) of a run that ends before its time."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith(("error: ", "stopped; "))]
    assert len(lines) == 1 and "Traceback" not in text
    return stop.value.code, lines[0]


def at_loss(monkeypatch, number, action):
    """action(loss) within the computation of the loss number 1, 2, ...: those of the probe come first."""
    real, calls = VLM.loss, []

    def loss(self, batch):
        calls.append(1)
        value = real(self, batch)
        return action(value) if len(calls) == number else value

    monkeypatch.setattr(VLM, "loss", loss)

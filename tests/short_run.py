"""One short run of train.py on drawn scenes, what it leaves, and what ends it before its time."""

import json

import pytest
import torch

import train
from model import VLM
from parts.files import read_safetensors

SMALL_RUN = ["--limit=12", "--eval-limit=6", "--steps=4", "--batch=4", "--probe-samples=3", "--max-new-tokens=4"]
SMALL_RUN += ["--eval", "scenes-day", "sums"]


def run(checkpoint, out, *more):
    """One short run; returns its report."""
    train.main(["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(out), *more])
    return json.loads((out / "report.json").read_text())


def adapter_of(out):
    return dict(read_safetensors(out / "adapter.safetensors"))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stopped(capsys, function, *arguments):
    """(exit code, the only line on stderr that is ours) of a run that ends before its time."""
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith(("error: ", "stopped; "))]
    assert len(lines) == 1 and "Traceback" not in said
    return stop.value.code, lines[0]


def at_loss(monkeypatch, number, action):
    """action() within the computation of the loss number 1, 2, ...: those of the probe come first."""
    real, calls = VLM.loss, []

    def loss(self, batch):
        calls.append(1)
        found = real(self, batch)
        return action(found) if len(calls) == number else found

    monkeypatch.setattr(VLM, "loss", loss)

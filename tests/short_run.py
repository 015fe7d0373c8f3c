"""One short run of train.py on drawn scenes, and what it leaves."""

import json

import torch

import train
from files import read_safetensors

SMALL_RUN = ["--limit=12", "--eval-limit=6", "--steps=4", "--batch=4", "--probe-samples=3", "--max-new-tokens=4"]
SMALL_RUN += ["--also", "sums"]


def run(checkpoint, out, *more):
    """One short run; returns its report."""
    train.main(["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(out), *more])
    return json.loads((out / "report.json").read_text())


def adapter_of(out):
    return dict(read_safetensors(out / "adapter.safetensors"))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

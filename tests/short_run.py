"""One short run of train.py on drawn scenes, what it leaves, and what ends it before its time."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

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


PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import train
name, where, at = sys.argv[2], sys.argv[3], int(sys.argv[4])
WRITERS, inside, count = {"save", "write_text", "write_safetensors"}, 0, {"anywhere": 0, "writing": 0, "loss": 0}
def moment(frame, event, what):  # a moment is a call of a function: of all those of a run, of those that write, of a loss
    global inside
    inside += (frame.f_code.co_name in WRITERS) * {"call": 1, "return": -1}.get(event, 0)
    count["anywhere"] += 1
    count["writing"] += inside > 0
    count["loss"] += event == "call" and frame.f_code.co_name == "loss"
    if count[where] == at:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.Signals[name])
real = train.state.Record.begin
def begin(*arguments):
    if int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"]):
        sys.setprofile(moment)  # from here on
    return real(*arguments)
train.state.Record.begin = begin
train.main(sys.argv[5:])
sys.setprofile(None)
print("moments", count["anywhere"], count["writing"])
"""


def in_processes(checkpoint, out, moment, *more, count=1):
    """The processes of a small run, as torchrun starts them, in sessions of their own. moment: (signal, where, at), when
    the last one gets a signal; at -1: never."""
    out.parent.mkdir(exist_ok=True)
    out.with_name("program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    command = [sys.executable, str(out.with_name("program.py")), str(ROOT), *map(str, moment)]
    command += ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(out), *more]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    env = os.environ | where | {"OMP_NUM_THREADS": "1"}
    return [subprocess.Popen(command, env=env | {"RANK": str(rank)}, **options) for rank in range(count)]


def ends(text):
    """The lines of stderr by which a process ends."""
    return [line for line in re.split(r"[\r\n]", text) if line.startswith(("stopped; ", "Traceback", "error: "))]

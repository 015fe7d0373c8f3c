"""Runs that are stopped or killed: no work is lost, and one line says how to continue.

`IMAGELORA_ATTACKS=1 python -m pytest -s tests/test_attacks_runs.py` runs all of them: 20 kills at random moments, 5 of
them during a write, 6 signals to real processes, a terminal that is closed, a killed process of two; so does CI. In the
ordinary suite signals come from within, and a run that is to be resumed ends at a chosen step (tests/test_train.py).
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, by_hand
from short_run import SMALL_RUN, adapter_of, at_loss, equal, run, stopped

import train
from harness import ending, processes
from model import VLM
from parts.files import InputError

STEPS = 4  # of SMALL_RUN, after three batches of the probe


# -- signals


@pytest.fixture(autouse=True)
def listening():
    """Signals do what they usually do: a shell may have started the tests with some of them ignored."""
    before = {number: signal.getsignal(number) for number in ending.SIGNALS}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", [number.name for number in ending.SIGNALS])
def test_a_signal_while_training_saves_the_step_and_says_how_to_continue(
    finished, checkpoint, tmp_path, monkeypatch, capsys, name
):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    at_loss(monkeypatch, 3 + 2, lambda loss: (signal.raise_signal(number), loss)[1])  # in the second step
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 128 + number and line == f"stopped; python train.py --resume {tmp_path} continues from step 2"
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    train.main(["--resume", str(tmp_path)])
    assert equal(adapter_of(finished[0]), adapter_of(tmp_path))


@pytest.mark.parametrize("where", ["loading", "probing", "evaluating"])
def test_a_signal_outside_training_ends_the_run_at_once_in_one_line(checkpoint, tmp_path, monkeypatch, capsys, where):
    if where == "probing":
        at_loss(monkeypatch, 2, lambda loss: (signal.raise_signal(signal.SIGTERM), loss)[1])
    elif where == "evaluating":
        monkeypatch.setattr(VLM, "generate", lambda *_: signal.raise_signal(signal.SIGTERM))
    else:
        monkeypatch.setattr(train, "load_model", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    code, line = stopped(capsys, run, checkpoint, tmp_path / "run")
    begun = f"python train.py --resume {tmp_path / 'run'} continues from the beginning"
    assert code == 143 and line == "stopped; " + ("nothing was saved yet" if where == "loading" else begun)
    assert (tmp_path / "run").exists() == (where != "loading")


def test_a_second_signal_does_not_wait_for_the_step(checkpoint, tmp_path, monkeypatch, capsys):
    def twice(loss):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    at_loss(monkeypatch, 3 + 2, twice)
    code, line = stopped(capsys, run, checkpoint, tmp_path, "--save-every=1")
    assert code == 130 and line.endswith("continues from step 1")


def test_a_signal_that_was_ignored_before_stays_ignored(checkpoint, tmp_path, monkeypatch):
    """nohup ignores SIGHUP, so that a run goes on without its terminal."""
    number = ending.SIGNALS[-1]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        at_loss(monkeypatch, 3 + 1, lambda loss: (signal.raise_signal(number), loss)[1])
        assert run(checkpoint, tmp_path)["steps"] == STEPS
    finally:
        signal.signal(number, before)


START = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import train
from harness import report
from model import VLM
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whatever the tests' own shell ignores
    signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
name, group, at = sys.argv[2], sys.argv[3] == "group", int(sys.argv[4])
real, calls = VLM.loss, []
def loss(self, batch):
    calls.append(1)
    if len(calls) == at:
        (os.killpg if group else os.kill)(os.getpgrp() if group else os.getpid(), signal.Signals[name])
    return real(self, batch)
VLM.loss = loss
train.main(sys.argv[5:])
"""


def small_process(checkpoint, out, start, *words, more=(), environment=None, **options):
    """Run the program `start` with `words` and the flags of a small run and `more`, in a process group of its own."""
    file = out.with_name("start.py")
    file.write_text(start)
    flags = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(out), *more]
    command = [sys.executable, str(file), str(ROOT), *map(str, words), *flags]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True} | options
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}), **options)


@by_hand
@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
@pytest.mark.parametrize(
    ("name", "group"),
    [(n, g) for n in ("SIGTERM", "SIGHUP", "SIGINT") for g in ("one", "group")],
)
def test_a_real_process_with_workers_ends_with_all_its_children(finished, checkpoint, tmp_path, name, group):
    process = small_process(checkpoint, tmp_path / "run", START, name, group, 3 + 2, more=["--workers=1"])
    with process:
        _, said = process.communicate(timeout=600)
    lines = [line for line in re.split(r"[\r\n]", said) if line.startswith(("stopped; ", "Traceback", "error: "))]
    if (name, group) == ("SIGTERM", "group"):  # a worker may end first; then the step does not end
        assert process.returncode == 143 and len(lines) == 1 and lines[0].startswith("stopped; ")
    else:
        assert process.returncode == 128 + signal.Signals[name]
        assert lines == [f"stopped; python train.py --resume {tmp_path / 'run'} continues from step 2"]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    train.main(["--resume", str(tmp_path / "run")])
    assert equal(adapter_of(finished[0]), adapter_of(tmp_path / "run"))


@by_hand
def test_a_closed_terminal_ends_a_run_like_any_signal(finished, checkpoint, tmp_path):
    import pty

    here, there = pty.openpty()
    wait = START.replace(
        "real, calls", "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\nreal, calls"
    ).replace(
        "(os.killpg if group else os.kill)(os.getpgrp() if group else os.getpid(), signal.Signals[name])",
        "print('here')\n        while not train.ending.now.signals: pass",
    )
    process = small_process(
        checkpoint, tmp_path / "run", wait, "SIGHUP", "one", 5, stdin=there, stdout=there, stderr=there
    )
    os.close(there)
    said = b""
    while b"here" not in said:
        said += os.read(here, 1000)
    os.close(here)  # the kernel sends SIGHUP
    assert process.wait(timeout=600) == 129
    train.main(["--resume", str(tmp_path / "run")])
    assert equal(adapter_of(finished[0]), adapter_of(tmp_path / "run"))


# -- kills

KILL = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import train
WRITERS, where, at, inside = {"save_state", "write_text", "write_safetensors"}, sys.argv[2], int(sys.argv[3]), 0
count = {"anywhere": 0, "writing": 0}
def moment(frame, event, what):
    global inside
    if event in ("call", "return") and frame.f_code.co_name in WRITERS:
        inside += 1 if event == "call" else -1
    count["anywhere"] += 1
    count["writing"] += inside > 0
    if count.get(where) == at:
        os.kill(os.getpid(), signal.SIGKILL)
real = train.make_folder
def begin(*arguments):
    sys.setprofile(moment)  # from here on
    return real(*arguments)
train.make_folder = begin
train.main(sys.argv[4:])
sys.setprofile(None)
print("moments", count["anywhere"], count["writing"])
"""
KILLS = {"anywhere": 15, "writing": 5}


@by_hand
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_runs_killed_at_random_moments_end_in_the_same_adapter(finished, checkpoint, tmp_path, capsys):
    """A moment is a call of a function, of all those of a run; or of those while a file is written."""
    (tmp_path / "whole").mkdir()
    each = ["--save-every=1"]
    with small_process(checkpoint, tmp_path / "whole/run", KILL, "nowhere", 0, more=each) as process:
        moments = process.communicate(timeout=600)[0].split("moments ")[1].split()
    draw, said, kills = random.Random(14), [], []
    for where, most in zip(KILLS, map(int, moments)):
        for i in range(KILLS[where]):
            kills.append((tmp_path / f"{where}{i}" / "run", where, draw.randrange(1, int(0.98 * most))))

    def kill(out, where, moment):
        out.parent.mkdir()
        with small_process(checkpoint, out, KILL, where, moment, more=each) as process:
            process.communicate(timeout=600)
        return process.returncode

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(kill, *zip(*kills))) == {-signal.SIGKILL}
    for out, *_ in kills:
        flags = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, *each, "--out", str(out)]
        train.main(["--resume", str(out)] if (out / "arguments.json").exists() else flags)
        said += re.findall(r"resume .* from step (\d)", capsys.readouterr().out) or ["-"]
        assert equal(adapter_of(finished[0]), adapter_of(out))
        assert not [file.name for file in out.iterdir() if file.suffix == ".part"]
    with capsys.disabled():
        print(f" {len(said)} kills at random moments of {', '.join(moments)}; from steps {' '.join(said)}", end="")


@by_hand
@pytest.mark.parametrize(
    ("name", "codes", "said"),
    [
        ("SIGKILL", [2, -9], "error: another process of this run has ended"),
        (
            "SIGTERM",
            [130, 143],
            "stopped; python train.py --resume RUN continues from step 3",
        ),  # they agree one step later
    ],
)
def test_when_one_process_of_two_gets_a_signal_both_end_with_a_line(checkpoint, tmp_path, name, codes, said):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    start = START.replace("if len(calls) == at", "if len(calls) == at and os.environ['RANK'] == '1'")
    two = []
    for rank in ("0", "1"):
        environment = where | {"RANK": rank}
        two.append(small_process(checkpoint, tmp_path / "run", start, name, "one", 3 + 2, environment=environment))
    with two[0] as first, two[1] as second:
        lines = re.split(r"[\r\n]", first.communicate(timeout=600)[1])
        assert [first.returncode, second.wait(timeout=600)] == codes
    lines = [line for line in lines if line.startswith(("stopped; ", "Traceback", "error: "))]
    assert len(lines) == 1 and lines[0].startswith(said.replace("RUN", str(tmp_path / "run")))


def test_a_collective_without_the_others_is_one_line(monkeypatch):
    def gone(message):
        raise RuntimeError("[pair.cc:534] Connection closed by peer\n[127.0.0.1]:4711")

    monkeypatch.setattr(processes.dist, "all_reduce", gone)
    p = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(InputError, match="another process of this run has ended .* Connection closed by peer .127"):
        processes.sum_over_processes([p], torch.zeros(2))

"""Runs that are stopped, killed or meet numbers that are not finite: no work is lost, and one line says what to do.

`IMAGELORA_ATTACKS=1 python -m pytest -s tests/test_attacks_runs.py` runs all of them: 20 kills at random moments, 5 of
them during a write, 6 signals to real processes, a terminal that is closed, a killed process of two. The ordinary suite
runs a few.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from conftest import ROOT, write_checkpoint
from short_run import SMALL_RUN, adapter_of, equal, run

import train
from files import InputError
from harness import encodings, ending, state
from imagelora import ImageLoRA, LoRA
from model import VLM
from variants.ablations import continue_from

ALL = os.environ.get("IMAGELORA_ATTACKS") == "1"
only_by_hand = pytest.mark.skipif(not ALL, reason="set IMAGELORA_ATTACKS=1")
STEPS = 4  # of SMALL_RUN, after three batches of the probe
HEADS = {0: [1], 2: [0, 1]}


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


# -- signals


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
        monkeypatch.setattr(train, "choose_device", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
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


def small_process(checkpoint, out, start, *words, more=(), **options):
    """Run the program `start` with `words` and the flags of a small run and `more`, in a process group of its own."""
    file = out.with_name("start.py")
    file.write_text(start)
    flags = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(out), *more]
    command = [sys.executable, str(file), str(ROOT), *map(str, words), *flags]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True} | options
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
@pytest.mark.parametrize(
    ("name", "group"),
    [("SIGINT", "group"), *((n, g) for n in ("SIGTERM", "SIGHUP", "SIGINT") for g in ("one", "group"))][
        : 6 if ALL else 1
    ],
)
def test_a_real_process_with_workers_ends_with_all_its_children(finished, checkpoint, tmp_path, name, group):
    process = small_process(checkpoint, tmp_path / "run", START, name, group, 3 + 2, more=["--workers=1"])
    with process:
        _, said = process.communicate(timeout=120)
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


@only_by_hand
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
    assert process.wait(timeout=120) == 129
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
KILLS = {"anywhere": 15, "writing": 5} if ALL else {"anywhere": 1, "writing": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_runs_killed_at_random_moments_end_in_the_same_adapter(finished, checkpoint, tmp_path, capsys):
    """A moment is a call of a function, of all those of a run; or of those while a file is written."""
    (tmp_path / "whole").mkdir()
    each = ["--save-every=1"]
    with small_process(checkpoint, tmp_path / "whole/run", KILL, "nowhere", 0, more=each) as process:
        moments = process.communicate(timeout=300)[0].split("moments ")[1].split()
    draw, said = random.Random(14), []
    for where, most in zip(KILLS, map(int, moments)):
        for i in range(KILLS[where]):
            out, moment = tmp_path / f"{where}{i}" / "run", draw.randrange(1, int(0.98 * most))
            out.parent.mkdir()
            with small_process(checkpoint, out, KILL, where, moment, more=each) as process:
                process.communicate(timeout=300)
            assert process.returncode == -signal.SIGKILL
            flags = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, *each, "--out", str(out)]
            train.main(["--resume", str(out)] if (out / "arguments.json").exists() else flags)
            said += re.findall(r"resume .* from step (\d)", capsys.readouterr().out) or ["-"]
            assert equal(adapter_of(finished[0]), adapter_of(out))
            assert not [file.name for file in out.iterdir() if file.suffix == ".part"]
    with capsys.disabled():
        print(f" {len(said)} kills at random moments of {', '.join(moments)}; from steps {' '.join(said)}", end="")


@only_by_hand
def test_the_other_process_of_two_ends_with_a_line_when_one_is_killed(checkpoint, tmp_path):
    two = []
    start = START.replace("if len(calls) == at", "if len(calls) == at and os.environ['RANK'] == '1'")
    for rank in range(2):
        environment = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
        os.environ |= environment
        two.append(small_process(checkpoint, tmp_path / "run", start, "SIGKILL", "one", 3 + 2))
    for name in environment:
        del os.environ[name]
    with two[0] as first, two[1] as second:
        assert second.wait(timeout=120) == -signal.SIGKILL
        _, said = first.communicate(timeout=60)
    lines = [line for line in re.split(r"[\r\n]", said) if line.startswith(("stopped; ", "Traceback", "error: "))]
    assert first.returncode == 2 and len(lines) == 1 and "another process of this run has ended" in lines[0]


def test_a_collective_without_the_others_is_one_line(monkeypatch):
    from harness import processes

    def gone(message):
        raise RuntimeError("[pair.cc:534] Connection closed by peer\n[127.0.0.1]:4711")

    monkeypatch.setattr(processes.dist, "all_reduce", gone)
    p = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(InputError, match="another process of this run has ended .* Connection closed by peer .127"):
        processes.sum_over_processes([p], torch.zeros(2))


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
    assert "lower --max-pixels, --batch or --eval-batch, or add --checkpointing" in line
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
            args, out, _ = state.start(train.arguments([]))
            made.append(state.make_folder(out, args, []))
    assert [folder.name for folder in made] == [f"20300101-000000-scenes-image-lora{end}" for end in ("", "-2", "-3")]
    assert all((folder / "arguments.json").exists() for folder in made)


# -- --continue-from and --resume


def saved_adapter(vlm, path, **settings):
    adapter = ImageLoRA(vlm.config, settings.pop("heads", HEADS), **settings).attach(vlm)
    adapter.save(path)
    adapter.detach()
    return path


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 4}, "its rank is 4; continue with --rank 4"),
        ({"alpha": 8}, "its alpha is 8; continue with --alpha 8"),
        ({"heads": {1: [0]}}, "are in other layers than those to train"),
    ],
)
def test_an_adapter_to_continue_from_must_fit(vlm, tmp_path, settings, said):
    file = saved_adapter(vlm, tmp_path / "a.safetensors", **settings)
    adapter = ImageLoRA(vlm.config, HEADS).attach(vlm)
    with pytest.raises(InputError, match=said):
        continue_from(adapter, file, vlm)


def test_an_adapter_of_another_model_or_method_is_not_continued_from(vlm, tmp_path):
    other = VLM.from_pretrained(write_checkpoint(tmp_path / "other", seed=9))
    adapter = ImageLoRA(vlm.config, HEADS).attach(vlm)
    with pytest.raises(InputError, match="made for another checkpoint"):
        continue_from(adapter, saved_adapter(other, tmp_path / "a.safetensors"), vlm)
    lora = LoRA(other.config).attach(other)
    lora.save(tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="no Image-LoRA to continue from"):
        continue_from(adapter, tmp_path / "lora.safetensors", vlm)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lr", "0.5"], "--lr 0.02, now 0.5"),
        (["--data", "scenes-fog"], "--data scenes-day, now scenes-fog"),
        (["--data", "scenes-day=elsewhere"], "--data-root None, now elsewhere"),
        (["--data-root", "elsewhere"], "--data-root None, now elsewhere"),
        (["--no-share-images"], "--share-images True, now False"),
        (["--method", "lora"], "--method image-lora, now lora"),
        (["--no-norm"], "--norm True, now False"),
        (["--selection", "random"], "--selection probe, now random"),
        (["--eval", "sums"], "--eval None, now ['sums']"),
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

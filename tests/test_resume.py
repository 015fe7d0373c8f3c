"""Interrupted runs: no work is lost, one line says how to continue, and the run ends in the same adapter, bit for bit.

IMAGELORA_SLOW=1 adds signals to real processes and kills at random moments; in the ordinary suite they come from within.
"""

import json
import os
import random
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import by_hand, picture, write_checkpoint
from filelock import FileLock
from short_run import (
    PROBED,
    SMALL_RUN,
    adapter_of,
    at_loss,
    equal,
    in_processes,
    lines_of,
    run,
    stopped,
)
from task_folders import write_lines

import train
from harness import state
from harness.processes import SIGNALS
from model import VLM
from parts.files import InputError, read_safetensors

# -- stopped, and continued


@pytest.mark.parametrize("method", ["image-lora", "full"])
def test_a_killed_and_resumed_run_ends_in_the_same_weights_bit_for_bit(checkpoint, tmp_path, monkeypatch, method):
    file = "adapter.safetensors" if method == "image-lora" else "checkpoint/model.safetensors"
    flags = ("--save-every", "2", "--keep-states", "--eval-every", "1", "--steps", "5", "--method", method)
    whole = run(checkpoint, tmp_path / "whole", *flags)

    def kill(loss):
        raise SystemExit("killed")

    at_loss(monkeypatch, 4 + (PROBED if method == "image-lora" else 0), kill)  # in the fourth step
    with pytest.raises(SystemExit, match="killed"):
        run(checkpoint, tmp_path / "killed", *flags)
    monkeypatch.undo()
    for _ in range(2):
        train.main(["--resume", str(tmp_path / "killed")])
        weights = [dict(read_safetensors(tmp_path / name / file)) for name in ("whole", "killed")]
        assert equal(*weights)
        resumed = json.loads((tmp_path / "killed/report.json").read_text())
        for key in ("base", "tuned", "heads", "adapter_flops_per_step", "text_logit_max_change", "curve"):
            assert whole[key] == resumed[key]
        assert [line["step"] for line in lines_of(tmp_path / "killed/log.jsonl")] == [0, 1, 2, 3, 4]
        shutil.copy(tmp_path / "killed/state-2.pt", tmp_path / "killed/state.pt")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_saves_the_step_and_says_how_to_continue(finished, checkpoint, tmp_path, monkeypatch, capsys, number):
    before = signal.getsignal(number)
    at_loss(monkeypatch, PROBED + 2, lambda loss: (signal.raise_signal(number), loss)[1])
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 128 + number and line == f"stopped; python train.py --resume {tmp_path} continues from step 2"
    assert signal.getsignal(number) == before and len(lines_of(tmp_path / "log.jsonl")) == 2
    monkeypatch.undo()
    monkeypatch.setattr(train, "choose_heads", None)  # they are chosen already
    train.main(["--resume", str(tmp_path)])
    assert equal(adapter_of(finished[0]), adapter_of(tmp_path))


def test_a_signal_outside_training_ends_the_run_at_once(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(VLM, "generate", lambda *_: signal.raise_signal(signal.SIGTERM))
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 143 and line == f"stopped; python train.py --resume {tmp_path} continues from the beginning"
    monkeypatch.setattr(train.encodings, "load_model", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert stopped(capsys, run, checkpoint, tmp_path / "other") == (143, "stopped; nothing was saved yet")


@by_hand
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL, process groups")
def test_runs_killed_at_random_moments_end_in_the_same_adapter(finished, checkpoint, tmp_path, capsys):
    (process,) = in_processes(checkpoint, tmp_path / "whole/run", ("SIGKILL", "anywhere", -1), "--save-every=1")
    anywhere, writing = map(int, process.communicate(timeout=600)[0].split("moments ")[1].split())
    draw = random.Random(14)
    kills = [("anywhere", draw.randrange(1, int(0.98 * anywhere))) for _ in range(15)]
    kills += [("writing", draw.randrange(1, writing)) for _ in range(5)]

    def kill(number):
        out = tmp_path / str(number) / "run"
        (process,) = in_processes(checkpoint, out, ("SIGKILL", *kills[number]), "--save-every=1")
        process.communicate(timeout=600)
        return process.returncode

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(kill, range(len(kills)))) == {-signal.SIGKILL}
    for number in range(len(kills)):
        out = tmp_path / str(number) / "run"
        if (out / "state.pt").exists():
            train.main(["--resume", str(out)])
        else:
            run(checkpoint, out, "--save-every=1")
        assert equal(adapter_of(finished[0]), adapter_of(out)), kills[number]
        assert not [file.name for file in out.iterdir() if file.suffix == ".part"]


# -- a folder belongs to its run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "RUN", "--seed", "1"], "--resume RUN: the run has its own flags; leave the others out"),
        (["--out", "RUN", "--data", "scenes-day", *SMALL_RUN], "--out RUN: holds other files; choose another folder, or --resume"),
        (["--resume", "/no/such/run"], "state.pt: no such file; --resume takes the folder of a run"),
        (["--out", "RUN/.."], "holds other files; choose another folder"),
    ],
    ids=str,
)
def test_a_folder_is_not_used_for_another_run(finished, flags, message, capsys):
    out, _ = finished
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    code, line = stopped(capsys, train.main, [flag.replace("RUN", str(out)) for flag in flags])
    assert code == 2 and message.replace("RUN", str(out)) in line
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize("flag", ["--out", "--resume"])
def test_a_folder_has_one_writer(finished, checkpoint, tmp_path, capsys, flag):
    if flag == "--resume":
        shutil.copy(finished[0] / "state.pt", tmp_path)
    flags = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN] if flag == "--out" else []
    with FileLock(tmp_path / state.LOCK):
        code, line = stopped(capsys, train.main, [*flags, flag, str(tmp_path)])
    assert code == 2 and line == f"error: {tmp_path}: another run is writing to it; wait for its end"


def test_a_run_that_continues_with_changed_images_says_so(checkpoint, tmp_path, capsys):
    picture(60, 60).save(tmp_path / "a.png")
    write_lines(tmp_path / "train.jsonl", [{"image": "a.png", "prompt": "cup?", "answer": "yes"}])
    out, flags = tmp_path / "out", ["--eval=sums", "--eval-limit=1", "--steps=1", "--selection=all", "--max-new-tokens=1"]
    train.main(["--model", str(checkpoint), "--data", f"jsonl={tmp_path}", *flags, "--out", str(out)])
    train.main(["--resume", str(out)])
    line = "warning  the images of training have other sizes or times than when the run began"
    assert line not in capsys.readouterr().out
    os.utime(tmp_path / "a.png", (1, 1))
    train.main(["--resume", str(out)])
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [("base", "the base model was "), *((what, "the rows of training was '12 with the hash ") for what in ("rows", "answers"))],
)
def test_a_state_is_used_for_its_own_run_alone(checkpoint, tmp_path, monkeypatch, capsys, change, message):
    shutil.copytree(checkpoint, tmp_path / "model")
    at_loss(monkeypatch, PROBED + 4, lambda loss: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "model", tmp_path / "run", "--save-every=2")
    monkeypatch.undo()
    if change == "base":
        write_checkpoint(tmp_path / "model", seed=9)
    else:
        real = train.encodings.load_examples
        other = {"rows": lambda rows: rows[::-1], "answers": lambda rows: [vars(e).update(answer="x") or e for e in rows]}[change]
        monkeypatch.setattr(train.encodings, "load_examples", lambda *arguments: other(real(*arguments)))
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    code, line = stopped(capsys, train.main, ["--resume", str(tmp_path / "run")])
    assert code == 2 and f"state.pt: {message}" in line and line.endswith("bring that back, or begin a new run")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("content", [{"args": {"gate": 1}}, {"args": Path()}], ids=str)
def test_a_state_of_another_program_is_not_resumed(tmp_path, capsys, content):
    torch.save(content, tmp_path / "state.pt")
    code, line = stopped(capsys, train.main, ["--resume", str(tmp_path)])
    message = "not the state of a run by this version of the program; begin it again (it is damaged, or has other flags)"
    assert code == 2 and line == f"error: {tmp_path}/state.pt: {message}"


def test_a_run_without_a_name_is_continued_in_its_folder(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    at_loss(monkeypatch, PROBED + 2, lambda loss: (signal.raise_signal(signal.SIGINT), loss)[1])
    flags = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN]
    _, line = stopped(capsys, train.main, flags)
    train.main(line.partition("train.py ")[2].partition(" continues")[0].split())
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "report.json").exists() and len(lines_of(folder / "log.jsonl")) == 4


# -- numbers that are not finite, and too little memory


@pytest.mark.parametrize("what", ["loss", "norm"])
def test_a_number_that_is_not_finite_ends_the_run_and_the_last_good_state_continues(
    finished, checkpoint, tmp_path, monkeypatch, capsys, what
):
    def spoilt(loss):
        if what == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("inf"))  # the loss itself is finite
        return loss

    at_loss(monkeypatch, PROBED + 4, spoilt)  # in the last step
    code, line = stopped(capsys, run, checkpoint, tmp_path, "--save-every=2")
    assert code == 2 and "at step 3; lower --lr" in line and line.endswith("what was saved stays")
    assert not (tmp_path / "adapter.safetensors").exists() and "NaN" not in (tmp_path / "log.jsonl").read_text()
    monkeypatch.undo()
    train.main(["--resume", str(tmp_path)])
    assert "from step 2" in capsys.readouterr().out and equal(adapter_of(finished[0]), adapter_of(tmp_path))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    parameters = [torch.nn.Parameter(torch.tensor([1.0, float("inf")]))]
    with pytest.raises(InputError, match="a trained weight is not finite"):
        state.Record(None, tmp_path).save(1, parameters, torch.optim.AdamW(parameters))
    assert list(tmp_path.iterdir()) == []


def test_probe_scores_that_are_not_finite_choose_no_heads(checkpoint, tmp_path, monkeypatch, capsys):
    at_loss(monkeypatch, 2, lambda loss: loss * float("inf"))
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 2 and line == "error: the probe's scores are not finite; use --dtype float32"


def gpu_is_full(loss):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 3.")


@pytest.mark.parametrize("fail", [gpu_is_full, lambda loss: torch.empty(2**60)], ids=["gpu", "cpu"])
def test_too_little_memory_is_one_line_and_costs_no_step(finished, checkpoint, tmp_path, monkeypatch, capsys, fail):
    at_loss(monkeypatch, PROBED + 3, fail)
    code, line = stopped(capsys, run, checkpoint, tmp_path, "--workers=2")
    message = "error: out of memory; lower --batch or --max-pixels, or add --checkpointing; "
    assert code == 2 and line == f"{message}python train.py --resume {tmp_path} continues from step 2"
    monkeypatch.undo()
    train.main(["--resume", str(tmp_path)])
    assert equal(adapter_of(finished[0]), adapter_of(tmp_path))


def test_the_programs_own_mistakes_keep_their_traceback_and_save_the_step(checkpoint, tmp_path, monkeypatch):
    at_loss(monkeypatch, PROBED + 2, lambda loss: loss.backward(torch.zeros(3)))
    with pytest.raises(RuntimeError) as error:
        run(checkpoint, tmp_path)
    assert error.value.__notes__ == [f"python train.py --resume {tmp_path} continues from step 1"]


def test_half_a_step_is_not_saved(tmp_path):
    parameters, record = [torch.nn.Parameter(torch.ones(2))], state.Record(None, tmp_path)
    optimizer, record.log, parameters[0].grad = torch.optim.AdamW(parameters), [{}], torch.ones(2)
    for _ in range(2):  # of which one is in the log
        optimizer.step()
    record.rescue(parameters, optimizer)
    assert list(tmp_path.iterdir()) == []

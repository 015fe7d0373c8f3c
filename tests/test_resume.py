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

import pytest
import torch
from conftest import by_hand, write_checkpoint
from short_run import (
    PROBED,
    SMALL_RUN,
    adapter_of,
    at_loss,
    ends,
    equal,
    in_processes,
    lines_of,
    run,
    stopped,
)

import train
from harness import state
from harness.ending import SIGNALS
from model import VLM
from parts.files import InputError, read_safetensors, write_safetensors


@pytest.fixture(autouse=True)
def listening():
    """Signals do what they usually do: a shell may have started the tests with some of them ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# -- stopped, and continued


@pytest.mark.parametrize("method", ["image-lora", "full"])
def test_a_killed_and_resumed_run_ends_in_the_same_weights_bit_for_bit(checkpoint, tmp_path, monkeypatch, method):
    file = "adapter.safetensors" if method == "image-lora" else "checkpoint/model.safetensors"
    flags = ("--save-every", "2", "--eval-every", "1", "--steps", "5", "--method", method)
    whole = run(checkpoint, tmp_path / "whole", *flags)

    def kill(loss):
        raise AssertionError("killed")

    at_loss(monkeypatch, 4 + (PROBED if method == "image-lora" else 0), kill)  # in the fourth step
    with pytest.raises(AssertionError, match="killed"):
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
        (tmp_path / "killed/state.pt").unlink()  # killed before anything was saved: begins again, with the same end


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_training_saves_the_step_and_says_how_to_continue(
    finished, checkpoint, tmp_path, monkeypatch, capsys, number
):
    before = signal.getsignal(number)
    at_loss(monkeypatch, PROBED + 2, lambda loss: (signal.raise_signal(number), loss)[1])
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 128 + number and line == f"stopped; python train.py --resume {tmp_path} continues from step 2"
    assert signal.getsignal(number) == before and len(lines_of(tmp_path / "log.jsonl")) == 2
    monkeypatch.undo()
    train.main(["--resume", str(tmp_path)])
    assert equal(adapter_of(finished[0]), adapter_of(tmp_path))


def test_a_signal_outside_training_ends_the_run_at_once(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(VLM, "generate", lambda *_: signal.raise_signal(signal.SIGTERM))
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 143 and line == f"stopped; python train.py --resume {tmp_path} continues from the beginning"
    monkeypatch.setattr(train, "load_model", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert stopped(capsys, run, checkpoint, tmp_path / "other") == (143, "stopped; nothing was saved yet")


def test_the_command_of_an_unfinished_run_continues_it(finished, checkpoint, tmp_path, capsys):
    flags = (checkpoint, tmp_path, "--save-every", "2", "--keep-states")
    run(*flags)
    (tmp_path / "report.json").unlink()
    (tmp_path / "state-2.pt").replace(tmp_path / "state.pt")
    run(*flags)
    assert f"resume   {tmp_path}, from step 2" in capsys.readouterr().out
    assert equal(adapter_of(finished[0]), adapter_of(tmp_path))


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
        if (out / "arguments.json").exists():
            train.main(["--resume", str(out)])
        else:
            run(checkpoint, out, "--save-every=1")
        assert equal(adapter_of(finished[0]), adapter_of(out)), kills[number]
        assert not [file.name for file in out.iterdir() if file.suffix == ".part"]


@by_hand
@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_process_with_workers_ends_with_all_its_children(finished, checkpoint, tmp_path, name):
    (process,) = in_processes(checkpoint, tmp_path / "run", (name, "loss", PROBED + 2), "--workers=1")
    _, text = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.Signals[name]
    assert ends(text) == [f"stopped; python train.py --resume {tmp_path / 'run'} continues from step 2"]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


# -- a folder belongs to its run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "RUN", "--lr", "0.5"], "begun with --lr 0.02, now 0.5"),
        (["--resume", "RUN", "--seed", "1"], "begun with --seed 0, now 1"),
        (["--resume", "RUN", "--ablate", "norm=off"], "begun with --ablate [], now ['norm=off']"),
        (["--resume", "RUN", "--data", "scenes-day=elsewhere"], "begun with --data scenes-day, now scenes-day=elsewhere"),
        (["--resume", "RUN", "--out", "elsewhere"], "begun with --out RUN, now elsewhere"),
        (["--out", "RUN", "--data", "scenes-day", *SMALL_RUN, "--seed", "1"], "begun with --"),
        (["--resume", "/no/such/run"], "arguments.json: no such file; --resume takes the folder of a run"),
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


def test_a_finished_run_is_not_begun_again_and_may_be_given_its_own_flags(finished, checkpoint, capsys):
    out, _ = finished
    assert f"--out {out}: holds a finished run" in stopped(capsys, run, checkpoint, out)[1]
    args = train.parse_args(["--resume", str(out), "--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN])
    assert state.start(args).step == 4 and args.resume is None and args.lr == 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [("seed", "--seed was 0"), ("base", "the base model was "), ("rows", "the rows of training was '12 with the hash ")],
)
def test_a_state_is_used_for_its_own_run_alone(checkpoint, tmp_path, monkeypatch, capsys, change, message):
    shutil.copytree(checkpoint, tmp_path / "model")
    at_loss(monkeypatch, PROBED + 4, lambda loss: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "model", tmp_path / "run", "--save-every=2")
    monkeypatch.undo()
    if change == "seed":
        arguments = tmp_path / "run/arguments.json"
        arguments.write_text(arguments.read_text().replace('"seed": 0', '"seed": 1'))
    elif change == "base":
        write_checkpoint(tmp_path / "model", seed=9)
    else:
        real = train.load_examples
        monkeypatch.setattr(train, "load_examples", lambda *arguments: real(*arguments)[::-1])
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    code, line = stopped(capsys, train.main, ["--resume", str(tmp_path / "run")])
    assert code == 2 and f"state.pt: {message}" in line and line.endswith("bring that back, or begin a new run")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_run_of_another_version_is_not_resumed(checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path)
    file = tmp_path / "arguments.json"
    file.write_text(file.read_text().replace('"gamma"', '"gate"'))
    code, line = stopped(capsys, train.main, ["--resume", str(tmp_path)])
    assert code == 2 and "not the arguments of a run by this version of the program; begin it again" in line


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
    assert code == 2 and "at step 3; lower --lr" in line
    assert not (tmp_path / "adapter.safetensors").exists() and "NaN" not in (tmp_path / "log.jsonl").read_text()
    monkeypatch.undo()
    train.main(["--resume", str(tmp_path)])
    assert "from step 2" in capsys.readouterr().out and equal(adapter_of(finished[0]), adapter_of(tmp_path))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    for value in (float("nan"), float("inf")):
        parameters = [torch.nn.Parameter(torch.tensor([1.0, value]))]
        with pytest.raises(InputError, match="a trained weight is not finite"):
            state.Record(None, tmp_path).save(1, parameters, torch.optim.AdamW(parameters))
    assert list(tmp_path.iterdir()) == []


def test_probe_scores_that_are_not_finite_choose_no_heads(checkpoint, tmp_path, monkeypatch, capsys):
    at_loss(monkeypatch, 2, lambda loss: loss * float("inf"))
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 2 and line == "error: the probe's scores are not finite; use --dtype float32"


def test_a_value_that_is_too_large_for_float16_ends_the_run_with_the_layers_name(checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path / "small", "--dtype=float16")
    tensors = dict(read_safetensors(checkpoint / "model.safetensors"))
    (name,) = (name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight") and "visual" not in name)
    shutil.copytree(checkpoint, tmp_path / "large")
    write_safetensors(tmp_path / "large/model.safetensors", tensors | {name: tensors[name] * 1e6}, {})
    run(tmp_path / "large", tmp_path / "float32", "--dtype=float32")  # where nothing is too large
    code, line = stopped(capsys, run, tmp_path / "large", tmp_path / "float16", "--dtype=float16")
    assert code == 2 and "model.layers.1: a value is too large for float16" in line


def gpu_is_full(loss):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 3.")


@pytest.mark.parametrize("fail", [gpu_is_full, lambda loss: torch.empty(2**60)], ids=["gpu", "cpu"])
def test_too_little_memory_is_one_line_with_the_flags_to_lower(checkpoint, tmp_path, monkeypatch, capsys, fail):
    at_loss(monkeypatch, PROBED + 1, fail)
    code, line = stopped(capsys, run, checkpoint, tmp_path)
    assert code == 2 and line == "error: out of memory; lower --batch or --max-pixels, or add --checkpointing"


def test_the_programs_own_mistakes_keep_their_traceback(checkpoint, tmp_path, monkeypatch):
    at_loss(monkeypatch, PROBED + 1, lambda loss: loss.backward(torch.zeros(3)))
    with pytest.raises(RuntimeError):
        run(checkpoint, tmp_path)

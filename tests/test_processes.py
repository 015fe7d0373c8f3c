"""Several processes share the rows of a step, end where one does, and end together. IMAGELORA_ATTACKS=1 runs these tests."""

import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, by_hand
from short_run import PROBED, SMALL_RUN, adapter_of, lines_of, run

from harness import processes
from parts.files import InputError, read_json

PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import train
from model import VLM
real, calls = VLM.loss, []
def loss(self, batch):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])
    return real(self, batch)
VLM.loss = loss
train.main(sys.argv[4:])
"""


def start(checkpoint, out, count, *more, name="SIGTERM", at=0):
    """`count` processes of a small run, as torchrun starts them. The second one gets a signal at its loss number `at`."""
    out.with_name("program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    flags = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(out), *more]
    command = [sys.executable, str(out.with_name("program.py")), str(ROOT), name, str(at), *flags]
    env = os.environ | where | {"OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=env | {"RANK": str(rank)}, **options) for rank in range(count)]


@by_hand
@pytest.mark.parametrize(("count", "batch"), [(2, 5), (3, 2)], ids=["2 and 3 rows", "0, 1 and 1 rows"])
def test_several_processes_end_where_one_does_also_with_uneven_rows(checkpoint, tmp_path, count, batch):
    flags = ["--batch", str(batch), "--eval-every", "2"]
    started = start(checkpoint, tmp_path / "many", count, *flags)
    run(checkpoint, tmp_path / "one", *flags)
    texts = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, texts
    one, many = (tmp_path / "one", tmp_path / "many")
    for name, tensor in adapter_of(one).items():
        torch.testing.assert_close(adapter_of(many)[name], tensor, rtol=1e-5, atol=1e-5)
    logs = [lines_of(folder / "log.jsonl") for folder in (one, many)]
    for name in ("loss", "norm"):  # the tokens may be more: an image is in the rows of two processes
        assert [line[name] for line in logs[1]] == pytest.approx([line[name] for line in logs[0]], rel=1e-5)
    reports = [read_json(folder / "report.json") for folder in (one, many)]
    same = ("base", "tuned", "curve", "heads", "trainable_parameters", "text_logit_max_change")
    assert reports[1]["processes"] == count and all(reports[1][name] == reports[0][name] for name in same)


@by_hand
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize(
    ("name", "codes", "message"),
    [
        ("SIGKILL", [2, -9], "error: another process of this run has ended"),
        ("SIGTERM", [130, 143], "stopped; python train.py --resume RUN continues from step 2"),
    ],
)
def test_when_one_process_gets_a_signal_all_end_with_a_line(checkpoint, tmp_path, name, codes, message):
    two = start(checkpoint, tmp_path / "run", 2, name=name, at=PROBED + 2)
    text, _ = (process.communicate(timeout=600)[1] for process in two)
    assert [process.returncode for process in two] == codes
    lines = [line for line in re.split(r"[\r\n]", text) if line.startswith(("stopped; ", "Traceback", "error: "))]
    assert len(lines) == 1 and lines[0].startswith(message.replace("RUN", str(tmp_path / "run")))


def test_a_message_without_the_others_is_one_line(monkeypatch):
    def ended(*message):
        raise RuntimeError("[pair.cc:534] Connection closed by peer\n[127.0.0.1]:4711")

    monkeypatch.setattr(processes, "WORLD", 2)
    monkeypatch.setattr(processes.dist, "all_reduce", ended)
    p = torch.nn.Parameter(torch.zeros(2))
    for send in (lambda: processes.sum_over_processes([p], torch.zeros(())), lambda: processes.total(1)):
        with pytest.raises(InputError, match="another process of this run has ended .* Connection closed by peer .127"):
            send()

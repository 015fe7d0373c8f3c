"""Several processes share the rows of a step, end where one does, and end together. IMAGELORA_SLOW=1 runs these tests."""

import sys

import pytest
import torch
from conftest import by_hand
from short_run import PROBED, adapter_of, ends, in_processes, lines_of, run

from data import Batch, Example
from harness import processes
from harness.encodings import step_loader
from parts.devices import choose_device
from parts.files import read_json


@by_hand
@pytest.mark.parametrize(("count", "batch"), [(2, 5), (3, 2)], ids=["2 and 3 rows", "0, 1 and 1 rows"])
def test_several_processes_end_where_one_does_also_with_uneven_rows(checkpoint, tmp_path, count, batch):
    flags = ["--batch", str(batch), "--eval-every", "2"]
    started = in_processes(checkpoint, tmp_path / "many", ("SIGTERM", "loss", -1), *flags, count=count)
    run(checkpoint, tmp_path / "one", *flags)
    texts = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, texts
    one, many = (tmp_path / "one", tmp_path / "many")
    for name, tensor in adapter_of(one).items():
        torch.testing.assert_close(adapter_of(many)[name], tensor, rtol=1e-5, atol=1e-5)
    logs = [lines_of(folder / "log.jsonl") for folder in (one, many)]
    for name in ("loss", "norm"):  # the tokens may be more: an image is in the rows of two processes
        assert [line[name] for line in logs[1]] == pytest.approx([line[name] for line in logs[0]], rel=1e-5)
    texts = [[line["text"] for line in lines_of(folder / "predictions.jsonl")] for folder in (one, many)]
    reports = [read_json(folder / "report.json") for folder in (one, many)]
    same = ("base", "tuned", "curve", "heads", "trainable_parameters", "text_logit_max_change")
    assert texts[0] == texts[1] and reports[1]["processes"] == count
    assert all(reports[1][name] == reports[0][name] for name in same)


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
    two = in_processes(checkpoint, tmp_path / "run", (name, "loss", PROBED + 2), count=2)
    text, _ = (process.communicate(timeout=600)[1] for process in two)
    assert [process.returncode for process in two] == codes
    (line,) = ends(text)
    assert line.startswith(message.replace("RUN", str(tmp_path / "run")))


def test_processes_do_not_wait_for_each_other_for_ever(monkeypatch):
    given = []
    monkeypatch.setattr(processes, "WORLD", 2)
    monkeypatch.setattr(processes.dist, "init_process_group", lambda backend, timeout: given.append(timeout))
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: given.append("end"))
    with processes.all_processes():
        pass
    assert given == [processes.TIMEOUT, "end"] and processes.TIMEOUT.total_seconds() == 900


def test_each_process_chooses_its_gpu_before_anything_else_touches_one(monkeypatch):
    calls = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(torch, "zeros", lambda size, device: calls.append("used") or torch.ones(1))
    for name, index in (("auto", 3), ("cuda", 3), ("cuda:1", 1)):
        assert choose_device(name, "float32")[0] == torch.device("cuda", index)
        assert calls == [torch.device("cuda", index), "used"]
        calls.clear()


def test_a_thread_chooses_the_gpu_of_its_process_before_it_pins_memory(processor, monkeypatch):
    calls, device = [], torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: calls.append("pinned") or batch)
    list(step_loader(processor, [Example([], "2+2?", "4")], [[0]], 1, 1, device))
    assert calls == [device, "pinned"]

"""Threads and worker processes make the batches that the process itself makes; what fails in them ends the run."""

import multiprocessing
import os
from types import SimpleNamespace

import pytest
import torch
from conftest import by_hand, picture

from data import Example, Processor
from harness.encodings import StepBatches, encode_images
from harness.workers import ahead, fitting_workers, step_loader
from parts.files import InputError

TYPED = "Is <|im_end|>\n<|im_start|>system a token? <|image_pad|><|vision_start|> <|endoftext|>"
METHODS = [pytest.param(m, marks=() if m == "fork" else by_hand) for m in multiprocessing.get_all_start_methods()]


@pytest.mark.parametrize("method", METHODS)
def test_workers_make_the_same_batches_however_they_are_started(vlm, checkpoint, method):
    """Also of special tokens that a user typed, and of an image that is encoded already."""
    processor = Processor.from_pretrained(checkpoint)
    examples = [Example([picture(60, 60, i)], TYPED, "no", history=((TYPED, TYPED),)) for i in range(4)]
    encode_images(vlm, processor, examples[:1], gib=1)
    steps = StepBatches(processor, [*examples, Example([], TYPED, TYPED)], size=4)
    usual, numbers = multiprocessing.get_start_method(), [[0, 1, 4], [2, 3]]
    try:
        multiprocessing.set_start_method(method, force=True)
        made = list(step_loader(steps, numbers, 1, torch.device("cpu")))
    finally:
        multiprocessing.set_start_method(usual, force=True)
    for step, batches in zip(numbers, made, strict=True):
        for alone, batch in zip(steps[step], batches, strict=True):
            for name, value in vars(alone).items():
                same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                assert same(value, getattr(batch, name)), name


def test_threads_keep_the_order_and_raise_what_fails_in_them():
    assert list(ahead(lambda n: n * n, range(9))) == [n * n for n in range(9)]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda n: 1 / n, [2, 1, 0, 1]))


class Failing:
    """The steps of a run whose worker ends, or whose batch does not fit into shared memory."""

    class Large(torch.Tensor):
        def share_memory_(self):
            raise RuntimeError("No space left on device")

    def __getitem__(self, what):
        return os._exit(1) if what == "ends" else [SimpleNamespace(pixels=torch.zeros(2).as_subclass(self.Large))]


@pytest.mark.parametrize(("what", "why"), [("ends", "exited unexpectedly"), ("full", "No space left on device")])
def test_a_worker_that_fails_ends_the_run_with_a_line(what, why):
    with pytest.raises(InputError, match=f"the processes that prepare images failed .*{why}.*--shm-size"):
        list(step_loader(Failing(), [what], 1, torch.device("cpu")))


def test_where_shared_memory_is_small_fewer_workers_start(processor, monkeypatch, capsys):
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=10, f_frsize=2**20))  # 10 MB
    assert [fitting_workers(9, processor, rows) for rows in (1, 24)] == [3, 0] and "--shm-size" in capsys.readouterr().out

"""Threads and worker processes make the batches that the process itself makes; what fails in them ends the run."""

import multiprocessing
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, by_hand, picture

from data import Example, Processor
from harness.encodings import StepBatches, encode_images
from harness.workers import ahead, step_loader

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


SMALL_CONTAINER = """
import sys; sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch; from conftest import picture; from data import Example, Processor
from harness import workers; from harness.encodings import StepBatches
processor = Processor.from_pretrained({checkpoint!r}, max_pixels=160000)
examples = [Example([picture(400, 400, i)], "What?", "a ring") for i in range(24)]
print("fitting", [workers.fitting_workers(9, processor, rows) for rows in (2, 24)])
list(workers.step_loader(StepBatches(processor, examples, 24), [range(24)], 1, torch.device("cpu")))
"""


def test_in_a_container_with_little_shared_memory_fewer_workers_start_and_what_does_not_fit_ends_the_run(checkpoint):
    """24 images of 400 x 400 pixels are 11 MB; /dev/shm has 10 MB in a mount namespace of its own."""
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=10m tmpfs /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*small, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    code = SMALL_CONTAINER.format(root=str(ROOT), checkpoint=str(checkpoint))
    ended = subprocess.run([*small, sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert "fitting [4, 0]" in ended.stdout and "--shm-size" in ended.stdout
    last = ended.stderr.strip().splitlines()[-1]
    assert "InputError: the processes that prepare images failed" in last and "--shm-size" in last
    assert "No space left on device" in last  # and not the timeout

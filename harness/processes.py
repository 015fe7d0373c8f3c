"""The processes that share a run; progress bars, memory."""

import io
import os
import sys
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from tqdm import tqdm

from parts.files import InputError

RANK = int(os.environ.get("RANK", "0"))  # the number of this process; torchrun says it
WORLD = int(os.environ.get("WORLD_SIZE", "1"))  # how many processes share a run
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what it says
TIMEOUT = timedelta(minutes=15)  # so long they wait for each other


def one_line(text):
    return " ".join(str(text).split())


@contextmanager
def all_processes():
    """Join the other processes of this run, if there are any. The first one prints for all."""
    if hasattr(sys.stdout, "reconfigure"):  # a console may lack letters of a prompt; a pipe may be closed at any line
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    if missing := [name for name in TORCHRUN if name not in os.environ and {"RANK", "WORLD_SIZE"} & os.environ.keys()]:
        raise InputError(f"RANK or WORLD_SIZE is set, {missing[0]} is not: unset them, or start the run by torchrun")
    with redirect_stdout(io.StringIO() if RANK > 0 else sys.stdout):
        if WORLD > 1:
            with together():
                dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        try:
            yield
        finally:
            if WORLD > 1:
                dist.destroy_process_group()


@contextmanager
def together():
    """Around what all processes do together. Raises InputError if another one has ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(f"another process of this run has ended or does not answer: {one_line(error):.150}") from None


def all_reduce(message):
    """A tensor -> its sum over the processes."""
    if WORLD > 1:
        with together():
            dist.all_reduce(message)
    return message


def total(*counts):
    """Each count summed over the processes. All ask together, so they also wait for each other."""
    return all_reduce(torch.tensor(counts)).tolist()


def sum_over_processes(parameters, loss):
    """Add up the gradients and the loss over the processes that share a step: all of data parallelism, in one message."""
    if WORLD == 1:
        return loss
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    message = all_reduce(torch.cat([x.flatten() for x in (*grads, loss)]))
    for p, grad in zip(parameters, message.split([p.numel() for p in parameters] + [1])):
        p.grad = grad.view_as(p)
    return message[-1]


def progress(*args, leave=False, **kwargs):
    """A progress bar, shown by the first process."""
    return tqdm(*args, leave=leave, disable=RANK > 0, **kwargs)


def peak_memory(device):
    """The most bytes (in use, reserved): of the GPU's allocator; of a process (in use, None); of Windows (None, None)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    try:
        import resource
    except ImportError:
        return None, None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024), None

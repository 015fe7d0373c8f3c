"""The device, the processes that share a step, memory, progress bars. What differs by platform is here."""

import io
import os
import sys
from contextlib import contextmanager, redirect_stdout

import torch
import torch.distributed as dist
from tqdm import tqdm

from parts.files import InputError

RANK = int(os.environ.get("RANK", "0"))  # the number of this process; torchrun says it
WORLD = int(os.environ.get("WORLD_SIZE", "1"))  # how many processes share a run

# What a terminal obeys instead of showing it: all control characters but the new line and the tab, and those that turn
# the direction of writing. Shown, an escape is the four characters \x1b.
OBEYED = [*range(9), *range(11, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
SHOWN = {code: repr(chr(code))[1:-1] for code in OBEYED}


def one_line(text):
    """An error's text as one line for a terminal. Names of files and values of rows are in it, which may be anything."""
    line = str(text).translate(SHOWN).replace("\n", " ")
    return line if len(line) < 2000 else f"{line[:1500]} ... {line[-400:]}"


class Terminal:
    """A text stream for what is printed, which may hold the text of anybody: it shows control characters instead of obeying
    them, and escapes what the stream's encoding lacks (a Chinese prompt on a console in cp1252)."""

    def __init__(self, stream):
        self.stream, self.encoding = stream, stream.encoding or "utf-8"

    def write(self, text):
        return self.stream.write(text.translate(SHOWN).encode(self.encoding, "backslashreplace").decode(self.encoding))

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextmanager
def all_processes():
    """Join the other processes of this run, if there are any. The first process speaks for all."""
    with redirect_stdout(io.StringIO() if RANK > 0 else Terminal(sys.stdout)):
        if WORLD == 1:
            yield
            return
        with together():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextmanager
def together():
    """Around what all processes do together. Raises InputError if another one is gone or cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"another process of this run has ended or does not answer: {reason:.150}") from None


def choose_device(name, dtype):
    """The flags --device and --dtype -> (device, dtype). By default bfloat16 on a GPU that computes in it, float32
    elsewhere. Raises InputError for a device that this machine does not have."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # torch's words for "no such device here"
        raise InputError(f"--device {name}: there is no such device here; use --device cpu") from None
    if dtype == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if native else "float32"
    return device, getattr(torch, dtype)


def progress(*args, leave=False, **kwargs):
    """A progress bar, shown by the first process."""
    return tqdm(*args, leave=leave, disable=RANK > 0, **kwargs)


def sum_over_processes(parameters, sums):
    """Add up the gradients, and a vector of sums, over the processes that share a step: one message, no rounding but
    that of the order of adding. This is all of data parallelism, since every process holds the same frozen model."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    message = torch.cat([p.grad.flatten() for p in parameters] + [sums])
    with together():
        dist.all_reduce(message)
    *grads, sums = message.split([p.numel() for p in parameters] + [len(sums)])
    for p, grad in zip(parameters, grads):
        p.grad.copy_(grad.view_as(p))
    return sums


def peak_memory(device):
    """Bytes: of the GPU's allocator, or of the process. None where the platform does not say (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

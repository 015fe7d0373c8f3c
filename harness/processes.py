"""The processes that share a run, and how all of them end early: with one line that says why, and an exit code: 2 for what a
user can mend, 130 for Ctrl-C, 143 for SIGTERM. While a run trains, the first signal waits for the end of the step, whose
state is saved; a second one ends at once. An error saves the last whole step. The program's own mistakes keep their traceback.
"""

import errno
import io
import os
import shlex
import signal
import sys
import threading
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
from tqdm import tqdm

from parts.files import InputError

RANK = int(os.environ["RANK"]) if os.environ.get("RANK", "").isdecimal() else 0  # which process of a run this is
WORLD = int(os.environ["WORLD_SIZE"]) if os.environ.get("WORLD_SIZE", "").isdecimal() else 1  # of how many
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what it says
TIMEOUT = timedelta(minutes=15)  # so long they wait for each other
SIGNALS = (signal.SIGINT, signal.SIGTERM)
NO_MEMORY = ("out of memory", "tried to allocate", "not enough memory")  # of a GPU, of a CPU, of Windows
UNUSED = {"signals": (), "training": False, "record": None}
now = SimpleNamespace(**UNUSED)  # of this run


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


@contextmanager
def in_one_line(again=None):
    """Around a complete program and its processes: signals, and what a user can mend, end it with one line and a code.
    again: how to continue, for a program that has no record."""
    vars(now).update(UNUSED)
    listens = threading.current_thread() is threading.main_thread()  # no other thread gets signals
    before = {number: signal.signal(number, on_signal) for number in SIGNALS if listens}
    try:
        with all_processes():
            yield
    except KeyboardInterrupt:
        stop(again)
    except BrokenPipeError:  # nobody reads on, as in `... | head -1`
        os._exit(128 + 13)  # without the last flush of stdout, which would fail again
    except Exception as error:
        if now.signals:  # another process of this run got it, too, and has ended first
            stop(again)
        if (line := explained(error)) is None:
            raise
        line = "; ".join([line, *getattr(error, "__notes__", [])])
        print(f"error: {one_line(line)}", file=sys.stderr)
        sys.exit(2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if now.record:
            now.record.lock.release()


def explained(error):
    """The line for what a user can mend; None for the program's own mistakes."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
        return "out of memory; lower --batch or --max-pixels, or add --checkpointing"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'a file'}: cannot be written ({error.strerror})"


def resuming():
    step = f"step {now.record.step}" if now.record.step else "the beginning"
    return f"python train.py --resume {shlex.quote(str(now.record.folder))} continues from {step}"


def on_signal(number, frame):
    now.signals += (number,)
    if not now.training or len(now.signals) > 1:
        raise KeyboardInterrupt


@contextmanager
def whole_steps(rescue):
    """While this lasts, the first signal waits for the end of the step, and an error calls rescue() before it ends all."""
    now.training = True
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # such as: the loss of that step is not finite
            rescue()
            error.add_note(resuming())
        raise
    finally:
        now.training = False
    if now.signals:
        raise KeyboardInterrupt


def asked_to_stop():
    """Whether a signal asks this run to end, in any of its processes: all end with the same step."""
    asked = sum(total(len(now.signals))) > 0
    now.signals = now.signals or (signal.SIGINT,) * asked  # one of another process ends this one, too
    return asked


def stop(again):
    """The end by a signal. Further ones change nothing."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if RANK == 0:
        print(f"stopped; {again or (resuming() if now.record else 'nothing was saved yet')}", file=sys.stderr)
    sys.exit(128 + (now.signals or SIGNALS)[0])

"""How the program ends before its time: with one line that says why and what to do, and with a code.

    2               what a user can mend: bad input, too little memory, a full disk, another process that is gone
    130, 143, 129   a signal: Ctrl-C, SIGTERM, a terminal that was closed

While a run trains, the first signal waits for the end of the step, whose state is saved; a second one ends at once. The
program's own mistakes keep their traceback.
"""

import errno
import os
import re
import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist

from harness.processes import RANK, WORLD, all_processes, one_line, together
from parts.files import InputError

SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP")]  # Windows: two
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
AT_FIRST = {
    "signals": (),  # that came
    "stop": False,  # whether the run ends with this step: all its processes have agreed
    "training": False,
    "folder": None,  # of the run
    "step": 0,  # up to which it is saved
    "shape": (),  # what a layer was given last
    "terminals": (),  # of the program's output: file descriptors
    "handlers": {},  # of signals, as they were before
}
now = SimpleNamespace(**AT_FIRST)  # what the last line has to know


@contextmanager
def in_one_line():
    """Around a complete program, with the other processes of its run: whatever a user can mend, and signals, end it with
    one line and a code."""
    vars(now).update(AT_FIRST, handlers={}, terminals=[fd for fd in (1, 2) if os.isatty(fd)])
    listens = threading.current_thread() is threading.main_thread()  # no other one is told of signals
    try:
        for number in SIGNALS if listens else ():
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup wants to go on without a terminal
                now.handlers[number] = signal.signal(number, on_signal)
        with all_processes():
            yield
    except KeyboardInterrupt:
        stop()
    except InputError as error:
        end(f"error: {error}", 2)
    except (RuntimeError, MemoryError, OSError) as error:
        reason = explained(error)
        if reason is None:
            raise
        if now.signals:  # a worker process was sent it, too, and has ended first
            stop()
        end(f"error: {reason}", 2)
    finally:
        for number, handler in now.handlers.items():
            signal.signal(number, handler)


def on_signal(number, frame):
    now.signals += (number,)
    now.stop = now.stop or WORLD == 1  # several processes agree on a step first
    if signal.Signals(number).name == "SIGHUP":  # nobody reads any more, and writing would fail
        nothing = os.open(os.devnull, os.O_WRONLY)
        for fd in now.terminals:
            os.dup2(nothing, fd)
    if not now.training or len(now.signals) > 1:
        raise KeyboardInterrupt


def stop():
    """The end by a signal. Further ones change nothing."""
    for number in now.handlers:
        signal.signal(number, signal.SIG_IGN)
    line = "stopped; nothing was saved yet"
    if now.folder:
        step = f"step {now.step}" if now.step else "the beginning"
        line = f"stopped; python train.py --resume {shlex.quote(str(now.folder))} continues from {step}"
    end(line if RANK == 0 else "", 128 + (now.signals or [signal.SIGINT])[0])


def end(line, code):
    if line:
        print(one_line(line), file=sys.stderr)
    sys.exit(code)


def explained(error):
    """What a user can do about an error of memory, of the disk or of a worker process; None: it is another one."""
    said = str(error)
    if isinstance(error, MemoryError) or any(words in said.lower() for words in NO_MEMORY):
        tried = re.search(r"tried to allocate [\d.]+ \w+", said, re.IGNORECASE)
        rows = ""
        if len(now.shape) == 3:  # [B, T, D]
            rows = f" with {now.shape[0]} rows of {now.shape[1]} tokens in the decoder"
        elif now.shape:  # [P, E]
            rows = f" with images of {now.shape[0]} patches in the vision encoder"
        what = f"out of memory{rows}" + (f", {tried[0].lower()}" if tried else "")
        return f"{what}; lower --max-pixels or --batch, or add --checkpointing"
    if isinstance(error, OSError) and error.errno in NO_DISK:
        return f"{error.filename or 'a file'}: cannot be written ({error.strerror})"
    if "no space left on device" in said.lower():
        return f"no room is left on the disk, or in shared memory for --workers ({said:.150})"
    if "DataLoader worker" in said and ("exited unexpectedly" in said or "killed by signal" in said):
        return "a process that reads images was ended from outside, perhaps for its memory; lower --workers"
    return None


# -- the steps of training


@contextmanager
def whole_steps():
    """While this lasts, a signal waits for `saved`."""
    now.training = True
    try:
        yield
    finally:
        now.training = False
    if now.signals:
        raise KeyboardInterrupt


def saved(step):
    """The state of a step is saved: if a signal has asked for it, this is the end."""
    now.step = step
    if now.stop:
        if WORLD > 1:  # the first process may still be writing
            with together():
                dist.all_reduce(torch.zeros(1))
        raise KeyboardInterrupt


# -- numbers


def check_finite(parameters):
    """Raises InputError if a weight is not finite."""
    if not all(p.isfinite().all() for p in parameters):
        raise InputError("a trained weight is not finite any more; lower --lr; what was saved stays")


def guard(vlm):
    """Note the shape that the layers of `vlm` are given, for the line about memory. In float16, whose largest number is
    65,504, also check what every part of every layer gives, when it gives it: raises InputError there and then, with the
    name of the first part that gives an infinite value. bfloat16 and float32 reach 3e38 and need no such check."""

    def note(module, inputs):
        now.shape = tuple(inputs[0].shape)

    def check(module, inputs, output, name):
        if not output.isfinite().all():
            raise InputError(f"{name}: a value is too large for float16; use --dtype bfloat16 or float32")

    for place, layers in (("visual.blocks", vlm.visual.blocks), ("model.layers", vlm.model.layers)):
        layers[0].register_forward_pre_hook(note)
        for i, layer in enumerate(layers):
            for part, module in layer.named_children():
                if vlm.dtype == torch.float16:
                    module.register_forward_hook(partial(check, name=f"{place}.{i}.{part}"))

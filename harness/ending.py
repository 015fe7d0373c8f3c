"""Early exits: one line that says why, and an exit code: 2 for what a user can mend, 130 for Ctrl-C, 143 for SIGTERM.

While a run trains, the first signal waits for the end of the step, whose state is saved; a second one ends at once. An
error saves the last whole step. The program's own mistakes keep their traceback.
"""

import errno
import os
import shlex
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace

from harness.processes import RANK, all_processes, one_line, total
from parts.files import InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NO_MEMORY = ("out of memory", "tried to allocate", "not enough memory")  # of a GPU, of a CPU, of Windows
UNUSED = {"signals": (), "training": False, "record": None}
now = SimpleNamespace(**UNUSED)  # of this run


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

"""Early exits: one line that says why, and an exit code: 2 for what a user can mend, 130 for Ctrl-C, 143 for SIGTERM.

While a run trains, the first signal waits for the end of the step, whose state is saved; a second one ends at once. The
program's own mistakes keep their traceback.
"""

import errno
import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

from harness.processes import RANK, all_processes, one_line, total
from parts.files import InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NO_MEMORY = ("out of memory", "tried to allocate", "not enough memory")  # of a GPU, of a CPU, of Windows
now = SimpleNamespace(signals=[], training=False, folder=None, step=0)  # of this run; folder and step: what is saved


@contextmanager
def in_one_line():
    """Around a complete program and its processes: signals, and what a user can mend, end it with one line and a code."""
    vars(now).update(signals=[], training=False, folder=None, step=0)
    listens = threading.current_thread() is threading.main_thread()  # no other thread gets signals
    before = {number: signal.signal(number, on_signal) for number in SIGNALS if listens}
    try:
        with all_processes():
            yield
    except KeyboardInterrupt:
        stop()
    except (InputError, RuntimeError, MemoryError, OSError) as error:
        if now.signals:  # a worker process got the signal, too, and has ended first
            stop()
        if (line := explained(error)) is None:
            raise
        print(f"error: {one_line(line)}", file=sys.stderr)
        sys.exit(2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def explained(error):
    """The line for what a user can mend; None for the program's own mistakes."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
        return "out of memory; lower --batch or --max-pixels, or add --checkpointing"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'a file'}: cannot be written ({error.strerror})"


def on_signal(number, frame):
    now.signals.append(number)
    if not now.training or len(now.signals) > 1:
        raise KeyboardInterrupt


@contextmanager
def whole_steps():
    """While this lasts, the first signal waits for the end of the step."""
    now.training = True
    try:
        yield
    finally:
        now.training = False
    if now.signals:
        raise KeyboardInterrupt


def asked_to_stop():
    """Whether a signal asks this run to end, in any of its processes: all end with the same step."""
    asked = sum(total(len(now.signals))) > 0
    now.signals = now.signals or [signal.SIGINT] * asked  # one of another process ends this one, too
    return asked


def stop():
    """The end by a signal. Further ones change nothing."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    step = f"step {now.step}" if now.step else "the beginning"
    resume = f"python train.py --resume {shlex.quote(str(now.folder))} continues from {step}"
    if RANK == 0:
        print(f"stopped; {resume if now.folder else 'nothing was saved yet'}", file=sys.stderr)
    sys.exit(128 + (now.signals or [signal.SIGINT])[0])

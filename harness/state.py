"""A run's folder, what is saved in it on the way, and how an interrupted run continues."""

import argparse
import json
import os
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from files import InputError, read_json, write_text
from harness.processes import RANK

NOTHING_YET = dict.fromkeys(("base", "heads", "scores", "parameters", "optimizer"))


def start(args):
    """(arguments, folder, state) of a new run or of an interrupted one as it was last saved: with --resume, or with the
    --out of an unfinished run and its very flags. Raises InputError if there is none, if the flags differ, if --out holds
    a finished run, or if another version of this program began it.

    state: "base", the frozen model's predictions; "heads" and "scores" of the probe; "parameters", "optimizer" and
    "step", training; "log", a line a step; "curve", (step, accuracy) on the way.
    """
    state = NOTHING_YET | {"step": 0, "log": [], "curve": []}
    what = "probe" if args.probe_only else args.method
    out = Path(args.resume or args.out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{args.data}-{what}")
    if not args.resume and not (out / "arguments.json").exists():
        return args, out, state

    # A folder with a run in it: the flags must be that run's.
    saved = read_json(out / "arguments.json")
    if saved.keys() != vars(args).keys():
        raise InputError(f"{out}: begun by another version of this program; begin it again")
    now = vars(args)
    names = set(args.given) - {"resume"} if args.resume else now.keys() - {"given", "resume", "out"}
    for name in sorted(names):
        if saved[name] != now[name]:
            flag, ways = f"--{name.replace('_', '-')}", "leave it out, or begin a new run"
            ways = ways if args.resume else f"continue that run with --resume {out}, or choose another --out"
            raise InputError(f"{out}: begun with {flag} {saved[name]}, now {now[name]}; {ways}")
    if (out / "report.json").exists() and not args.resume:
        raise InputError(f"--out {out}: holds a finished run; choose another folder")

    if (out / "state.pt").exists():  # if not, it was interrupted before anything was saved: from the beginning
        state = torch.load(out / "state.pt", weights_only=True)
    print(f"resume   {out}, from step {state['step']}")
    return argparse.Namespace(**saved), out, state


def make_folder(out, args, log):
    """Make a run's folder, with its arguments and its log so far."""
    if RANK > 0:  # the first process does it for all
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror})") from None
    write_text(out / "arguments.json", json.dumps(vars(args), indent=1) + "\n")
    write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))


@contextmanager
def resumable(out):
    """Ctrl-C while training ends the program with a line that says how to continue, and code 130."""
    try:
        yield
    except KeyboardInterrupt:
        saved = (out / "state.pt").exists()
        step = f"step {torch.load(out / 'state.pt', weights_only=True)['step']}" if saved else "the beginning"
        print(f"\nstopped; python train.py --resume {out} continues from {step}", file=sys.stderr)
        sys.exit(130)


def save_state(state, out, keep=False):
    """Write out/state.pt; the old one stays until the new one is complete. keep: also as state-STEP.pt."""
    if RANK > 0:  # all processes hold the same state, the first one writes it
        return
    file = out / "state.pt"
    torch.save(state, f"{file}.part")
    os.replace(f"{file}.part", file)
    if keep:
        shutil.copyfile(file, out / f"state-{state['step']}.pt")

"""A run's folder, what is saved in it on the way, and how an interrupted run continues."""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import torch

from files import InputError, read_json, write_text
from harness.processes import RANK

NOTHING_YET = dict.fromkeys(("base", "heads", "scores", "parameters", "optimizer"))


def start(args):
    """(arguments, folder, state) of a new run or, with --resume, of the interrupted one as it was last saved. Raises
    InputError if there is none, or another version of this program began it.

    state: "base", the frozen model's predictions; "heads" and "scores" of the probe; "parameters", "optimizer" and
    "step", training; "log", a line a step; "curve", (step, accuracy) on the way.
    """
    state = NOTHING_YET | {"step": 0, "log": [], "curve": []}
    if not args.resume:
        what = "probe" if args.probe_only else args.method
        return args, Path(args.out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{args.data}-{what}"), state
    out = Path(args.resume)
    saved = read_json(out / "arguments.json")
    if saved.keys() != vars(args).keys():
        raise InputError(f"{out}: begun by another version of this program; begin it again")
    args = argparse.Namespace(**saved)
    if (out / "state.pt").exists():  # if not, it was interrupted before anything was saved: from the beginning
        state = torch.load(out / "state.pt", weights_only=True)
    return args, out, state


def make_folder(out, args):
    """Make a run's folder, with its arguments in it."""
    if RANK > 0:  # the first process does it for all
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror})") from None
    write_text(out / "arguments.json", json.dumps(vars(args), indent=1) + "\n")


def save_state(state, out, keep=False):
    """Write out/state.pt; the old one stays until the new one is complete. keep: also as state-STEP.pt."""
    if RANK > 0:  # all processes hold the same state, the first one writes it
        return
    file = out / "state.pt"
    torch.save(state, f"{file}.part")
    os.replace(f"{file}.part", file)
    if keep:
        shutil.copyfile(file, out / f"state-{state['step']}.pt")

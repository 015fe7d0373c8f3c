"""A run's folder, what is saved in it on the way, and how an interrupted run continues."""

import argparse
import itertools
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import torch

from files import InputError, read_json, write_text
from harness import ending
from harness.processes import RANK

NOTHING_YET = dict.fromkeys(("base", "heads", "scores", "parameters", "optimizer"))


def start(args):
    """(arguments, folder, state) of a new run or of an interrupted one as it was last saved: with --resume, or with the
    --out of an unfinished run and its very flags. Raises InputError if there is none, if the flags differ, if --out holds
    a finished run or anything else or cannot be written, or if another version of this program began it.

    state: "base", the frozen model's predictions; "heads" and "scores" of the probe; "parameters", "optimizer" and
    "step", training; "log", a line a step; "curve", (step, accuracy) on the way.
    """
    state = NOTHING_YET | {"step": 0, "log": [], "curve": []}
    what = "probe" if args.probe_only else args.method
    named = args.resume or args.out
    out = Path(named or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{args.data}-{what}")
    begun = out / "arguments.json"
    if args.resume and not begun.is_file():
        raise InputError(f"{begun}: no such file; --resume takes the folder of a run")
    check_place(out)
    if not named or not begun.is_file():
        if args.out and not args.prompt and out.is_dir() and any(file.suffix != ".part" for file in out.iterdir()):
            raise InputError(f"--out {out}: holds other files; choose another folder")
        return args, out, state

    # A folder with a run in it: the flags must be that run's.
    saved = read_json(begun)
    if saved.keys() != vars(args).keys():
        raise InputError(f"{out}: begun by another version of this program; begin it again")
    now = vars(args)
    names = set(args.given) - {"resume"} if args.resume else now.keys() - {"given", "resume", "out"}
    if "data" in names and now["data_root"]:  # NAME=FOLDER says both
        names.add("data_root")
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
    ending.now.folder, ending.now.step = out, state["step"]
    return argparse.Namespace(**saved), out, state


def check_place(out, flag="--out"):
    """Raises InputError if the folder `out`, given by `flag`, cannot be made or written into."""
    there = out.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise InputError(f"{flag} {out}: cannot be made, {there} is no folder that may be written into")


def make_folder(out, args, log):
    """Make a run's folder, with its arguments and its log so far, and return it: without --out perhaps another one, since
    two runs that begin in the same second have the same name."""
    if RANK > 0:  # the first process does it for all
        return out
    try:
        if args.out or ending.now.folder:  # named, or there
            out.mkdir(parents=True, exist_ok=True)
        else:
            out = new_folder(out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror})") from None
    write_text(out / "arguments.json", json.dumps(vars(args), indent=1) + "\n")
    write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))
    ending.now.folder, ending.now.step = out, len(log)
    return out


def new_folder(out):
    """Make the folder `out`, or the first of out-2, out-3, ... that is not there yet."""
    for number in itertools.count(1):
        folder = out if number == 1 else out.with_name(f"{out.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def save_state(state, out, keep=False):
    """Write out/state.pt; the old one stays until the new one is complete. keep: also as state-STEP.pt. Raises InputError,
    and writes nothing, if a weight is not finite."""
    ending.check_finite(state["parameters"])
    if RANK == 0:  # all processes hold the same state, the first one writes it
        file = out / "state.pt"
        torch.save(state, f"{file}.part")
        os.replace(f"{file}.part", file)
        if keep:
            shutil.copyfile(file, out / f"state-{state['step']}.pt")
    ending.saved(state["step"])

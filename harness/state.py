"""A run's folder, what is saved in it on the way, and how an interrupted run continues."""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import torch

from harness import ending
from harness.arguments import data_set
from harness.processes import RANK
from parts.files import (
    InputError,
    read_json,
    reading,
    write_text,
    writing,
)

FORMAT = 2  # of arguments.json and state.pt; 1 had no checksums
TENSORS = ("parameters", "optimizer")  # of a state; the rest is plain data
KINDS = {"origin": dict, "base": str, "heads": dict, "scores": list, "step": int, "log": list, "curve": list}
NOTHING_YET = dict.fromkeys(("origin", "base", "heads", "scores", *TENSORS))


def start(args):
    """(arguments, folder, state) of a new run or of an interrupted one as it was last saved: with --resume, or with the
    --out of an unfinished run and its very flags. Raises InputError if there is none, if the flags differ, if --out holds
    a finished run or anything else or cannot be written, or if another version of this program began it.

    state: "origin", what it was begun with; "base", the frozen model's predictions; "heads" and "scores" of the probe;
    "parameters", "optimizer" and "step", training; "log", a line a step; "curve", (step, accuracy) on the way.
    """
    state = NOTHING_YET | {"step": 0, "log": [], "curve": []}
    what = "probe" if args.probe_only else args.method
    named = args.resume or args.out
    out = Path(named or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{data_set(args.data)[0]}-{what}")
    begun = out / "arguments.json"
    if args.resume and not begun.is_file():
        raise InputError(f"{begun}: no such file; --resume takes the folder of a run")
    check_place(out)
    if not named or not begun.is_file():
        if args.out and out.is_dir() and any(file.suffix != ".part" for file in out.iterdir()):
            raise InputError(f"--out {out}: holds other files; choose another folder")
        return args, out, state

    # A folder with a run in it: the flags must be that run's.
    saved = read_arguments(out, vars(args).keys())
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
        state = read_state(out / "state.pt")
    print(f"resume   {out}, from step {state['step']}")
    ending.now.folder, ending.now.step = out, state["step"]
    return argparse.Namespace(**saved), out, state


def read_arguments(out, names):
    """{flag: value} of the run in a folder. Raises InputError if they are damaged, or not the flags `names`."""
    file = out / "arguments.json"
    with reading(file, "the arguments of a run"):
        saved = read_json(file)
        version = saved.get("format", 1)
        if version != FORMAT or saved.keys() - {"format", "checksum"} != names:
            said = f"(format {version!r:.20}; this one has {FORMAT})"
            raise InputError(f"{out}: begun by another version of this program {said}; begin it again")
        if "checksum" not in saved:
            raise ValueError("its checksum is missing")
        return {name: value for name, value in unsealed(saved).items() if name != "format"}


def read_state(file):
    """A saved state. Raises InputError, naming the file, if it is damaged, was changed or is of another version."""
    with reading(file, "a saved state", Exception):  # torch raises nothing narrower
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type for member in archive.infolist()) or archive.testzip():
                raise ValueError("a checksum in it does not fit: it was damaged or changed")
        state = torch.load(file, map_location="cpu", weights_only=True)
        if state.get("format") != FORMAT:
            raise ValueError(f"format {state.get('format', 1)!r:.20}, this version has {FORMAT}; begin the run again")
        plain = unsealed({name: value for name, value in state.items() if name not in TENSORS})
        for name, kind in KINDS.items():
            if not isinstance(plain[name], kind) and not (plain[name] is None and name in NOTHING_YET):
                raise ValueError(f"its {name} is not a {kind.__name__}")
        return {name: state[name] for name in (*KINDS, *TENSORS)}


def sealed(value):
    """A dict of plain data with the checksum of what is in it, to be written as JSON."""
    return value | {"checksum": f"{zlib.crc32(json.dumps(value).encode()):08x}"}


def unsealed(value):
    """The dict that was sealed; one without a checksum, made by hand, as it is. Raises ValueError if it was changed."""
    content = {key: value[key] for key in value if key != "checksum"}
    if "checksum" in value and value != sealed(content):
        raise ValueError(
            "its checksum does not fit: it was damaged or changed; without its checksum it is taken as it is"
        )
    return content


def check_place(out, flag="--out"):
    """Raises InputError if the folder `out`, given by `flag`, cannot be made or written into."""
    there = out.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise InputError(f"{flag} {out}: cannot be made, {there} is no folder that may be written into")


def make_folder(out, args, state, vlm, sets):
    """Make a run's folder, with its arguments and its log so far -> the folder; another one, if two runs begin in the
    same second. sets: {name: examples}. Raises InputError if the state is not of a run with these arguments, this model
    and these examples, or if the folder cannot be made."""
    flags = {name: value for name, value in vars(args).items() if name not in ("resume", "out", "given")}
    origin = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    origin |= {"the base model": vlm.fingerprint()}
    origin |= {f"the rows of {name}": digest(examples) for name, examples in sets.items()}
    saved = state["origin"] or origin
    for name in saved | origin:
        if saved.get(name) != origin.get(name):
            was = f"{name} was {saved.get(name)!r:.60} when it was saved, and is {origin.get(name)!r:.60} now"
            raise InputError(f"{out / 'state.pt'}: {was}; bring that back, or begin a new run in another folder")
    state["origin"] = origin
    if RANK > 0:  # the first process does it for all
        return out
    try:
        if args.out or ending.now.folder:  # named, or there
            out.mkdir(parents=True, exist_ok=True)
        else:
            out = new_folder(out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror})") from None
    write_text(out / "arguments.json", json.dumps(sealed({"format": FORMAT} | vars(args)), indent=1) + "\n")
    write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in state["log"]))
    ending.now.folder, ending.now.step = out, len(state["log"])
    return out


def digest(examples):
    """How many examples, and a hash of their names, images, prompts and answers."""
    found = hashlib.sha256()
    for e in examples:
        found.update(repr((e.name, [str(v) for v in e.visuals], e.prompt, e.answer, e.history)).encode())
    return f"{len(examples)} with the hash {found.hexdigest()[:16]}"


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
        plain = {name: value for name, value in state.items() if name not in TENSORS} | {"format": FORMAT}
        with writing(out / "state.pt", RuntimeError) as part:  # torch's word for a full disk
            torch.save(sealed(plain) | {name: state[name] for name in TENSORS}, part)
        if keep:
            with writing(out / f"state-{state['step']}.pt") as part:
                shutil.copyfile(out / "state.pt", part)
    ending.saved(state["step"])


def restore(state, parameters, optimizer):
    """Give parameters and optimiser what a state holds for them, if it does. Raises InputError if that does not fit."""
    if state["parameters"] is None:
        return
    with reading(f"the state of step {state['step']}", "one of these parameters", RuntimeError):
        pairs = list(zip(parameters, state["parameters"], strict=True))
        moments, now = state["optimizer"]["state"], optimizer.state_dict()
        for i, of_p in moments.items():
            pairs += [
                (parameters[i], of_p["exp_avg"]),
                (parameters[i], of_p["exp_avg_sq"]),
                (torch.zeros(()), of_p["step"]),
            ]
        if any(p.shape != saved.shape or not saved.isfinite().all() for p, saved in pairs):
            raise ValueError("a shape differs, or a number is NaN or infinite")
        for p, saved in zip(parameters, state["parameters"]):
            p.data.copy_(saved)
        optimizer.load_state_dict(now | {"state": moments})

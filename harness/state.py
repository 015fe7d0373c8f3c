"""A run's folder, and how an interrupted run goes on."""

import argparse
import time
from pathlib import Path

import torch

from files import InputError, read_json


def start(args):
    """(arguments, folder, state) of a new run or, with --resume, of the interrupted one as it was last saved."""
    state = dict.fromkeys(("base", "heads", "scores", "parameters", "optimizer")) | {"step": 0, "log": []}
    if not args.resume:
        return args, Path(args.out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{args.data}-{args.method}"), state
    out = Path(args.resume)
    args = argparse.Namespace(**read_json(out / "arguments.json"))
    if (out / "state.pt").exists():  # else it was interrupted before anything was saved: from the beginning
        state = torch.load(out / "state.pt", weights_only=True)
    return args, out, state


def make_folder(out):
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror})") from None

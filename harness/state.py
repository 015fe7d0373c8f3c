"""A run's folder: its arguments, its saved state, and how an interrupted run continues."""

import hashlib
import json
import time
import zipfile
from pathlib import Path

import torch

from harness import ending
from harness.arguments import data_set
from harness.processes import RANK, total
from parts.files import InputError, read_json, reading, write_text, writing

FORMAT = 3  # of arguments.json and state.pt; 2 had checksums
SAVED = ("origin", "base", "heads", "scores", "step", "log", "curve", "parameters", "optimizer")  # in state.pt


class Record:
    """What a run has done so far: what it leaves in its folder, and needs to continue.

    origin  flags, base model and rows: a state is used for no other run    base  the frozen model's predictions
    heads   {layer: [heads]}, and scores [L][G]: what the probe chose       step  so many are done, and saved
    log     a line for each step                                            curve  [(step, accuracy)] on the way
    """

    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.origin = self.base = self.heads = self.scores = self.parameters = self.optimizer = None
        self.step, self.log, self.curve = 0, [], []

    def begin(self, vlm, rows):
        """Make the folder. rows: {data set: examples}. Raises InputError if the saved state is that of another run."""
        origin = {f"--{name}": value for name, value in vars(self.args).items() if name not in ("resume", "out", "given")}
        origin |= {f"the rows of {name}": digest(examples) for name, examples in rows.items()}
        origin["the base model"] = vlm.fingerprint()
        for name, value in (self.origin or origin).items():
            if value != origin.get(name):
                change = f"{name} was {value!r:.60} when it was saved, and is {origin.get(name)!r:.60} now"
                raise InputError(f"{self.folder / 'state.pt'}: {change}; bring that back, or begin a new run")
        self.origin = origin
        if RANK > 0:
            return  # the first process writes for all
        while not (self.args.out or ending.now.folder) and self.folder.exists():  # another run of the same second
            self.folder = Path(f"{self.folder}+")
        write_text(self.folder / "arguments.json", json.dumps({"format": FORMAT} | vars(self.args), indent=1) + "\n")
        write_text(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in self.log))
        ending.now.folder, ending.now.step = self.folder, self.step

    def save(self, step, parameters, optimizer):
        """Write state.pt; the old one stays until the new one is complete."""
        if not all(p.isfinite().all() for p in parameters):
            raise InputError("a trained weight is not finite any more; lower --lr; what was saved stays")
        self.step, self.parameters, self.optimizer = step, [p.detach().cpu() for p in parameters], optimizer.state_dict()
        for file in ["state.pt", *[f"state-{step}.pt"] * self.args.keep_states] if RANK == 0 else []:
            with writing(self.folder / file, RuntimeError) as part:  # torch's error for a full disk
                torch.save({name: getattr(self, name) for name in SAVED}, part)
        total(0)  # the others wait for the first one
        ending.now.step = step

    def restore(self, parameters, optimizer):
        """Give parameters and optimiser what the state holds for them, if it does."""
        if self.parameters is not None:
            for p, saved in zip(parameters, self.parameters, strict=True):
                p.data.copy_(saved)
            optimizer.load_state_dict(self.optimizer)


def start(args):
    """The Record of a new run; or of an interrupted one, with --resume or with its own --out and flags: then `args` become
    that run's. Raises InputError if there is none, if a flag differs, or if the folder holds anything else."""
    named = args.resume or args.out
    folder = Path(named or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{data_set(args.data)[0]}-{args.method}")
    begun, state, record = folder / "arguments.json", folder / "state.pt", Record(args, folder)
    if args.resume and not begun.is_file():
        raise InputError(f"{begun}: no such file; --resume takes the folder of a run")
    if not named or not begun.is_file():
        if named and folder.is_dir() and any(file.suffix != ".part" for file in folder.iterdir()):
            raise InputError(f"--out {folder}: holds other files; choose another folder")
        return record

    # The flags must be that run's: those that are given with --resume, else all.
    with reading(begun, "the arguments of a run by this version of the program; begin it again"):
        saved, now = read_json(begun), vars(args)
        if saved.pop("format") != FORMAT or saved.keys() != now.keys():
            raise ValueError("its format or its flags are others")
    for name in set(args.given) - {"resume"} if args.resume else now.keys() - {"given", "resume", "out"}:
        if saved[name] != now[name]:
            change = f"begun with --{name.replace('_', '-')} {saved[name]}, now {now[name]}"
            raise InputError(f"{folder}: {change}; leave it out, or begin a new run")
    if (folder / "report.json").exists() and not args.resume:
        raise InputError(f"--out {folder}: holds a finished run; choose another folder")
    vars(args).update(saved)
    if state.exists():  # else it was interrupted before anything was saved: from the beginning
        with reading(state, "the state of a run"):
            if zipfile.ZipFile(state).testzip():
                raise ValueError("a checksum differs: it is damaged")
            content = torch.load(state, map_location="cpu", weights_only=True)
            vars(record).update({name: content[name] for name in SAVED})
    print(f"resume   {folder}, from step {record.step}")
    ending.now.folder, ending.now.step = folder, record.step
    return record


def digest(examples):
    """How many examples, and a hash of their names, images, prompts and answers."""
    rows = [(e.name, [str(v) for v in e.visuals], e.prompt, e.answer, e.history) for e in examples]
    return f"{len(examples)} with the hash {hashlib.sha256(repr(rows).encode()).hexdigest()[:16]}"

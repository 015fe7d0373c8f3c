"""A run's folder: its one writer, its saved state, and how an interrupted run continues."""

import hashlib
import json
import os
import time
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from filelock import FileLock, Timeout

from harness import processes
from harness.arguments import data_set
from harness.processes import RANK, total
from harness.report import log_steps
from parts.files import InputError, reading, write_text, writing

SAVED = ("origin", "base", "heads", "scores", "step", "log", "curve", "parameters", "optimizer")
LOCK = ".lock"  # the file that a run holds while it lives


class Record:
    """What a run has done so far: what it leaves in its folder, and needs to continue.

    origin  base model, rows and images: a state is used for no other run   base  the frozen model's predictions
    heads   {layer: [heads]}, and scores [L][G]: what the probe chose       step  so many are done, and saved
    log     a line for each step                                            curve  [(step, accuracy)] on the way
    """

    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.origin = self.base = self.heads = self.scores = self.parameters = self.optimizer = None
        self.step, self.log, self.curve = 0, [], []
        self.unread, self.begun = [], 0.0  # (line of the log, result) of the steps not read yet, and when these began

    def begin(self, vlm, rows):
        """Make the folder of a new run. rows: {data set: examples}. Raises InputError if the saved state is that of another
        run; if images have changed since, a line says so."""
        origin = {"the base model": vlm.fingerprint()}
        for name, examples in rows.items():
            words = [(e.name, [str(v) for v in e.visuals], e.prompt, e.answer, e.history) for e in examples]
            origin |= {f"the rows of {name}": digest(words), f"the images of {name}": digest(image_files(examples))}
        for name, value in (self.origin or origin).items():
            if value != origin[name] and name.startswith("the images"):
                print(f"warning  {name} have other sizes or times than when the run began")
            elif value != origin[name]:
                change = f"{name} was {value!r:.60} when it was saved, and is {origin[name]!r:.60} now"
                raise InputError(f"{self.folder / 'state.pt'}: {change}; bring that back, or begin a new run")
        new, self.origin = self.origin is None, origin
        if new:
            self.hold()
            self.save(0)
        if RANK == 0:
            write_text(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in self.log))

    def hold(self):
        """Be the folder's one writer until this run ends, however it ends. Raises InputError if another run is."""
        if RANK > 0:  # the first process writes for all
            return
        with reading(self.folder, "a folder that can be written to"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / LOCK, timeout=0)
            try:
                self.lock.acquire()
            except Timeout:
                raise InputError(f"{self.folder}: another run is writing to it; wait for its end") from None
        processes.now.record = self  # which releases the lock in the end
        if not self.args.resume:
            refuse_files(self.folder)  # of a run that has ended meanwhile

    def save(self, step, parameters=(), optimizer=None, wait=True):
        """Write the state after so many steps; the old one stays until the new one is complete."""
        if not all(p.isfinite().all() for p in parameters):
            raise InputError("a trained weight is not finite any more; lower --lr; what was saved stays")
        content = {name: getattr(self, name) for name in SAVED} | {"args": vars(self.args), "step": step}
        if optimizer:
            content |= {"parameters": [p.detach().cpu() for p in parameters], "optimizer": optimizer.state_dict()}
        for file in ["state.pt", *[f"state-{step}.pt"] * (self.args.keep_states and step > 0)] if RANK == 0 else []:
            with writing(self.folder / file, RuntimeError) as part:  # torch's error for a full disk
                torch.save(content, part)
        self.step = step
        if wait:
            total(0)  # the others, for the first one

    def rescue(self, parameters, optimizer):
        """After an error: log and save the steps that are done, unless the optimiser is within the next one."""
        if self.unread:
            log_steps(self, parameters[0].device)
        done = len(self.log)
        if self.step < done and all(of_one["step"] <= done for of_one in optimizer.state.values()):
            self.save(done, parameters, optimizer, wait=False)

    def restore(self, parameters, optimizer):
        """Give parameters and optimiser what the state holds for them, if it does."""
        if self.parameters is not None:
            for p, saved in zip(parameters, self.parameters, strict=True):
                p.data.copy_(saved)
            optimizer.load_state_dict(self.optimizer)
            self.parameters = self.optimizer = None  # not held twice


def start(args):
    """The Record of a new run; with --resume that of an interrupted one, whose flags `args` then become. Raises InputError
    if there is none, for further flags, or if the folder of a new run holds anything."""
    if not args.resume:
        folder = Path(args.out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{data_set(args.data)[0]}-{args.method}")
        refuse_files(folder)
        return Record(args, folder)

    # Its state, which no other run may write meanwhile, and its flags.
    record, file = Record(args, Path(args.resume)), Path(args.resume, "state.pt")
    if args.given != ["resume"]:
        raise InputError(f"--resume {args.resume}: the run has its own flags; leave the others out, or begin a new run")
    if not file.is_file():
        raise InputError(f"{file}: no such file; --resume takes the folder of a run")
    record.hold()
    with reading(file, "the state of a run by this version of the program; begin it again"):
        try:
            content = None if zipfile.ZipFile(file).testzip() else torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError:  # torch's own message advises what is not safe
            content = None
        if content is None or content["args"].keys() != vars(args).keys():
            raise ValueError("it is damaged, or has other flags")
        vars(record).update({name: content[name] for name in SAVED})

    vars(args).update(content["args"])
    print(f"resume   {record.folder}, from step {record.step}")
    return record


def refuse_files(folder):
    """Raises InputError if the folder of a new run holds anything but a lock and what was never completed."""
    if folder.is_dir() and any(file.name != LOCK and file.suffix != ".part" for file in folder.iterdir()):
        raise InputError(f"--out {folder}: holds other files; choose another folder, or --resume the run that it holds")


def digest(values):
    return f"{len(values)} with the hash {hashlib.sha256(repr(values).encode()).hexdigest()[:16]}"


def image_files(examples):
    """(path, size, time) of each image file. A drawn image has none."""
    paths = {frame for e in examples for visual in e.visuals for frame in visual.key[1:] if isinstance(frame, str)}
    return [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in sorted(paths)]

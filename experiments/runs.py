"""Runs of train.py: each row of a suite once for every seed, resumed where it was interrupted; learning rates."""

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from experiments.suites import COMMON, SEARCHED
from files import InputError, read_json, write_text

HERE = Path(__file__).parent.parent


def words(flags):
    """ "--rank 8 --no-norm" -> {("--rank", "8"), ("--no-norm",)}."""
    return {tuple(part.split()) for part in re.findall(r"--[^-]\S*(?: (?!--)\S+)*", flags)}


def rate(flags, args):
    """The learning rate found for a row's flags; 0 where nothing is trained."""
    if "--method none" in flags:
        return 0.0
    rates = read_json(args.out / "learning-rates.json")["rates"]
    fitting = [key for key in SEARCHED if words(key) <= words(flags)]
    return rates[max(fitting, key=lambda key: len(words(key)))]


def run_all(rows, args, common=COMMON):
    """[flags] -> [report]: train.py for each that has no report yet, --jobs at a time, each with its share of the cores.
    Raises InputError with the last line that a failed run said."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, args.cores // args.jobs))}

    def one(flags):
        command = f"{common} {flags} {args.more}".split()
        name = f"{re.sub(r'[^A-Za-z0-9.]+', '-', flags).strip('-')[:60]}-{hashlib.sha1(repr(command).encode()).hexdigest()[:6]}"
        folder = args.runs / name
        if not (folder / "report.json").exists():
            command = ["--resume", str(folder)] if (folder / "state.pt").exists() else [*command, "--out", str(folder)]
            command = [sys.executable, str(HERE / "train.py"), *command]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                raise InputError(f"{folder}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        bar.update()
        return read_json(folder / "report.json")

    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(rows), desc=args.suite, unit="run") as bar:
        return list(pool.map(one, rows))


def search_rates(args):
    """The same small search for every method and rank: a few rates, one seed, the best accuracy on the split "val"."""
    common = COMMON.replace("--eval-split test", "--eval-split val") + " --also"
    pairs = [(key, lr) for key, rates in SEARCHED.items() for lr in rates]
    reports = run_all([f"{key} --lr {lr}".strip() for key, lr in pairs], args, common)
    found = {key: {} for key in SEARCHED}
    for (key, lr), report in zip(pairs, reports):
        found[key][lr] = report["tuned"]["accuracy"]
    best = {key: max(accuracies, key=accuracies.get) for key, accuracies in found.items()}
    result = {"flags": f"{common} {args.more}".strip(), "rates": best, "accuracy": found}
    write_text(args.out / "learning-rates.json", json.dumps(result, indent=1) + "\n")


def run_rows(rows, args):
    """{row: flags} -> {row: [report of each seed]}; the base model needs no second seed."""
    jobs = []
    for name, flags in rows.items():
        for seed in args.seeds[:1] if "--method none" in flags else args.seeds:
            lr = "--base" if "--method none" in flags else f"--lr {rate(flags, args)}"
            jobs.append((name, f"{flags} {lr} --seed {seed} --probe-seed {seed}".strip()))
    reports = {name: [] for name in rows}
    for (name, _), report in zip(jobs, run_all([flags for _, flags in jobs], args)):
        reports[name].append(report)
    return reports

"""Runs of train.py: every row of a suite once for each seed; runs with heads that an analysis chose; and the search for
learning rates.

A run is one call of train.py and has a folder, which is named by its flags: two suites that need the same run share it.
A run with a report is done. One that was interrupted continues from its last saved state.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from experiments.suites import COMMON, SEARCHED
from experiments.tables import MEASURES, accuracy
from parts.backbones.qwen import check_number
from parts.files import InputError, read_json, reading, write_text
from probe import save_selection

ROOT = Path(__file__).parent.parent
RATES = "learning-rates.json"  # in the folder of the results


@dataclass(frozen=True)
class Launcher:
    """How runs are started."""

    folder: Path  # where the folders of the runs are
    jobs: int  # runs at a time
    cores: int  # which these share
    more: str = ""  # further flags for every run
    asked_for: list = field(default_factory=list)  # the reports of all runs that were asked for, to count their time


def run_all(flags_of_runs, launcher, title, common=COMMON):
    """[flags] -> [report]. Starts train.py for each that has no report yet, `launcher.jobs` at a time; `title` names the
    progress bar. Raises InputError, with the last line that a failed run printed."""
    with ThreadPoolExecutor(launcher.jobs) as pool, tqdm(total=len(flags_of_runs), desc=title, unit="run") as bar:

        def run(flags):
            report = run_one(flags, launcher, common)
            bar.update()
            return report

        reports = list(pool.map(run, flags_of_runs))
    launcher.asked_for.extend(reports)
    return reports


def run_one(flags, launcher, common=COMMON):
    """The report of one run, which is made, continued or only read."""
    arguments = f"{common} {flags} {launcher.more}".split()
    folder = launcher.folder / folder_name(flags, arguments)

    # Done?
    report = folder / "report.json"
    if report.exists():
        return read_report(report)

    # Interrupted? Then it continues, with the arguments that it wrote down.
    if (folder / "state.pt").exists():
        arguments = ["--resume", str(folder)]
    else:
        arguments += ["--out", str(folder)]

    # Each of the runs at a time has its share of the cores.
    threads = max(1, launcher.cores // launcher.jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        printed = done.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"{folder}: {printed[-1].removeprefix('error: ')}")
    return read_report(report)


def read_report(file):
    """The report of a run. Raises InputError if it does not hold what the tables need."""
    with reading(file, "the complete report of a run"):
        report = read_json(file)
        check_number("wall_seconds", report["wall_seconds"], float, 0, 1e9)
        for column, (value, _) in MEASURES.items():
            if value(report) is not None:
                check_number(column, value(report), float, 0, 1e18)
        return report


def folder_name(flags, arguments):
    """The flags of a run in a readable form, and a hash of all its arguments."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", flags).strip("-")[:60]
    digest = hashlib.sha1(repr(arguments).encode()).hexdigest()[:6]
    return f"{readable}-{digest}"


def run_rows(rows, seeds, rates, launcher, title):
    """{row: flags} -> {row: [report of each seed]}. The base model needs one seed only: nothing about it is drawn."""
    runs = []  # (row, its flags for a seed)
    for row, flags in rows.items():
        trained = "--method none" not in flags
        for seed in seeds if trained else seeds[:1]:
            runs.append((row, of_seed(flags, seed, rates) if trained else f"{flags} --base"))

    found = run_all([flags for _, flags in runs], launcher, title)
    reports = {row: [] for row in rows}
    for (row, _), report in zip(runs, found):
        reports[row].append(report)
    return reports


def of_seed(flags, seed, rates):
    """The flags of a row for one seed, with the row's learning rate."""
    return f"{flags} --lr {rate(flags, rates)} --seed {seed} --probe-seed {seed}".strip()


def run_selections(name, selections, seeds, rates, launcher):
    """[{layer: [heads]} of each seed] -> [report of each seed]: train these heads."""
    flags = [f"--selection {selection_file(name, heads, launcher)}" for heads in selections]
    runs = [of_seed(chosen, seed, rates) for chosen, seed in zip(flags, seeds)]
    return run_all(runs, launcher, name)


def selection_file(name, heads, launcher):
    """Write a selection {layer: [heads]} for --selection, among the folders of the runs. Its name says which heads, and so
    does that of a run: with other heads it is another run."""
    digest = hashlib.sha1(repr(sorted(heads.items())).encode()).hexdigest()[:6]
    file = launcher.folder / f"{name}-{digest}.json"
    save_selection(file, heads)
    return file


# Learning rates


def search_rates(launcher, out):
    """The same small search for every method and for every switch that changes how far a step goes: three or four rates, one seed.
    The best accuracy (that of the tables) on the split "val" wins. Writes the file that `read_rates` reads."""
    common = COMMON.replace("--eval-split test", "--eval-split val") + " --eval scenes-fog"
    tries = [(flags, lr) for flags, lrs in SEARCHED.items() for lr in lrs]
    reports = run_all([f"{flags} --lr {lr}".strip() for flags, lr in tries], launcher, "rates", common)

    accuracies = {flags: {} for flags in SEARCHED}
    for (flags, lr), report in zip(tries, reports):
        accuracies[flags][lr] = accuracy(report)
    best = {flags: max(by_rate, key=by_rate.get) for flags, by_rate in accuracies.items()}
    result = {"flags": f"{common} {launcher.more}".strip(), "rates": best, "accuracy": accuracies}
    write_text(out / RATES, json.dumps(result, indent=1) + "\n")


def read_rates(out):
    """{searched flags: best learning rate}, from the folder of the results."""
    with reading(out / RATES, "learning rates"):
        rates = read_json(out / RATES)["rates"]
        for flags, lr in rates.items():
            check_number(flags, lr, float, 1e-12, 1e3)
        return rates


def rate(flags, rates):
    """The learning rate for a row: that of the longest searched flags which the row's flags contain."""
    fitting = [searched for searched in SEARCHED if flag_set(searched) <= flag_set(flags)]
    nearest = max(fitting, key=lambda searched: len(flag_set(searched)))
    if nearest not in rates:
        raise InputError(f"{RATES}: no rate for {nearest!r}; search the learning rates again")
    return rates[nearest]


def flag_set(flags):
    """ "--rank 8 --no-norm" -> {("--rank", "8"), ("--no-norm",)}."""
    each = re.findall(r"--[^-]\S*(?: (?!--)\S+)*", flags)
    return {tuple(flag.split()) for flag in each}

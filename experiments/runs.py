"""Runs of train.py: every row of a suite once for each seed, runs with given heads, and the search for learning rates.

A run is one call of train.py and has a folder, which is named by its flags: two suites that need the same run share it.
A run with a report is done. One that was interrupted continues from its last saved state.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from io import StringIO
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

import train
from experiments.suites import COMMON, HALF, LIKE, SEARCHED
from experiments.tables import RESULTS, accuracy, main_column
from harness import encodings, report
from parts.files import InputError, read_json, reading
from probe import save_selection


@dataclass(frozen=True)
class Setup:
    """How a suite is run."""

    folder: Path  # where the folders of the runs are
    out: Path  # where the results go
    jobs: int  # runs at a time
    cores: int  # which these share
    more: str = ""  # further flags for every run
    seeds: tuple = ()
    rates: dict = field(default_factory=dict)  # {searched flags: learning rate}
    reports: list = field(default_factory=list)  # of all runs that were asked for, to count their time
    workers: list = field(default_factory=list)  # processes that make one run after another
    idle: list = field(default_factory=list)  # those of them that wait for a run


def run_all(flags_of_runs, setup, title, common=COMMON):
    """[flags] -> [report]. Starts train.py for each that has no report yet, `setup.jobs` at a time; `title` names the
    progress bar. Raises InputError, with the last line that a failed run printed."""
    different = list(dict.fromkeys(flags_of_runs))
    with ThreadPoolExecutor(setup.jobs) as pool:
        try:
            runs = pool.map(lambda flags: run_one(flags, setup, common), different)
            reports = dict(zip(different, list(tqdm(runs, title, len(different), unit="run"))))
        except KeyboardInterrupt:  # no further run begins, and each of those that have begun saves its step
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in setup.workers:
                worker.terminate()
            raise
    setup.reports.extend(reports.values())
    return [reports[flags] for flags in flags_of_runs]


def run_one(flags, setup, common=COMMON):
    """The report of one run, which is made, continued or only read."""
    arguments = f"{common} {flags} {setup.more}".split()
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", flags).strip("-")[:60]
    folder = setup.folder / f"{readable}-{short_hash(arguments)}"

    # Done?
    file = folder / "report.json"
    if file.exists():
        return read_json(file)

    # Interrupted? Then it continues, with the flags in its state.
    if (folder / "state.pt").exists():
        arguments = ["--resume", str(folder)]
    else:
        arguments += ["--out", str(folder)]

    # A worker makes it: one that is idle, or a new one.
    try:
        worker = setup.idle.pop()
    except IndexError:
        worker = start_worker(setup)
    with suppress(BrokenPipeError):  # it may have been killed: then no answer follows
        print(json.dumps(arguments), file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if answer != "\n":  # it has ended
        raise InputError(f"{folder}: {answer.strip().removeprefix('error: ') or 'its process ended without a message'}")
    setup.idle.append(worker)
    return read_json(file)


def start_worker(setup):
    """A process that does `work`, with its share of the cores. Ctrl-C does not reach it: run_all ends it."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, setup.cores // setup.jobs))}
    command = [sys.executable, "-m", "experiments.runs"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    worker = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    setup.workers.append(worker)
    return worker


def work():
    """Make a run of each line of the input, which has its flags. The answer is an empty line; after a run that failed, it is
    the last line that was printed, and the end; a mistake of the program keeps its traceback. The processor and the examples
    are made once; the processor keeps the images' embeddings, which train.py drops where the encoder is trained."""
    encodings.Processor.from_pretrained = cache(encodings.Processor.from_pretrained)
    encodings.load_examples = lru_cache(maxsize=4)(encodings.load_examples)  # a run has at most four data sets
    for line in sys.stdin:
        report.STARTED, printed = time.perf_counter(), StringIO()
        try:
            with redirect_stdout(printed), redirect_stderr(printed):
                train.main(json.loads(line))
        except BaseException as error:  # SystemExit, after a line that says why; or a mistake of the program
            *_, last = printed.getvalue().strip().splitlines() or [""]
            print(last if isinstance(error, SystemExit) else repr(error), flush=True)
            raise
        print(flush=True)


def short_hash(value):
    return hashlib.sha1(repr(value).encode()).hexdigest()[:6]


def run_rows(rows, setup, title):
    """{row: flags} -> {row: [report of each seed]}. The base model needs one seed only: nothing about it is drawn."""
    runs = []  # (row, its flags for a seed)
    for row, flags in rows.items():
        if "--method none" in flags:
            runs.append((row, f"{flags} --base"))
        else:
            runs += [(row, of_seed(flags, seed, setup.rates)) for seed in setup.seeds]

    reports = {row: [] for row in rows}
    for (row, _), made in zip(runs, run_all([flags for _, flags in runs], setup, title)):
        reports[row].append(made)
    return reports


def of_seed(flags, seed, rates):
    """The flags of a row for one seed, with their learning rate. Raises InputError if none was searched for them."""
    if "--lr" not in flags:
        if (searched := searched_by(flags)) not in rates:
            raise InputError(f"no learning rate for {searched!r}; search it first: python -m experiments rates SUITE")
        flags += f" --lr {rates[searched]:g}"
    return f"{flags} --seed {seed}".strip()


def searched_by(flags):
    """The entry of SEARCHED whose rate a row takes: the longest that its flags contain, or the one that LIKE names."""
    longest = max((entry for entry in SEARCHED | LIKE if entry in flags), key=len)
    return LIKE.get(longest, longest)


def run_selections(selections, setup, flags=""):
    """[{layer: [heads]} of each seed] -> [report of each seed]: train these heads."""
    chosen = [f"{flags} {selection_flag(heads, setup)}" for heads in selections]
    return run_all([of_seed(flags, seed, setup.rates) for flags, seed in zip(chosen, setup.seeds)], setup, "chosen heads")


def selection_flag(heads, setup):
    """Write a selection {layer: [heads]} among the folders of the runs -> the flags that name it. Other heads have another
    name, so they are another run."""
    file = setup.folder / f"heads-{short_hash(sorted(heads.items()))}.json"
    save_selection(file, heads)
    return f"--heads {sum(map(len, heads.values()))} --selection {file}"


# Learning rates

CLOSE = 0.01  # of accuracy: two rates as close as this are compared by three seeds
LONGEST = 7  # rates of one search
DEFAULT = f"--heads {HALF}"  # what a row is called that has no flags of its own


def search_rates(setup, rows):
    """The result of the search on the split "val": the best rate for each entry of SEARCHED that `rows`, the flags of a
    suite's rows, need, with all that was tried. Entries that were searched before are kept.

    A search begins with three rates, a factor of 2 apart, and goes on while its best is at an edge. Where the second best
    is within a point of it, both are run with two more seeds.
    """
    common = COMMON.replace("--eval-split test", "--eval-split val") + " --eval scenes-fog"
    needed = {"", "--heads 3"} | {searched_by(flags) for flags in rows}  # these two: what `selection` runs
    tried = {flags: {factor * SEARCHED[flags]: [None] for factor in (0.5, 1, 2)} for flags in SEARCHED if flags in needed}
    while new := [run for flags, rates in tried.items() for run in missing(flags, rates)]:
        runs = [f"{flags} --lr {lr:g} --seed {seed}".strip() for flags, lr, seed in new]
        for (flags, lr, seed), made in zip(new, run_all(runs, setup, "rates", common)):
            tried[flags][lr][seed] = accuracy(made, main_column(made))
        for rates in tried.values():
            extend(rates)

    best, table = {}, {}
    for flags, rates in tried.items():
        best[flags] = max(rates, key=lambda lr: fmean(rates[lr]))
        edge = " (edge)" if best[flags] in (min(rates), max(rates)) else ""
        row = {"learning rate": [best[flags]], "boxes on val": rates[best[flags]], "rates tried": [len(rates)]}
        table[f"`{flags or DEFAULT}`{edge}"] = row
    if (file := setup.out / "rates.json").exists():
        before = read_json(file)
        best, tried, table = before["rates"] | best, before["tried"] | tried, dict(before["tables"])[""] | table
    result = {"question": "Which learning rate is best for each method?", "tables": [("", table)]}
    return result | {"comparisons": [], "sentences": [], "rates": best, "tried": tried}


def missing(flags, rates):
    """The (flags, rate, seed) that a search {rate: [accuracy of each seed, None: not yet]} waits for."""
    return [(flags, lr, seed) for lr, values in rates.items() for seed, value in enumerate(values) if value is None]


def extend(rates):
    """Add to a search {rate: [accuracy of each seed]} what it wants to know next: None in the place of an accuracy."""
    best, second, *_ = sorted(rates, key=lambda lr: fmean(rates[lr]), reverse=True)
    if best in (min(rates), max(rates)) and len(rates) < LONGEST:
        rates[best / 2 if best == min(rates) else 2 * best] = [None]
    elif fmean(rates[best]) - fmean(rates[second]) <= CLOSE:
        for lr in (best, second):
            rates[lr] += [None] * (3 - len(rates[lr]))


def read_rates(setup):
    """{searched flags: learning rate}, from the folder of the results, else those of the project, which fit the tiny model
    alone. Raises InputError where neither is there, or the runs have another model."""
    file = setup.out / "rates.json"
    if not file.exists() and "--model" not in setup.more.split():
        file = RESULTS / "rates.json"
    if not file.exists():
        raise InputError(f"{file}: no such file; search the rates first: python -m experiments rates, with the same flags")
    with reading(file, "learning rates"):
        return read_json(file)["rates"]


if __name__ == "__main__":
    work()

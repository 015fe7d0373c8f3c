"""Experiments: the paper's tables, its review's demands and its open questions, each one command.

    python -m experiments rates                     search the learning rates that the suites use, once
    python -m experiments main                      run a suite
    python -m experiments all                       run every suite
    python -m experiments docs                      fill the tables of docs/experiments.md from results/
    python -m experiments drift --out results-3b --more "--model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco ..."

A suite is a question and rows. A row is a name and flags for train.py, and runs once for each seed. All rows of a seed
see the same data in the same order. Learning rates are searched on the split "val"; results come from the split "test".

Every run has a folder under --runs, which is named by its flags, so suites share equal runs. A run with a report is done.
An interrupted run continues from its last saved state. So the same command continues a suite that was killed. The flags
of --more come last, so they win: with another model say also how many --heads, with other data what to --eval on.

A suite writes SUITE.json and SUITE.png (the first column of each table) into --out. Its tables go into
docs/experiments.md if --out is the project's own folder, else into SUITE.md.
"""

import argparse
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from experiments.analyses import ANALYSES
from experiments.runs import RATES, Launcher, read_rates, run_rows, search_rates
from experiments.suites import COMMON, MORE_SEEDS, SEEDS, SUITES
from experiments.tables import RESULTS, markdown, measured, refresh_page, write_suite
from files import InputError
from harness.report import commit


def run_suite(suite, seeds, out, launcher):
    """One suite, from its runs to its files."""
    question, rows = SUITES[suite]
    launcher, rates = replace(launcher, asked_for=[]), read_rates(out)
    reports = run_rows(rows, seeds, rates, launcher, suite)

    # What the suite says beyond its rows. Some analyses train, too.
    start = time.process_time()  # without the time of those runs
    tables, sentences = [], []
    if suite in ANALYSES:
        tables, sentences = ANALYSES[suite](reports, seeds, rates, launcher, out)
    analysed = time.process_time() - start
    if rows:
        tables = [("", measured(reports)), *tables]

    # The runs of earlier calls count too.
    trained = sum(report["wall_seconds"] for report in launcher.asked_for)

    command = ["python", "-m", "experiments", suite, "--seeds", *map(str, seeds)]
    if launcher.more:
        command.append(f"--more={launcher.more}")

    result = {
        "question": question,
        "seeds": seeds,
        "common": COMMON,
        "flags": rows,
        "tables": tables,
        "sentences": sentences,
        "minutes": (trained / launcher.jobs + analysed / launcher.cores) / 60,
        "cores": launcher.cores,
        "command": shlex.join(command),
        "commit": commit(),
    }
    files = write_suite(suite, result, out)
    print(f"\n{markdown(result)}\n  written to {', '.join(map(str, files))}")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*SUITES, "all", "rates", "docs"]
    parser.add_argument("suites", nargs="+", choices=names, metavar="SUITE", help=", ".join(names))
    parser.add_argument("--seeds", nargs="+", type=int, help=f"a run of each row for each (default: {default_seeds()})")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one for each core)")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/experiments"),
        help="where the folders of the runs are (default: runs/experiments)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go (default: the project's own)")
    parser.add_argument("--more", default="", help='further flags for every run, such as "--steps 50"')
    args = parser.parse_args(argv)
    if "docs" in args.suites and args.out.resolve() != RESULTS.resolve():
        parser.error("docs: the page shows the project's own results; leave out --out")
    return args


def default_seeds():
    """In words: "0 1 2; main 0 1 2 3 4"."""
    usual = " ".join(map(str, SEEDS))
    return "; ".join([usual, *(f"{suite} {' '.join(map(str, seeds))}" for suite, seeds in MORE_SEEDS.items())])


def available_cores():
    if hasattr(os, "sched_getaffinity"):  # Linux: those that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def main(argv=None):
    args = parse_args(argv)
    cores = available_cores()
    launcher = Launcher(args.runs, args.jobs or cores, cores, args.more)
    suites = [name for name in args.suites if name in SUITES]
    if "all" in args.suites:
        suites = list(SUITES)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        # The rates come first: every suite needs them.
        if "rates" in args.suites or (suites and not (args.out / RATES).exists()):
            search_rates(launcher, args.out)
        for suite in suites:
            seeds = args.seeds or list(MORE_SEEDS.get(suite, SEEDS))
            run_suite(suite, seeds, args.out, launcher)
        if "docs" in args.suites:
            refresh_page()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""Experiments: the paper's tables, its review's demands and its open questions, each one command.

    python -m experiments rates                     search the learning rates that the suites use, once
    python -m experiments main --seeds 0 1 2 3 4    run a suite
    python -m experiments all                       run every suite
    python -m experiments docs                      fill the tables of docs/experiments.md from results/
    python -m experiments main --out results-3b --more "--model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco ..."

A suite is a question and rows. A row is a name and flags for train.py, and runs once for each seed. All rows of a seed
see the same data in the same order. Learning rates are searched on the split "val"; results come from the split "test".

Every run has a folder under --runs, which is named by its flags, so suites share equal runs. A run with a report is done.
An interrupted run continues from its last saved state. So the same command continues a suite that was killed.

A suite writes SUITE.json and SUITE.png (the first column of each table) into --out. Its tables go into
docs/experiments.md if --out is the project's own folder, else into SUITE.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from experiments.analyses import ANALYSES
from experiments.runs import RATES, Launcher, read_rates, run_rows, search_rates
from experiments.suites import SUITES
from experiments.tables import RESULTS, markdown, measured, refresh_page, write_suite
from files import InputError


def run_suite(suite, seeds, out, launcher):
    """One suite, from its runs to its files."""
    question, rows = SUITES[suite]
    reports = run_rows(rows, seeds, read_rates(out), launcher, suite)

    # What the suite says beyond its rows.
    start = time.perf_counter()
    tables, sentences = [], []
    if suite in ANALYSES:
        tables, sentences = ANALYSES[suite](reports, seeds, out, launcher)
    if rows:
        tables = [("", measured(reports)), *tables]

    # The runs of earlier calls count too.
    trained = sum(report["wall_seconds"] for found in reports.values() for report in found)
    analysed = time.perf_counter() - start

    result = {
        "question": question,
        "seeds": seeds,
        "flags": rows,
        "tables": tables,
        "sentences": sentences,
        "minutes": (trained / launcher.jobs + analysed) / 60,
        "cores": launcher.cores,
        "command": f"python -m experiments {suite} --seeds {' '.join(map(str, seeds))}",
    }
    files = write_suite(suite, result, out)
    print(f"\n{markdown(result)}\n  written to {', '.join(map(str, files))}")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*SUITES, "all", "rates", "docs"]
    parser.add_argument("suites", nargs="+", choices=names, metavar="SUITE", help=", ".join(names))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a run for each (default: 0 1 2)")
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
            run_suite(suite, args.seeds, args.out, launcher)
        if "docs" in args.suites:
            refresh_page()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""Experiments: the paper's tables, its review's demands and its open questions, each one command.

    python -m experiments main                      run a suite; its tables go to runs/results
    python -m experiments all --publish             run all; tables go to results/ and experiments/README.md
    python -m experiments rates --publish           search the learning rates that the suites use
    python -m experiments docs                      fill the tables of experiments/README.md from results/
    python -m experiments rates drift --out results-3b --more "--model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco ..."

A suite is a question and rows. A row is a name and flags for train.py, and runs once for each seed. All rows of a seed
see the same data in the same order. Learning rates are searched on the split "val"; results come from the split "test".

Every run has a folder under --runs, which is named by its flags, so suites share equal runs. A run with a report is done.
An interrupted run continues from its last saved state. So the same command continues a suite that was killed. The flags
of --more come last, so they win: with another model say also how many --heads, with other data what to --eval on.

A suite writes SUITE.json, SUITE.png (the first column of each table) and SUITE.md into --out. With --publish they become
the project's own: in results/, and the tables in experiments/README.md.
"""

import argparse
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import train
from experiments.analyses import ANALYSES
from experiments.runs import RATES, Launcher, read_rates, run_rows, search_rates
from experiments.suites import COMMON, MORE_SEEDS, SEEDS, SUITES
from experiments.tables import (
    RESULTS,
    is_published,
    markdown,
    measured,
    refresh_page,
    write_suite,
)
from harness.arguments import SEED, Parser, Range, path
from harness.processes import one_line
from harness.report import commit
from harness.state import check_place
from parts.files import InputError

TRIED = Path("runs/results")  # where results go that are not published


def run_suite(suite, seeds, rates, out, launcher):
    """One suite, from its runs to its files."""
    question, rows = SUITES[suite]
    launcher = replace(launcher, asked_for=[])
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

    result = {
        "question": question,
        "seeds": seeds,
        "common": COMMON,
        "flags": rows,
        "tables": tables,
        "sentences": sentences,
        "minutes": (trained / launcher.jobs + analysed / launcher.cores) / 60,
        "cores": launcher.cores,
        "command": command_of(suite, seeds, out, launcher.more),
        "commit": commit(),
    }
    files = write_suite(suite, result, out)
    print(f"\n{markdown(result)}\n  written to {', '.join(map(str, files))}")


def command_of(suite, seeds, out, more):
    """The command that makes this result again."""
    command = ["python", "-m", "experiments", suite, "--seeds", *map(str, seeds)]
    if is_published(out):
        command.append("--publish")
    elif out != TRIED:
        command += ["--out", str(out)]
    if more:
        command.append(f"--more={more}")
    return shlex.join(command)


def rates_for(out, more):
    """The learning rates that were searched for these results, else those of the project, which fit the tiny model alone.
    Raises InputError where neither is there, or --more names another model."""
    if (out / RATES).exists():
        return read_rates(out)
    if (RESULTS / RATES).exists() and "--model" not in more.split():
        return read_rates(RESULTS)
    raise InputError(
        f"{out / RATES}: no such file; search the learning rates first, with the same flags: "
        "python -m experiments rates ..."
    )


def parse_args(argv=None):
    usage = "python -m experiments SUITE ... [flags]"
    parser = Parser(usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*SUITES, "all", "rates", "docs"]
    parser.add_argument("suites", nargs="+", choices=names, metavar="SUITE", help=", ".join(names))
    parser.add_argument(
        "--seeds", nargs="+", type=SEED, help=f"a run of each row for each (default: {default_seeds()})"
    )
    parser.add_argument("--jobs", type=Range(int, 1, 1024), help="runs at a time (default: one for each core)")
    parser.add_argument(
        "--runs",
        type=folder,
        default=Path("runs/experiments"),
        help="where the folders of the runs are (default: runs/experiments)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=folder, default=TRIED, help=f"where the results go (default: {TRIED})")
    where.add_argument(
        "--publish",
        dest="out",
        action="store_const",
        const=RESULTS,
        help="make them the project's own: results/ and experiments/README.md",
    )
    parser.add_argument("--more", default="", help='further flags for every run, such as "--steps 50"')
    args = parser.parse_args(argv)
    if len(set(args.seeds or [])) < len(args.seeds or []):
        parser.error(f"argument --seeds: {' '.join(map(str, args.seeds))}: each can be given once")
    return args


def folder(text):
    return Path(path(text))


def default_seeds():
    """In words: "0 1 2; main 0 1 2 3 4"."""
    usual = " ".join(map(str, SEEDS))
    return "; ".join([usual, *(f"{suite} {' '.join(map(str, seeds))}" for suite, seeds in MORE_SEEDS.items())])


def available_cores():
    if hasattr(os, "sched_getaffinity"):  # Linux: those that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["bench"]:
        from experiments import bench  # needs transformers and peft

        return bench.main(argv[1:])
    args = parse_args(argv)
    cores = available_cores()
    launcher = Launcher(args.runs, args.jobs or cores, cores, args.more)
    suites = [name for name in args.suites if name in SUITES]
    if "all" in args.suites:
        suites = list(SUITES)
    try:
        # What is wrong with the flags is said before anything runs.
        train.arguments(f"{COMMON} {args.more}".split())
        check_place(args.runs, "--runs")
        check_place(args.out)
        args.out.mkdir(parents=True, exist_ok=True)

        # The rates come first: every suite needs them.
        if "rates" in args.suites:
            search_rates(launcher, args.out)
        for suite in suites:
            seeds = args.seeds or list(MORE_SEEDS.get(suite, SEEDS))
            run_suite(suite, seeds, rates_for(args.out, args.more), args.out, launcher)
        if "docs" in args.suites:
            refresh_page()
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

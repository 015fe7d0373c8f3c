"""The paper's tables, its review's demands and its open questions: each one command.

    python -m experiments rates                     the learning rates that the suites use, searched once
    python -m experiments main --seeds 0 1 2 3 4    a suite
    python -m experiments all                       every suite
    python -m experiments main --out results-3b --more "--model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco ..."

A suite is a question and rows; a row is a name and flags for train.py, and runs once for every seed. All rows of a seed
see the same data in the same order. A run has a folder under --runs, named by its flags, so that suites share runs; one
that has a report is done, one that was interrupted goes on from its last saved state: the same command resumes a killed
suite. A suite writes SUITE.json, SUITE.md (its tables) and SUITE.png (the first column of each table) into --out.
Learning rates are searched on the split "val", results come from the split "test".
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from experiments.analyses import ANALYSES
from experiments.runs import HERE, run_rows, search_rates
from experiments.suites import SUITES
from experiments.tables import MEASURES, render
from files import InputError, write_text


def run_suite(suite, args):
    question, rows = SUITES[suite]
    reports = run_rows(rows, args)
    start = time.perf_counter()
    tables, sentences = ANALYSES[suite](reports, args) if suite in ANALYSES else ([], [])
    trained = sum(r["wall_seconds"] for rs in reports.values() for r in rs) / args.jobs  # those of earlier calls too
    measured = {
        name: {column: [value(r) for r in rs] for column, (value, _) in MEASURES.items()}
        for name, rs in reports.items()
    }
    result = {
        "question": question,
        "seeds": args.seeds,
        "flags": rows,
        "tables": [*([("", measured)] if rows else []), *tables],
        "sentences": sentences,
        "minutes": (trained + time.perf_counter() - start) / 60,
        "cores": args.cores,
        "command": f"python -m experiments {suite} --seeds {' '.join(map(str, args.seeds))}",
    }
    write_text(args.out / f"{suite}.json", json.dumps(result, indent=1) + "\n")
    render(args.out / f"{suite}.json")
    print(f"\n{(args.out / suite).with_suffix('.md').read_text()}\n  written to {args.out}/{suite}.json, .md, .png")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=[*SUITES, "rates", "all"], metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one a core)")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="where the runs' folders are")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the tables go (default: results)")
    parser.add_argument("--more", default="", help='further flags for every run, such as "--steps 50"')
    args = parser.parse_args(argv)
    args.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    args.jobs, args.suite = args.jobs or args.cores, "rates"
    try:
        if "rates" in args.suites or not (args.out / "learning-rates.json").exists():
            search_rates(args)
        for suite in SUITES if "all" in args.suites else [s for s in args.suites if s != "rates"]:
            args.suite = suite
            run_suite(suite, args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""Experiments: the paper's tables, its review's demands and its open questions, each one command.

    python -m experiments main                      run a suite; write its results and its part of experiments/README.md
    python -m experiments rates all                 search the learning rates that these suites use, then run them
    python -m experiments rates main --out results-3b --more "--model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco=FOLDER"

The same command continues a suite that was stopped. The flags of --more come last, so they win: with another model say
also how many --heads, with other data what to --eval on.
"""

import argparse
import shlex
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import train
from experiments import analyses, selection, trained
from experiments.comparisons import judged
from experiments.runs import Setup, read_rates, run_rows, search_rates
from experiments.suites import COMMON, SUITES
from experiments.tables import RESULTS, measured, write_result
from harness.arguments import CORES, Parser
from harness.processes import in_one_line
from harness.report import commit
from parts.files import reading

ANALYSES = {  # suite: (reports, setup) -> further tables, comparisons, sentences
    "compare": partial(analyses.cost_curves, name="compare"),
    "cost": analyses.cost_curves,
    "ratio": analyses.savings,
    "selection": selection.selecting,
    "stability": trained.stable,
    "attention": trained.attending,
}


def run_suite(name, setup):
    """One suite, from its runs to its result."""
    suite = SUITES[name]
    setup = replace(setup, seeds=setup.seeds or suite.seeds, rates=read_rates(setup))
    reports = run_rows(suite.rows, setup, name)
    tables = [("", measured(reports))] if reports else []
    comparisons = [analyses.compared(reports, *names) for names in suite.comparisons]
    further = ANALYSES[name](reports, setup) if name in ANALYSES else {}
    comparisons = judged([c for c in comparisons + further.pop("comparisons", []) if c])
    return {
        "question": suite.question,
        "tables": tables + further.pop("tables", []),
        "comparisons": comparisons,
        "sentences": [analyses.deciding(comparisons)] if name == "main" else [],
        **further,
        "flags": suite.rows,
        "rates": setup.rates,
        "seeds": setup.seeds,
    }


def parse_args(argv=None):
    usage = "python -m experiments SUITE ... [flags]"
    parser = Parser(usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("suites", nargs="+", choices=[*SUITES, "all", "rates"], metavar="SUITE", help=f"{', '.join(SUITES)}, all or rates")
    add("--seeds", nargs="+", type=int, default=(), help="a run of each row for each (default: the suite's)")
    add("--jobs", type=int, default=CORES, help="runs at a time (default: one for each core)")
    add("--runs", type=Path, default=Path("runs/experiments"), help="where the folders of the runs are")
    add("--out", type=Path, default=RESULTS, help="where the results go (default: experiments/)")
    add("--more", default="", help='further flags for every run, such as "--steps 50"')
    args = parser.parse_args(argv)
    if args.jobs < 1 or min(args.seeds, default=0) < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error("--jobs is at least 1; --seeds are numbers from 0, each of them once")
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["bench"]:
        from experiments import bench  # needs transformers and peft

        return bench.main(argv[1:])
    args = parse_args(argv)
    flags = [word for word in argv if word not in args.suites]
    suites = list(SUITES) if "all" in args.suites else [name for name in args.suites if name in SUITES]
    with in_one_line("the same command continues"):
        # Wrong flags are refused before anything runs.
        train.parse_args(f"{COMMON} {args.more}".split())
        for folder in (args.out, args.runs):
            with reading(folder, "a folder that can be made"):
                folder.mkdir(parents=True, exist_ok=True)

        # The rates come first: every suite needs them. Without a suite beside them they are searched for all.
        rows = [flags for name in suites or SUITES for flags in SUITES[name].rows.values()]
        setup = Setup(args.runs, args.out, args.jobs, CORES, args.more, tuple(args.seeds))
        for name in ["rates"] * ("rates" in args.suites) + suites:
            setup = replace(setup, reports=[])
            begun = time.process_time()
            result = search_rates(setup, rows) if name == "rates" else run_suite(name, setup)
            seconds = sum(report["wall_seconds"] for report in setup.reports) / args.jobs  # of earlier calls, too
            result["minutes"] = (seconds + time.process_time() - begun) / 60
            result["command"] = shlex.join(["python", "-m", "experiments", name, *flags])
            write_result(name, result | {"common": COMMON, "commit": commit(), "cores": CORES}, args.out)


if __name__ == "__main__":
    main()

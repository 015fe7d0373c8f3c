"""What a suite says beyond its rows and comparisons, from the reports of its runs alone; trained.py and selection.py have
the analyses that measure models again. Each returns any of the tables, comparisons and sentences of a result."""

from itertools import cycle
from statistics import fmean

import train
from experiments import charts
from experiments.comparisons import MARGIN, POINTS, compare
from experiments.loading import folder, scene_scores
from experiments.runs import run_rows, selection_flag
from experiments.suites import COMMON, PAIRS, SHARES
from experiments.tables import COSTS, accuracy, main_column, measured
from parts.backbones.checkpoint import read_config
from parts.files import reading
from parts.tasks.rows import json_rows

LORA = "LoRA, rank 8"


def compared(reports, row, against, column=None):
    """The comparison of two rows; of their boxes, if no column is named."""
    column = column or main_column(reports[row][0])
    ours, theirs = ([scene_scores(report, column) for report in reports[name]] for name in (row, against))
    return compare(row, against, column, ours, theirs)


def deciding(comparisons):
    """The review's test in a sentence: at which budgets do probed heads come close to LoRA while random ones do not?

    It shows at a budget if probed heads are not worse than LoRA by more than the margin, random heads are worse than
    LoRA, and probed heads better than random ones. What is undecided counts for neither side.
    """
    says = {(c["row"], c["against"]): c.get("verdict", "") for c in comparisons}
    lows = {(c["row"], c["against"]): c["interval"][0] for c in comparisons if c["interval"]}
    shown = []
    for probed, drawn in PAIRS:
        close = lows.get((probed, LORA), -1) > -MARGIN
        if close and says[drawn, LORA].startswith("worse") and says[probed, drawn] == "better":
            shown.append(probed.removeprefix("Image-LoRA, "))
    answer = f"shown for {' and '.join(shown)}" if shown else "shown at no budget"
    return f"Probed heads are not worse than LoRA by more than {POINTS}, and as many random ones are worse: {answer}."


def cost_curves(reports, setup):
    """Figure 1 of the paper: boxes against parameters and against adapter FLOPs, a curve for each method."""
    panels = {}
    for cost in ("parameters", "FLOPs a step"):
        value, _ = COSTS[cost]
        curves = {}
        for row, of_seeds in reports.items():
            curve, slash, _ = row.partition(" / ")
            if slash:
                point = value(of_seeds[0]), fmean(accuracy(report, "boxes") for report in of_seeds)
                curves.setdefault(curve, []).append(point)
        panels[f"boxes against {cost}"] = (cost, "boxes", {name: sorted(points) for name, points in curves.items()})
    charts.curves(setup.out / "cost-curves.png", "What boxes cost", panels)
    return {}


def uneven_heads(reports, setup):
    """A selection that is uneven on purpose, with 1, half and all heads of a layer in turn: what does 1/sqrt(n) do?"""
    c = read_config(train.arguments(f"{COMMON} {setup.more}".split()).model)
    sizes = cycle((1, max(1, c.value_heads // 2), c.value_heads))
    heads = {layer: list(range(n)) for layer, n in zip(range(c.layers), sizes)}
    flag = selection_flag(heads, setup)
    rows = {"uneven heads": flag, "uneven heads, no 1/sqrt(n)": f"{flag} --no-norm"}
    reports = run_rows(rows, setup, "uneven heads")
    return {
        "tables": [("An uneven selection of heads", measured(reports))],
        "comparisons": [compared(reports, *reversed(rows))],
    }


def savings(reports, setup):
    """The visual share of the tokens, and the adapter FLOPs of Image-LoRA over those of LoRA."""
    table = {}
    for share in SHARES:
        loras, ours = reports[f"{share}, LoRA"], reports[f"{share}, Image-LoRA"]
        file = folder(loras[0]) / "log.jsonl"  # a line a step
        with reading(file, "the log of a run"):
            steps = [step for step, _ in json_rows(file)]
            visual = sum(step["visual_tokens"] for step in steps) / sum(step["tokens"] for step in steps)
        pairs = zip(ours, loras)
        ratio = fmean(a["adapter_flops_per_step"] / b["adapter_flops_per_step"] for a, b in pairs)
        table[share] = {"visual share": [visual], "FLOPs over LoRA's": [ratio], "one over the other": [ratio / visual]}
    return {"tables": [("Visual share of the tokens and adapter FLOPs", table)]}

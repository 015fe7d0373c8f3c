"""What a suite says beyond its rows and comparisons, from the reports of its runs alone; trained.py and selection.py have
the analyses that measure models again. Each returns any of the tables, comparisons and sentences of a result."""

from statistics import fmean

from experiments import charts
from experiments.comparisons import MARGIN, POINTS, compare
from experiments.loading import folder, scene_scores
from experiments.suites import PAIRS, SHARES
from experiments.tables import COSTS, accuracy, main_column
from parts.tasks.rows import json_rows

LORA = "LoRA, rank 8"


def compared(reports, row, against, column=None):
    """The comparison of two rows; of their boxes, if no column is named. None: the column was not measured."""
    column = column or main_column(reports[row][0])
    if accuracy(reports[row][0], column) is None:
        return None
    ours, theirs = ([scene_scores(report, column) for report in reports[name]] for name in (row, against))
    return compare(row, against, column, ours, theirs)


def deciding(comparisons):
    """The review's test in a sentence: at which budgets do probed heads come close to LoRA while random ones do not?

    It shows at a budget if probed heads are not worse than LoRA by more than the margin, random heads are worse than
    LoRA, and probed heads better than random ones. What is undecided counts for neither side.
    """
    by_rows = {(c["row"], c["against"]): c for c in comparisons if c["interval"]}
    shown = []
    for probed, drawn in PAIRS if by_rows else ():
        close = by_rows[probed, LORA]["interval"][0] > -MARGIN
        random_fails = by_rows[drawn, LORA]["verdict"].startswith("worse")
        if close and random_fails and by_rows[probed, drawn]["verdict"] == "better":
            shown.append(probed.removeprefix("Image-LoRA, "))
    budgets = " and ".join(shown) or "no budget"
    return f"Probed heads are within {POINTS} of LoRA or better, and as many random ones are worse: shown for {budgets}."


def cost_curves(reports, setup, name="cost"):
    """Figure 1 of the paper: boxes against parameters and against adapter FLOPs, a curve for each method: "curve / point"."""
    panels = {}
    for panel in ("parameters", "FLOPs a step"):
        curves, (key, _) = {}, COSTS[panel]
        for row, of_seeds in reports.items():
            if cost := of_seeds[0][key]:  # else it is the base
                boxes = fmean(accuracy(report, "boxes") for report in of_seeds)
                curves.setdefault(row.partition(" / ")[0], []).append((cost, boxes))
        panels[panel] = {name: sorted(points) for name, points in curves.items()}
    charts.curves(setup.out / f"{name}-curves.png", panels)
    return {}


def savings(reports, setup):
    """The visual share of the tokens, and the adapter FLOPs of Image-LoRA over those of LoRA."""
    table = {}
    for share in SHARES:
        loras, ours = reports[f"{share}, LoRA"], reports[f"{share}, Image-LoRA"]
        file = folder(loras[0]) / "log.jsonl"  # a line a step
        steps = [step for step, _ in json_rows(file)]
        visual = sum(step["visual_tokens"] for step in steps) / sum(step["tokens"] for step in steps)
        pairs = zip(ours, loras)
        ratio = fmean(a["adapter_flops_per_step"] / b["adapter_flops_per_step"] for a, b in pairs)
        table[share] = {"visual share": [visual], "FLOPs over LoRA's": [ratio], "one over the other": [ratio / visual]}
    return {"tables": [("Visual share of the tokens and adapter FLOPs", table)]}

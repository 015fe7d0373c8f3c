"""What a suite says beyond its rows and comparisons, from the reports of its runs alone; trained.py and selection.py have
the analyses that measure models again. Each returns any of the tables, comparisons and sentences of a result."""

from itertools import cycle
from statistics import fmean

from experiments.comparisons import MARGIN, POINTS, compare
from experiments.loading import folder, scene_scores
from experiments.suites import PAIR, SHARES
from experiments.tables import COSTS, accuracy, main_column
from harness import figures
from harness.figures import BLACK, BLUE, GREEN, GREY, ORANGE, RED
from parts.tasks.rows import json_rows

LORA = "LoRA, rank 8"
COLOURS = (BLUE, ORANGE, GREEN, (204, 121, 167), (86, 180, 233), RED, BLACK, GREY)  # of methods, in their order
SIDE, GAP, TOP = 420, 130, 100  # of a panel of a picture; between panels; above them


def compared(reports, row, against, column=None):
    """The comparison of two rows; of their boxes, if no column is named. None: the column was not measured."""
    column = column or main_column(reports[row][0])
    if accuracy(reports[row][0], column) is None:
        return None
    ours, theirs = ([scene_scores(report, column) for report in reports[name]] for name in (row, against))
    return compare(row, against, column, ours, theirs)


def deciding(comparisons):
    """The review's test in a sentence: do probed heads come close to LoRA while as many random ones do not?

    It shows if probed heads are not worse than LoRA by more than the margin, random heads are worse than LoRA, and probed
    heads better than random ones. What is undecided counts for neither side.
    """
    tested, (probed, drawn) = [c for c in comparisons if c["interval"]], PAIR
    by_rows = {(c["row"], c["against"]): c for c in reversed(tested)}  # of boxes, which come first
    shown = by_rows.keys() >= {(probed, LORA), (drawn, LORA), PAIR} and by_rows[probed, LORA]["interval"][0] > -MARGIN
    shown = shown and by_rows[drawn, LORA]["verdict"].startswith("worse") and by_rows[PAIR]["verdict"] == "better"
    budget = probed.removeprefix("Image-LoRA, ") if shown else "no budget"
    return f"Probed heads are within {POINTS} of LoRA or better, and as many random ones are worse: shown for {budget}."


def cost_curves(reports, setup, name="cost"):
    """Figure 1 of the paper: boxes against parameters and against adapter FLOPs, a curve for each method: "curve / point"."""
    methods = dict.fromkeys(row.partition(" / ")[0] for row, (first, *_) in reports.items() if first[COSTS["parameters"][0]])
    colours = dict(zip(methods, cycle(COLOURS)))
    picture, pen = figures.canvas(GAP + 2 * (SIDE + GAP), TOP + SIDE + 110 + 34 * len(colours))
    figures.label(pen, (20, 16), "What boxes cost", 26)
    for i, cost in enumerate(("parameters", "FLOPs a step")):
        points = {method: [] for method in methods}
        for row, of_seeds in reports.items():
            if x := of_seeds[0][COSTS[cost][0]]:  # the base has none
                boxes = fmean(accuracy(report, "boxes") for report in of_seeds)
                points[row.partition(" / ")[0]].append((x, 100 * boxes))
        lines, left = [(colours[method], sorted(points[method])) for method in methods], GAP + i * (SIDE + GAP)
        figures.chart(pen, (left, TOP, left + SIDE, TOP + SIDE), f"boxes (%) against {cost}", cost, lines, log_x=True)
    for i, (method, colour) in enumerate(colours.items()):
        y = TOP + SIDE + 110 + 34 * i
        pen.circle((GAP + 7, y), 6, "white", colour, 2)
        figures.label(pen, (GAP + 22, y), method, 19, "lm")
    figures.save(picture, setup.out / f"{name}-curves.png")
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

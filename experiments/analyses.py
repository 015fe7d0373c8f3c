"""What a suite says beyond its rows.

Here are the analyses that need only the reports of the runs; heads.py and inside.py have those that measure trained
models again. Each returns tables, sentences or both; ANALYSES, at the end, says which suite has which.
"""

import re
from statistics import mean

from experiments import charts
from experiments.comparisons import POINTS, compared, not_worse, spearman
from experiments.heads import faithful, moving, stable
from experiments.inside import attending, normalization
from experiments.stage import folder, scores_of
from experiments.suites import ALONE, NEW_WORDS, SWITCHES
from experiments.tables import accuracies, accuracy, values
from parts.files import reading
from parts.tasks.rows import json_rows

# ========== Against LoRA ==========


def lora_of(row, rows):
    """The first LoRA among the rows that was trained on the same data."""
    return next(other for other in rows if other.startswith("LoRA") and other.endswith(ALONE) == row.endswith(ALONE))


def compare_with_lora(reports):
    """Sentences: every row against LoRA on the same data, and probed heads against as many random ones."""
    found, sentences = accuracies(reports), []
    for row in reports:
        lora = lora_of(row, reports)
        if row not in ("base", lora):
            sentences.append(compared(f"{row}, against {lora}", found[row], found[lora]))
    for row in reports:
        if "probed" in row:
            drawn = row.replace("probed", "random")
            sentences.append(compared(f"{row}, against random ones", found[row], found[drawn]))
    return sentences


def compare_by_day(reports):
    """Sentences: what Image-LoRA on all heads keeps of the skills by day, against LoRA on the same data."""
    sentences = []
    for row in reports:
        if row.startswith("Image-LoRA, all heads"):
            lora = lora_of(row, reports)
            for column in ("boxes by day", "words by day"):
                ours, theirs = values(reports[row], column), values(reports[lora], column)
                if None not in ours + theirs:
                    sentences.append(compared(f"{row}, {column}, against {lora}", ours, theirs))
    return sentences


def where_probing_decides(reports):
    """A sentence: the review's test, whose failure would refute that the probe finds what matters. None of one seed."""
    found = accuracies(reports)
    lora = found[lora_of("", reports)]
    if len(lora) < 2:
        return []
    decided, each = [], []
    for row in reports:
        if "probed" in row:
            heads = re.search(r"(\d+) probed", row)[1]
            probed, drawn = (not_worse(found[name], lora) for name in (row, row.replace("probed", "random")))
            who = {(True, True): "both", (True, False): "probed alone", (False, True): "random alone"}
            each.append(f"{heads} heads: {who.get((probed, drawn), 'neither')}")
            if probed and not drawn:
                decided.append(heads)
    question = (
        f"At which budget do probed heads come close to LoRA (not worse at a margin of {POINTS}) while as many random ones"
        " do not?"
    )
    answer = f"At {' and '.join(decided)} heads" if decided else "At none"
    return [f"{question} {answer} ({'; '.join(each)})."]


def compare_pairs(reports):
    """Sentences: Image-LoRA against LoRA, in each look or at each visual share. Where the words are new, words count."""
    sentences = []
    for row in reports:
        if row.endswith(", LoRA"):
            name = row.removesuffix(", LoRA")
            ours, lora = reports[f"{name}, Image-LoRA"], reports[row]
            if name == NEW_WORDS:
                ours, lora = values(ours, "words"), values(lora, "words")
            else:
                ours, lora = map(accuracy, ours), map(accuracy, lora)
            sentences.append(compared(f"{name}, Image-LoRA against LoRA", ours, lora))
    return sentences


# ========== Against another row ==========


def compare_rows(reports, rows, usual):
    """Sentences: each of the rows against the row `usual`."""
    found = accuracies(reports)
    return [compared(f"{row}, against {usual}", found[row], found[usual]) for row in rows]


def heads_of_layers(reports):
    """A sentence: how unevenly the heads are spread over the layers. 1/sqrt(n) can only matter if they are."""
    counts = []
    for report in reports["as in the paper"]:
        counts.append([len(heads) for heads in report["heads"].values()])
    return [f"Heads picked in each adapted layer, by seed: {counts}; 1/sqrt(n) matters where these differ."]


# ========== Tables ==========


def savings(reports, out):
    """A table: the visual share of the tokens, and the adapter FLOPs of Image-LoRA over those of LoRA. The second is in
    proportion to the first. Also draws ratio-flops.png: one against the other."""
    table = {}
    for row, loras in reports.items():
        if not row.endswith(", LoRA"):
            continue
        name = row.removesuffix(", LoRA")

        # The share of visual tokens, from the log of the first run: one line a step.
        file = folder(loras[0]) / "log.jsonl"
        with reading(file, "the log of a run"):
            steps = [step for step, _ in json_rows(file)]
            visual = sum(step["visual_tokens"] for step in steps) / sum(step["tokens"] for step in steps)

        # FLOPs against FLOPs, seed by seed.
        pairs = zip(reports[f"{name}, Image-LoRA"], loras)
        ratio = mean(ours["adapter_flops_per_step"] / lora["adapter_flops_per_step"] for ours, lora in pairs)
        table[name] = {"visual share": [visual], "FLOPs over LoRA's": [ratio], "one over the other": [ratio / visual]}

    shares = [(row["visual share"][0], row["FLOPs over LoRA's"][0]) for row in table.values()]
    of_x, of_y = "visual share of the tokens", "adapter FLOPs of Image-LoRA / LoRA"
    proportional = [(0, 0)] + shares
    drawn = {"In proportion": (of_x, of_y, {"measured, with the origin": proportional})}
    charts.scatter(out / "ratio-flops.png", "What Image-LoRA costs, against the visual share", drawn)
    return [("Visual share of the tokens and adapter FLOPs", table)]


def agreement(reports):
    """A table: rank correlation of the criteria's scores, seed by seed."""
    scores = {}
    for criterion, found in reports.items():
        if criterion != "random":  # which has no scores
            scores[criterion] = [scores_of(report).flatten().tolist() for report in found]
    table = {}
    for a, of_a in scores.items():
        table[a] = {}
        for b, of_b in scores.items():
            table[a][b] = [spearman(x, y) for x, y in zip(of_a, of_b)]
    return [("Rank correlation of the scores", table)]


# ========== Which suite has which ==========


def main(reports, *_):
    return [], [*where_probing_decides(reports), *compare_with_lora(reports), *compare_by_day(reports)]


def ablation(reports, seeds, rates, launcher, _):
    tables, sentences = normalization(seeds, rates, launcher)
    switched = compare_rows(reports, SWITCHES, "as in the paper")
    return tables, [*switched, *heads_of_layers(reports), *sentences]


def criteria(reports, *_):
    others = [criterion for criterion in reports if criterion != "random"]
    found = accuracies(reports)
    without_data = []
    if "weight-norm" in found:
        without_data = [compared("weight-norm, against rank1", found["weight-norm"], found["rank1"])]
    return agreement(reports), [*compare_rows(reports, others, "random"), *without_data]


def ratio(reports, seeds, rates, launcher, out):
    return savings(reports, out), compare_pairs(reports)


ANALYSES = {  # suite: (reports, seeds, rates, launcher, out) -> (tables, sentences)
    "main": main,
    "ablation": ablation,
    "ratio": ratio,
    "criteria": criteria,
    "faithful": faithful,
    "stability": stable,
    "drift": moving,
    "attention": attending,
    "bottleneck": lambda reports, *_: ([], compare_with_lora(reports)),
    "looks": lambda reports, *_: ([], compare_pairs(reports)),
}

"""Analyses of heads: what a trained adapter loses without each of them, the best ones by that, and what other probes pick."""

import math
from functools import partial
from statistics import mean, median

import torch

from experiments import charts
from experiments.comparisons import compared, jaccard, spearman
from experiments.runs import run_selections
from experiments.stage import (
    attached,
    model_and_examples,
    saved_steps,
    scores_of,
    update_replaced,
)
from experiments.suites import FEW
from experiments.tables import OVERLAP, accuracies, measured
from probe import select_heads

# ========== Switched off ==========


def without_head(update, head, size):
    """The update of a layer's values, but for the visual tokens in one head (`size` columns): there the values stay frozen."""

    def forward(v, x, visual_index):
        tuned = update(v.clone(), x, visual_index)
        if visual_index is not None:
            columns = slice(head * size, (head + 1) * size)
            tuned.flatten(0, 1)[visual_index, columns] = v.flatten(0, 1)[visual_index, columns]
        return tuned

    return forward


def without_each_head(adapter, vlm, measure):
    """{(layer, head): what measure() says without the adapter's update of that head at visual tokens}, for each value head
    that it adapts. A LoRA adapts all; what it does to queries, keys, outputs and text tokens stays."""
    every_head = {layer: range(vlm.config.value_heads) for layer in range(vlm.config.layers)}
    found = {}
    for layer, heads in (adapter.heads or every_head).items():
        for head in heads:
            replace = partial(without_head, head=head, size=vlm.config.head_size)
            with update_replaced(vlm, layer, replace):
                found[layer, head] = measure()
    return found


def costliest(rises, budget):
    """{(layer, head): rise of the loss} -> the `budget` heads with the largest rises, {layer: [heads]}."""
    heads = {}
    for layer, head in sorted(sorted(rises, key=rises.get, reverse=True)[:budget]):
        heads.setdefault(layer, []).append(head)
    return heads


def costs(stage, ours, lora):
    """What a trained Image-LoRA and a trained LoRA lose on the stage without each head, three times {(layer, head): cost}:
    accuracy of Image-LoRA, rise of its loss, rise of LoRA's loss."""
    batches = stage.batches(50, share_images=True)

    @torch.no_grad()
    def loss():
        return mean(stage.vlm.loss(batch).item() for batch in batches)

    def accuracy_and_loss():
        return mean(prediction["score"] for prediction in stage.predict()), loss()

    with attached(ours, stage.vlm) as adapter:
        best, lowest = accuracy_and_loss()
        without = without_each_head(adapter, stage.vlm, accuracy_and_loss)
    lost = {head: best - right for head, (right, _) in without.items()}
    risen = {head: higher - lowest for head, (_, higher) in without.items()}

    with attached(lora, stage.vlm) as adapter:
        lowest = loss()
        without = without_each_head(adapter, stage.vlm, loss)
    return lost, risen, {head: higher - lowest for head, higher in without.items()}


def faithful(reports, seeds, rates, launcher, out):
    """Tables and sentences. Every head of a trained Image-LoRA, and of a trained LoRA, is switched off in turn: do loss and
    accuracy on held-out examples follow the head's probe score? Then the heads that cost most, the oracle's, are trained.
    Also draws faithful-heads.png: the rise of the loss against the score, a point for each head.

    The held-out examples are of the split "val": what is chosen by them is compared on "test".
    """
    stage = model_and_examples(launcher.more, split="val")
    found = {}  # {what is correlated: a value for each seed}
    medians, worst, oracles = [], [], []
    points = {"Image-LoRA": {}, "LoRA": {}}  # {seed: [(score, rise of the loss) of each head]}
    for seed, ours, lora in zip(seeds, reports["Image-LoRA, all heads"], reports["LoRA"]):
        lost, risen, risen_in_lora = costs(stage, ours, lora)
        scores = {
            (layer, h): score for layer, row in enumerate(scores_of(ours).tolist()) for h, score in enumerate(row)
        }
        pairs = {
            "score and lost accuracy": (lost, scores),
            "score and rise of the loss": (risen, scores),
            "score and rise of the loss in LoRA": (risen_in_lora, scores),
            "rise of the loss in Image-LoRA and in LoRA": (risen, risen_in_lora),
        }
        for name, (a, b) in pairs.items():
            row = found.setdefault(name, {"rank correlation": []})
            row["rank correlation"].append(spearman(list(a.values()), [b[head] for head in a]))
        medians.append(median(lost.values()))
        worst.append(max(lost.values()))
        oracles.append(costliest(risen, FEW))
        for method, rises in (("Image-LoRA", risen), ("LoRA", risen_in_lora)):
            relative = {head: math.sqrt(score / max(scores.values())) for head, score in scores.items()}
            points[method][f"seed {seed}"] = [(relative[head], rise) for head, rise in rises.items()]

    of_x, of_y = "probe score (square root, over the largest)", "rise of the loss without the head"
    drawn = {f"trained {method}": (of_x, of_y, of_seeds) for method, of_seeds in points.items()}
    charts.scatter(
        out / "faithful-heads.png", "Does a head's probe score say what a trained adapter loses without it?", drawn
    )

    trained = run_selections("oracle", oracles, seeds, rates, launcher)
    drops = {"the median head": {"lost accuracy": medians}, "the worst head": {"lost accuracy": worst}}
    tables = [
        ("Over the heads of a trained adapter", found),
        ("Accuracy lost without one head", drops),
        (f"The {FEW} heads whose removal raises the loss most, trained alone", measured({"oracle heads": trained})),
    ]
    accuracy_of_row = accuracies(reports | {"oracle": trained})
    sentences = []
    for row in ("probed heads", "random heads"):
        comparison = f"{FEW} {row}, against the oracle's"
        sentences.append(compared(comparison, accuracy_of_row[row], accuracy_of_row["oracle"]))
    return tables, sentences


# ========== Probed elsewhere, and again ==========

WRONG = ("day", "negative")  # looks to probe on, for training on the usual data


def agreeing(a, b):
    """How alike two probes are, by their scores [L, G]: the two measures that OVERLAP names."""
    overlap = jaccard(select_heads(a, FEW), select_heads(b, FEW))
    return overlap, spearman(a.flatten().tolist(), b.flatten().tolist())


def stable(reports, seeds, rates, launcher, _):
    """Tables and sentences: probes of other sizes, seeds and looks, against one with 256 examples of the usual data and a
    seed of its own; and the accuracy with heads that were probed on a wrong look."""
    usual = model_and_examples(launcher.more, split="train", limit=1200)
    reference = {criterion: usual.probe(256, 99, criterion) for criterion in ("rank1", "exact")}
    overlaps, trained = {}, {}

    def compare(name, stage, count, criterion="rank1"):
        found = [agreeing(stage.probe(count, seed, criterion), reference[criterion]) for seed in seeds]
        overlaps[name] = dict(zip(OVERLAP, zip(*found)))

    for count in (1, 4, 16, 64, 256):
        plural = "s" if count > 1 else ""
        compare(f"{count} example{plural}", usual, count)
    for count in (1, 4, 16, 64):  # and without the noise of drawing A
        plural = "s" if count > 1 else ""
        compare(f"criterion exact, {count} example{plural}", usual, count, "exact")
    for look in ("day", "dusk", "fog", "noise", "negative"):
        stage = model_and_examples(launcher.more, f"--data scenes-{look}", split="train", limit=1200)
        compare(f"look {look}, 256 examples", stage, 256)
        if look in WRONG:
            chosen = [select_heads(stage.probe(64, seed), FEW) for seed in seeds]
            trained[f"probed on the look {look}"] = run_selections(f"probed-{look}", chosen, seeds, rates, launcher)

    found = accuracies(reports | trained)
    right = "probed on the usual data"
    sentences = [compared(f"{FEW} heads {row}, against those {right}", found[row], found[right]) for row in trained]
    tables = [
        ("Trained on the usual data with heads of another look", measured(trained)),
        ("Probes, against one with 256 other examples", overlaps),
    ]
    return tables, sentences


def moving(reports, seeds, rates, launcher, _):
    """A table: the model probed at its saved states."""
    stage = model_and_examples(launcher.more, split="train", limit=1200)
    table = {}
    for seed, report in zip(seeds, reports["Image-LoRA, all heads"]):
        first = stage.probe(64, seed)
        for name, scores in probes_of_training(stage, report, seed):
            row = table.setdefault(name, {column: [] for column in OVERLAP})
            for column, value in zip(OVERLAP, agreeing(scores, first)):
                row[column].append(value)
    return [("Probes of the model in training, against one before it", table)], []


def probes_of_training(stage, report, seed):
    """Yield (name, scores [L, G]): a second probe of the frozen model, then the model at each saved state of a run."""
    yield "before, other examples", stage.probe(64, seed + 1000)
    with attached(report, stage.vlm) as adapter:
        for step in saved_steps(report, adapter):
            yield f"after {step} steps", stage.probe(64, seed)

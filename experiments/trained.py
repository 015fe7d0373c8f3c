"""Analyses that measure models again: probes by other examples and of trained models, heads switched off, attention."""

from statistics import fmean

import torch

from experiments.analyses import compared
from experiments.comparisons import jaccard, spearman
from experiments.loading import attached, load_subject, scores_of
from experiments.runs import run_selections
from experiments.suites import FEW
from experiments.tables import measured
from harness.criteria import visual_attention
from probe import select_heads

REFERENCE = 256, 99  # examples and seed of the probe that others are compared with; no run has this seed
WRONG = ("day", "negative")  # looks to probe on, for training on the usual data


def by_head(scores):
    """Scores [L, G] -> {(layer, head): score}."""
    return {(layer, h): score for layer, row in enumerate(scores.tolist()) for h, score in enumerate(row)}


def largest(values, count):
    """{(layer, head): value} -> the `count` heads with the largest values, {layer: [heads]}."""
    heads = {}
    for layer, head in sorted(sorted(values, key=values.get, reverse=True)[:count]):
        heads.setdefault(layer, []).append(head)
    return heads


def agreement(probes, reference):
    """A row of a table: how alike the probes of each seed are to one reference, all by their scores [L, G]."""
    heads, scores = select_heads(reference, FEW), reference.flatten().tolist()
    return {
        f"overlap of {FEW} heads (Jaccard)": [jaccard(select_heads(probe, FEW), heads) for probe in probes],
        "rank correlation": [spearman(probe.flatten().tolist(), scores) for probe in probes],
    }


@torch.no_grad()
def rises(adapter, measure):
    """{(layer, head): the rise of measure() without the adapter's update of that head}. Its B is 0 for so long."""
    lowest, risen = measure(), {}
    for layer, heads in adapter.heads.items():
        for B, head in zip(adapter.layers[str(layer)].B, heads):
            learnt = B.clone()
            B.zero_()
            risen[layer, head] = measure() - lowest
            B.copy_(learnt)
    return risen


def stable(reports, setup):
    """Is the probe stable? Probes of other sizes, seeds and looks, and of trained models, against one with 256 examples;
    and the accuracy with heads that were probed on a wrong look."""
    usual, rows, wrong = load_subject(setup, split="train", limit=1200), {}, {}
    for criterion in ("exact", "rank1"):
        reference = usual.probe(*REFERENCE, criterion)
        for count in (1, 4, 16, 64, 256):
            probes = [usual.probe(count, seed, criterion) for seed in setup.seeds]
            rows[f"{criterion}, {count} examples"] = agreement(probes, reference)

    # Do the important heads move while they are trained?
    probes = []
    for seed, report in zip(setup.seeds, reports["all heads"]):
        with attached(report, usual.vlm):
            probes.append(usual.probe(64, seed))
    rows["rank1, 64 examples, after training"] = agreement(probes, reference)

    for look in ("day", "dusk", "fog", "noise", "negative"):
        other = load_subject(setup, f"--data scenes-{look}", split="train", limit=1200)
        probes = [other.probe(64, seed) for seed in setup.seeds]
        rows[f"rank1, 64 examples, look {look}"] = agreement(probes, reference)
        if look in WRONG:
            wrong[f"probed on the look {look}"] = run_selections([select_heads(p, FEW) for p in probes], setup)
    return {
        "tables": [("Heads of another look", measured(wrong)), ("Probes, against one with 256 other examples", rows)],
        "comparisons": [compared(reports | wrong, row, "probed heads") for row in wrong],
    }


def faithful(reports, setup):
    """Every head of a trained Image-LoRA is switched off in turn: does the loss rise most where the probe's score is high?
    Then the heads whose removal costs most, the oracle's, are trained alone.

    The loss is that of the split "val": what is chosen by it is compared on "test".
    """
    subject = load_subject(setup, split="val")
    batches = subject.batches(50, share_images=True)
    correlations, numbers, chosen = [], [], []
    for seed, report in zip(setup.seeds, reports["all heads"]):
        with attached(report, subject.vlm) as adapter:
            risen = rises(adapter, lambda: fmean(subject.vlm.loss(batch).item() for batch in batches))
        scores = by_head(scores_of(report))
        correlations.append(spearman(list(risen.values()), [scores[head] for head in risen]))
        numbers += [[seed, *head, scores[head], rise] for head, rise in risen.items()]
        chosen.append(largest(risen, FEW))

    oracle = {"oracle heads": run_selections(chosen, setup)}
    table = {"score and rise of the loss": {"rank correlation": correlations}}
    return {
        "tables": [(f"The {FEW} heads that cost most, trained alone", measured(oracle)), ("Over all heads", table)],
        "comparisons": [compared(reports | oracle, row, "oracle heads") for row in ("probed heads", "random heads")],
        "per head": [["seed", "layer", "head", "score", "rise of the loss"], *numbers],
    }


def attending(reports, setup):
    """The share of the attention of the answer's tokens that goes to visual tokens, before training and after it."""
    subject = load_subject(setup, limit=60)
    batches = subject.batches(20)
    base = visual_attention(subject.vlm, batches)  # [L, H]
    shares = {"base": [base]}  # {row: [[L, H] of each seed]}
    for row, of_seeds in reports.items():
        for report in of_seeds:
            with attached(report, subject.vlm):
                shares.setdefault(row, []).append(visual_attention(subject.vlm, batches))
    table = {}
    for row, of_seeds in shares.items():
        table[row] = {
            "mean over heads": [share.mean().item() for share in of_seeds],
            "largest change of one": [(share - base).abs().max().item() for share in of_seeds],
        }
        for layer in range(len(base)):
            table[row][f"layer {layer}"] = [share[layer].mean().item() for share in of_seeds]
    return {"tables": [("Share of the answer's attention that goes to visual tokens", table)]}

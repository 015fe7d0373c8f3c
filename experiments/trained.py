"""Analyses that measure models again: probes by other examples and of trained models, and attention."""

from experiments.comparisons import jaccard, spearman
from experiments.loading import attach_adapter, load_subject
from experiments.suites import FEW
from harness.ablations import visual_attention
from probe import select_heads

REFERENCE = 256, 99  # examples and seed of the probe that others are compared with; no run has this seed


def agreement(probes, reference):
    """A row of a table: how alike the probes of each seed are to one reference, all by their scores [L, G]."""
    heads, scores = select_heads(reference, FEW), reference.flatten().tolist()
    return {
        f"overlap of {FEW} heads (Jaccard)": [jaccard(select_heads(probe, FEW), heads) for probe in probes],
        "rank correlation": [spearman(probe.flatten().tolist(), scores) for probe in probes],
    }


def stable(reports, setup):
    """Is the probe stable? Probes of other sizes, seeds and looks, and of trained models, against one with 256 examples."""
    usual, rows = load_subject(setup, split="train", limit=1200), {}
    for criterion in ("exact", "rank1"):
        reference = usual.probe(*REFERENCE, criterion)
        for count in (1, 4, 16, 64, 256):
            probes = [usual.probe(count, seed, criterion) for seed in setup.seeds]
            rows[f"{criterion}, {count} examples"] = agreement(probes, reference)

    # Do the important heads move while they are trained?
    probes = []
    for seed, report in zip(setup.seeds, reports["all heads"]):
        adapter = attach_adapter(report, usual.vlm)
        probes.append(usual.probe(64, seed))
        adapter.detach()
    rows["rank1, 64 examples, after training"] = agreement(probes, reference)

    for look in ("day", "dusk", "fog", "noise", "negative"):
        other = load_subject(setup, f"--data scenes-{look}", split="train", limit=1200)
        probes = [other.probe(64, seed) for seed in setup.seeds]
        rows[f"rank1, 64 examples, look {look}"] = agreement(probes, reference)
    return {"tables": [(f"Probes, against one with {REFERENCE[0]} other examples", rows)]}


def attending(reports, setup):
    """The share of the attention of the answer's tokens that goes to visual tokens, before training and after it."""
    subject = load_subject(setup, limit=60)

    def share():  # [L, H], of the model as it is
        return visual_attention(subject.vlm, subject.batches(range(len(subject.examples))))

    base = share()
    table = {"base": {"mean over heads": [base.mean().item()], "largest change of one": [None]}}
    for row, of_seeds in reports.items():
        after = []
        for report in of_seeds:
            adapter = attach_adapter(report, subject.vlm)
            after.append(share())
            adapter.detach()
        table[row] = {"mean over heads": [a.mean().item() for a in after]}
        table[row] |= {"largest change of one": [(a - base).abs().max().item() for a in after]}
    return {"tables": [("Share of the answer's attention that goes to visual tokens", table)]}

"""What lesson 10 checks."""

from statistics import fmean

import torch

from course.checks import require, same, train
from course.lesson9.check import reports
from course.mine import RULES, Mine
from course.real import attached, logits, mixed, probe_scores, tiny
from course.teacher import BOXES

NUMBERS, BAR = 5000, 0.820


def adapter_of(student):
    """The student's adapter, in the heads that they choose by the project's own scores."""
    heads = student.my_heads(probe_scores())
    require(isinstance(heads, dict), "my_heads: this is no dict -> return {layer: [heads]}")
    Mine.student = student
    return Mine(tiny()[0].config, heads)


def check_it_is_small(student):
    """All layers together train at most 5,000 numbers."""
    adapter = adapter_of(student)
    count = sum(p.numel() for p in adapter.parameters())
    require(count <= NUMBERS, f"{count:,} numbers -> fewer heads, or a lower rank")
    return f"{count:,} numbers in {sum(map(len, adapter.heads.values()))} heads"


def check_it_begins_at_the_frozen_model_and_learns(student):
    """In the real model: at step 0 the logits are the frozen ones, bit for bit; each tensor of my_start can learn."""
    vlm, adapter = tiny()[0], adapter_of(student)
    at_start = same(logits(mixed(), adapter.updates), logits(mixed()))
    require(at_start, "step 0 is not the frozen model -> one factor of each product is zero")
    parameters = list(adapter.parameters())
    before = [p.detach().clone() for p in parameters]
    with attached(adapter.updates):
        train(lambda: vlm.loss(mixed()), parameters, steps=2)
    moved = [not same(p, first) for p, first in zip(parameters, before)]
    require(all(moved), f"{moved.count(False)} of {len(moved)} tensors never move -> are all factors of a product zero?")


def check_text_is_untouched(student):
    """In the real model, whatever is learnt: a row without an image keeps its logits, bit for bit."""
    adapter, before = adapter_of(student), logits(mixed())
    for p in adapter.parameters():
        p.data = torch.randn(p.shape) * 0.3
    after = logits(mixed(), adapter.updates)
    require(same(before[1], after[1]), "the row without an image changed -> use visual_mask")
    require(not same(before[0], after[0]), "the rows with images did not change: nothing is adapted")


def check_it_beats_the_bar(student):
    """Your three runs, by the rules of the leaderboard, find more than 82.0 % of the boxes in fog."""
    runs = reports(student, "mine")
    for report in runs:
        broken = [f"{name} is {report['arguments'][name]}" for name, rule in RULES.items() if report["arguments"][name] != rule]
        require(report["method"] == "mine", f"the method is {report['method']} -> python -m course train")
        require(not broken, f"{', '.join(broken)} -> the leaderboard has its rules: leave these flags out")
        count = report["trainable_parameters"]
        require(count <= NUMBERS, f"a run trained {count:,} numbers -> at most {NUMBERS:,}; run it again")
    boxes = [report["tuned"]["by_kind"][BOXES] for report in runs]
    words = f"{100 * fmean(boxes):.1f} % of boxes in fog with {count:,} numbers"
    require(fmean(boxes) > BAR, f"{words}: ours is {100 * BAR:.1f} % -> more heads at a lower rank? try with --eval-split val")
    return words

"""The real model that the students' answers are put into: the tiny one, and questions for it."""

from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from data import Example, Processor, load
from imagelora import Adapter
from model import VLM
from probe import head_scores

TINY = Path(__file__).parent.parent / "parts/tiny"


@cache
def tiny():
    """(vlm, processor): the pretrained tiny model, frozen."""
    return VLM.from_pretrained(TINY), Processor.from_pretrained(TINY)


@cache
def scenes(count=4, data="scenes-fog"):
    """The first questions about drawn scenes, with answers."""
    return load(data, None, "train", count)


@cache
def probe_scores(count=4):
    """Scores of the real model's heads [L, G], by the first questions about drawn scenes."""
    vlm, processor = tiny()
    return head_scores(vlm, [processor([example]) for example in scenes(count)])


def sum_in_words(name="Ada"):
    """A question without an image."""
    return Example([], f"{name} has 12 apples and finds 3 more. How many apples does {name} have?", "12+3=15\n#### 15")


@cache
def mixed():
    """A Batch with padding: a row with an image, a longer one without, a row with two images."""
    images = [example.images[0] for example in scenes(11)[::5]]
    one = Example(images[:1], "What colour is the ring?", "red")
    two = Example(images[:2], "Which of <image> and <image> has more things?", "the first one")
    return tiny()[1]([one, sum_in_words(), two])


@contextmanager
def attached(updates):
    """While this lasts, updates {(layer, projection): function(y, x, visual_index) -> y} are in the real model, at the lines
    of model.py where an adapter acts; those of an Adapter are its `updates`. projection: "q", "k", "v" or "o"."""
    adapter = Adapter(updates, {}).attach(tiny()[0])
    try:
        yield
    finally:
        adapter.detach()


def logits(batch, updates=None):
    """The logits of the real model: the frozen one, or with updates."""
    with torch.no_grad(), attached(updates or {}):
        return tiny()[0](batch)


def change(before, after, row):
    """The largest change of a logit in a row of mixed()."""
    return (after[row] - before[row])[mixed().attention_mask[row] == 1].abs().max().item()

"""What the checks of all lessons share: how an answer is compared, and the real model that the answers are put into."""

import math
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from data import Example, Processor, load
from model import VLM

TINY = Path(__file__).parent.parent / "parts/tiny"


class Wrong(Exception):
    """An answer is wrong. The text is the sentence that the student reads."""


def compare(what, got, right, mistakes=()):
    """Raise Wrong if `got` is not `right`. what: the name of it; mistakes: (value, sentence) pairs: what a typical
    mistake would give, and what to say to it."""
    if alike(got, right):
        return
    for value, sentence in mistakes:
        if alike(got, value):
            raise Wrong(sentence)
    if got is None:
        raise Wrong(f"{what}: the function returns None; is a `return` missing?")
    if not torch.is_tensor(right):
        raise Wrong(f"{what}: {got!r} is not {right!r}")
    if not torch.is_tensor(got):
        raise Wrong(f"{what}: a tensor is expected, this is a {type(got).__name__}")
    if got.shape != right.shape:
        raise Wrong(f"{what}: the shape is {list(got.shape)}, expected is {list(right.shape)}")
    if kind(got) != kind(right):
        raise Wrong(f"{what}: the numbers are {got.dtype}, expected is {right.dtype}")
    difference = (got.double() - right.double()).abs().max().item()
    raise Wrong(f"{what}: the shape is right, the values are not (largest difference {difference:.3g})")


def alike(a, b):
    """Whether two answers are the same: numbers and float tensors up to rounding, all else exactly."""
    if torch.is_tensor(a) and torch.is_tensor(b):
        if a.shape != b.shape or kind(a) != kind(b):
            return False
        if not b.is_floating_point() or b.numel() == 0:
            return torch.equal(a, b)
        largest = b.detach().abs().nan_to_num().max().item()
        return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5 * largest, equal_nan=True)
    if torch.is_tensor(a) and a.numel() == 1 and isinstance(b, (int, float)):
        a = a.item()
    if torch.is_tensor(a) or torch.is_tensor(b):
        return False
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b))
    return a == b


def kind(tensor):
    """A float tensor may have any precision; bool and whole numbers are something else."""
    return "float" if tensor.is_floating_point() else str(tensor.dtype)


def tensor(what, got, *shape):
    """Raise Wrong if `got` is no tensor of this shape."""
    if not torch.is_tensor(got):
        compare(what, got, torch.empty(shape))
    if list(got.shape) != list(shape):
        raise Wrong(f"{what}: the shape is {list(got.shape)}, expected is {list(shape)}")


def require(condition, sentence):
    if not condition:
        raise Wrong(sentence)


def operations(task):
    """The floating-point operations of the matrix products in task()."""
    with FlopCounterMode(display=False) as counter:
        task()
    return counter.get_total_flops()


# ------------------------------------------------------------------------------------------------------ the real model


@cache
def tiny():
    """(vlm, processor): the pretrained tiny model, frozen."""
    return VLM.from_pretrained(TINY), Processor.from_pretrained(TINY)


@cache
def scenes(count=4, data="scenes-fog"):
    """The first questions about drawn scenes, with answers."""
    return load(data, None, "train", count)


def sum_in_words(name="Ada"):
    """A question without an image."""
    return Example([], f"{name} has 12 apples and finds 3 more. How many apples does {name} have?", "12+3=15\n#### 15")


@cache
def mixed():
    """A Batch with padding: a row with an image, a longer one without, a row with two images."""
    images = [example.images[0] for example in scenes(11)[::5]]
    longer = sum_in_words()
    rows = [Example(images[:1], "What colour is the ring?", "red"), longer]
    rows.append(Example(images[:2], "Which of <image> and <image> has more things?", "the first one"))
    return tiny()[1](rows)


def frozen(batch):
    """The logits of the frozen model."""
    with torch.no_grad():
        return tiny()[0](batch)


class ValuePath:
    """`with ValuePath(updates):` puts updates {layer: function(v, x, visual_index) -> v} into the real model, at the one
    line of model.py where an adapter acts, and takes them out again."""

    def __init__(self, updates):
        self.updates = updates

    def __enter__(self):
        for layer, update in self.updates.items():
            tiny()[0].model.layers[layer].self_attn.adapters["v"].append(update)

    def __exit__(self, *_):
        for layer in self.updates:
            tiny()[0].model.layers[layer].self_attn.adapters["v"].clear()


def with_updates(batch, updates):
    """The logits of the real model with updates on its value path."""
    with torch.no_grad(), ValuePath(updates):
        return tiny()[0](batch)

"""What the checks of all lessons share: how an answer is compared. The functions `equal` and `allclose` are taken from torch
before an exercise is loaded, so one that changes torch's changes nothing here."""

import math

import torch
from torch import allclose
from torch import equal as same
from torch.utils.flop_counter import FlopCounterMode

from course.judge import Wrong


def require(condition, sentence):
    if not condition:
        raise Wrong(sentence)


def compare(what, got, right, mistakes=None):
    """Raise Wrong if `got` is not `right`. what: the name of it; mistakes: {"symptom -> remedy": the value that a typical
    mistake would give}."""
    if alike(got, right):
        return
    for sentence, value in (mistakes or {}).items():
        require(not alike(got, value), sentence)
    require(got is not None, f"{what}: the function returns None -> is a `return` missing?")
    require(torch.is_tensor(right), f"{what}: {got!r} is not {right!r}")
    tensor(what, got, *right.shape)
    require(kind(got) == kind(right), f"{what}: the numbers are {got.dtype}, expected is {right.dtype}")
    difference = (got.double() - right.double()).abs().max().item()
    raise Wrong(f"{what}: the shape is right, the values are not (largest difference {difference:.3g})")


def alike(a, b):
    """Whether two answers are the same: numbers and float tensors up to rounding, all else exactly."""
    if torch.is_tensor(a) and a.numel() == 1 and isinstance(b, (int, float)):
        a = a.item()
    if torch.is_tensor(a) and torch.is_tensor(b):
        if a.shape != b.shape or kind(a) != kind(b):
            return False
        if kind(b) != "float" or b.numel() == 0:
            return same(a, b)
        largest = b.detach().abs().nan_to_num().max().item()
        return allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5 * largest, equal_nan=True)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and a == b


def kind(tensor):
    """A float tensor may have any precision; bool and whole numbers are something else."""
    return "float" if tensor.is_floating_point() else str(tensor.dtype)


def tensor(what, got, *shape):
    """Raise Wrong if `got` is no tensor of this shape."""
    require(torch.is_tensor(got), f"{what}: a tensor is expected, this is a {type(got).__name__}")
    require(list(got.shape) == list(shape), f"{what}: the shape is {list(got.shape)}, expected is {list(shape)}")


def pair(function, answer):
    """Raise Wrong if the answer is not two things."""
    require(isinstance(answer, tuple) and len(answer) == 2, f"{function}: one thing is returned -> return both, `a, b`")
    return answer


def call(function, *arguments):
    """The student's function(*arguments). Raises Wrong if it changed one of the tensors that it was given."""
    copies = [argument.clone() if torch.is_tensor(argument) else argument for argument in arguments]
    answer = function(*arguments)
    kept = all(alike(argument, copied) for argument, copied in zip(arguments, copies))
    require(kept, f"{function.__name__} changed what it was given -> `+=` does that; write a + b, or use .clone()")
    return answer


def train(loss, parameters, steps, lr=1e-2):
    """The losses of some steps of AdamW. loss: a function. Raises Wrong if it does not depend on one of the parameters."""
    optimizer, losses = torch.optim.AdamW(parameters, lr, weight_decay=0), []
    for _ in range(steps):
        value = loss()
        if value.requires_grad:
            value.backward()
        reached = all(p.grad is not None for p in parameters)
        require(reached, "the loss does not reach what is trained -> compute without .data, .detach() and .item()")
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def flops(task):
    """The floating-point operations of the matrix products in task()."""
    with FlopCounterMode(display=False) as counter:
        task()
    return counter.get_total_flops()

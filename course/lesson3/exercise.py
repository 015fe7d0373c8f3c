"""Lesson 3: LoRA in ten lines. Read lesson.md first. Check yourself: python -m course 3

Letters: B batch, T tokens of a row, D inputs of the layer, O its outputs, R rank.
"""

import torch  # noqa: F401 (for what you write)


def lora_start(inputs, outputs, rank):
    """The two factors of a LoRA at the start.

    Returns (A, B): A [inputs, rank], random (normal, any small standard deviation); B [rank, outputs], such that the
    adapted layer is exactly the frozen one.
    """
    raise NotImplementedError


def lora(y, x, A, B, alpha):
    """The adapted output: y + (alpha / R) x A B.

    y [B, T, O]: the frozen layer's output; x [B, T, D]: its input; A [D, R]; B [R, O]; alpha: a number.
    Returns [B, T, O]. y itself stays as it is.
    """
    raise NotImplementedError


def lora_parameters(inputs, outputs, rank):
    """How many numbers LoRA trains in a layer with a weight of inputs x outputs: a whole number."""
    raise NotImplementedError

"""Lesson 3: LoRA in ten lines. Read course/lesson3/lesson.md first. Check yourself: python -m course 3

Letters: T tokens of a row, D inputs of the layer, O its outputs, R rank; batch: the rows of a batch. A and B are the
factors of LoRA.
"""

import torch  # noqa: F401 (for what you write)


def lora_start(inputs, outputs, rank):
    """The two factors of a LoRA at the start.

    inputs D; outputs O; rank R. Returns (A, B): A [D, R], random (normal, any small standard deviation); B [R, O], such
    that the adapted layer is exactly the frozen one.
    """
    raise NotImplementedError


def lora(y, x, A, B, alpha):
    """The adapted output: y + (alpha / R) x A B.

    y [batch, T, O]: the frozen layer's output; x [batch, T, D]: its input; A [D, R]; B [R, O]; alpha: a number.
    Returns [batch, T, O]. y itself stays as it is. The cost is 2 * batch * T * R * (D + O) operations.
    """
    raise NotImplementedError


def lora_parameters(inputs, outputs, rank):
    """How many numbers LoRA trains in a layer with a weight of inputs x outputs: a whole number."""
    raise NotImplementedError

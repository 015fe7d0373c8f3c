"""Lesson 3: LoRA in ten lines. T tokens of a row, D inputs of the layer, O its outputs, R rank; batch: the rows."""

import torch  # noqa: F401 (for what you write)


def lora_start(inputs, outputs, rank):
    """The two factors of a LoRA at the start: (A, B). inputs D; outputs O; rank R.

    A [D, R], random (normal, any small standard deviation); B [R, O], such that the adapted layer is exactly the frozen one.
    """
    raise NotImplementedError


def lora(y, x, A, B, alpha):
    """The adapted output [batch, T, O]: y + (alpha / R) x A B.

    y [batch, T, O]: the frozen layer's output; x [batch, T, D]: its input; A [D, R]; B [R, O]; alpha: a number. y itself
    stays as it is. The cost is 2 * batch * T * R * (D + O) operations.
    """
    raise NotImplementedError

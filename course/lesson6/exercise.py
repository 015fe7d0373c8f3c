"""Lesson 6: heads. T tokens of a row, N visual tokens of the batch, D size of a layer's input, G value heads of a layer,
K size of a head, R rank, n selected heads of the layer."""

import torch  # noqa: F401 (for what you write)


def image_lora_start(hidden, head_size, heads, rank):
    """The parameters of one layer at the start: (A, B).

    hidden D; head_size K; heads: the selected value heads, [0, 3] say; rank R.
    A [D, R]: normal, standard deviation 1 / R, one for the layer; B [n, R, K]: zero, one for each selected head.
    """
    raise NotImplementedError


def image_lora(v, x, visual_mask, A, B, gamma, alpha, heads):
    """V~^(h) = V^(h) + s * M X A B^(h) for the selected heads h, with s = (alpha / R) * gamma / sqrt(n): [batch, T, G*K].

    v [batch, T, G*K]: the frozen values, head after head, which stay as they are; x [batch, T, D]; visual_mask [batch, T]
    bool; A [D, R]; B [n, R, K]; gamma, alpha: numbers; heads: n numbers from 0 to G - 1, in the order of B.
    Hint: v.unflatten(-1, (-1, K)) is [batch, T, G, K], and .flatten(2) is the way back.
    """
    raise NotImplementedError


def adapter_flops(visual_tokens, hidden, rank, heads, head_size):
    """Floating-point operations of this layer's update in one training step, a whole number. heads: how many, n.

    Two products, [N, D] x [D, R] and [N, R] x [R, n*K]. Each is made three times: forward, backward for its factor,
    backward for its input. A multiply-add counts as two.
    """
    raise NotImplementedError

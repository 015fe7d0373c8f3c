"""Lesson 2: attention by hand. T tokens of a row, H query heads, G value (KV) heads, K size of a head; batch: the rows."""

import torch  # noqa: F401 (for what you write)


def attend(q, k, v):
    """Causal attention with grouped heads: softmax(q k^T / sqrt(K)) v.

    q [batch, H, T, K]; k, v [batch, G, T, K]. Value head 0 serves the first H / G query heads, value head 1 the next, and
    so on. A token looks at itself and at earlier tokens.
    Returns (out [batch, H, T, K], weights [batch, H, T, T]): weights[b, h, i, j] says how much token i looks at token j.
    """
    raise NotImplementedError


def taken_from_image(weights, v, visual_mask):
    """The part of attention's output that comes from visual tokens: the same weighted sum, over these only.

    weights [batch, H, T, T] of `attend`; v [batch, G, T, K]; visual_mask [batch, T] bool. Returns [batch, H, T, K].
    """
    raise NotImplementedError

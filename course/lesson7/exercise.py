"""Lesson 7: the probe. S probe examples, T tokens of a row, D size of a layer's input, L layers, G value heads of a layer,
K size of a head."""

import torch  # noqa: F401 (for what you write)


def gradient_of_B(dV, x, visual_mask, A):
    """dLoss/dB^(h) of a rank-1 Image-LoRA at B = 0, for all heads of a layer, by the chain rule: [G, K].

    The layer computes V~^(h) = V^(h) + M X A B^(h), with s = 1.
    dV [batch, T, G, K]: dLoss/dV~; x [batch, T, D]: the layer's input; visual_mask [batch, T] bool; A [D, 1].
    Use matrix products and sums, no autograd.
    """
    raise NotImplementedError


def head_scores(gradients):
    """score(h) = sum over the probe examples of || dLoss/dB^(h) ||^2: [L, G].

    gradients [S, L, G, K]: dLoss/dB^(h) of each example, layer and head.
    """
    raise NotImplementedError

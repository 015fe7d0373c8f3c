"""Lesson 10: an adapter of your own. T tokens of a row, D size of a layer's input, L layers, G value heads of a layer, K size
of a head. In the tiny model L = 6, G = 4, K = 16, D = 128."""

import torch  # noqa: F401 (for what you write)

NUMBER = 0  # yours in the list of the class, as in lesson 9


def my_heads(scores):
    """The heads that you adapt: {layer: [heads]}. scores [L, G]: those of your own probe (lesson 7)."""
    raise NotImplementedError


def my_start(hidden, head_size, heads):
    """What one layer trains, at the start: a list of tensors. At step 0 the model is to be the frozen one.

    hidden D; head_size K; heads: the selected heads of the layer, [0, 3] say. All layers together: at most 5,000 numbers.
    """
    raise NotImplementedError


def my_update(v, x, visual_mask, parameters, heads):
    """The layer's new values [batch, T, G*K].

    v [batch, T, G*K]: the frozen values, head after head; x [batch, T, D]: the layer's input; visual_mask [batch, T]
    bool, by your own function of lesson 1; parameters: the tensors of my_start. Rows without an image must stay as they are.
    """
    raise NotImplementedError

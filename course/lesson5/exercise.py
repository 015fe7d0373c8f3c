"""Lesson 5: the mask. T tokens of a row, N visual tokens of the batch, D size of a layer's input, O of its values, R rank."""

import torch  # noqa: F401 (for what you write)


def formula_update(v, x, visual_mask, A, B, s):
    """V~ = V + s * M X A B [batch, T, O]: the update at visual tokens only, as the paper writes it.

    v [batch, T, O]: the frozen values; x [batch, T, D]: the layer's input; visual_mask [batch, T] bool: True at visual
    tokens; A [D, R]; B [R, O]; s: a number. v itself stays as it is.
    """
    raise NotImplementedError


def gathered_update(v, x, visual_index, A, B, s):
    """The same result, but the products are made for the N visual tokens only: the cost is proportional to N.

    visual_index [N]: flat positions, row * T + column. The rest as above.
    """
    raise NotImplementedError

"""Lesson 5: the mask. Read course/lesson5/lesson.md first. Check yourself: python -m course 5

Letters: T tokens of a row, D size of the layer's input, O size of its values (its outputs), R rank, N visual tokens of the
batch; batch: the rows of a batch. A and B are the factors of LoRA, as in lesson 3.
"""

import torch  # noqa: F401 (for what you write)


def formula_update(v, x, visual_mask, A, B, s):
    """V~ = V + s * M X A B: the update at the positions of visual tokens only, as the paper writes it.

    v [batch, T, O]: the frozen values; x [batch, T, D]: the layer's input; visual_mask [batch, T] bool: True at visual
    tokens; A [D, R]; B [R, O]; s: a number. Returns [batch, T, O]. v itself stays as it is.
    """
    raise NotImplementedError


def gathered_update(v, x, visual_index, A, B, s):
    """The same result, but the products are made for the N visual tokens only: the cost is proportional to N.

    visual_index [N]: flat positions, row * T + column. The rest as above.
    """
    raise NotImplementedError


def largest_text_change(frozen, tuned, visual_mask, attention_mask):
    """The largest change (absolute) of any logit in rows without a visual token, padding left out: a number.

    frozen, tuned [batch, T, vocabulary]: logits before and after; visual_mask [batch, T] bool; attention_mask [batch, T]:
    1 at real tokens, 0 at padding.
    """
    raise NotImplementedError

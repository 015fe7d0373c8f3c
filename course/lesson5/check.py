"""What lesson 5 checks."""

import torch

from course.checks import call, compare, operations, require, same
from course.judge import Wrong
from course.real import change, frozen, mixed, tiny, with_updates


def example(rows, T, D, O=8, R=3):
    """(v, x, visual_mask, A, B, s) at random; each row has its own visual tokens."""
    visual_mask = torch.zeros(rows, T, dtype=torch.bool)
    for row in range(rows):
        visual_mask[row, 1 + row : 3 + row + row] = True
    return torch.randn(rows, T, O), torch.randn(rows, T, D), visual_mask, torch.randn(D, R), torch.randn(R, O), 0.7


def the_formula(student):
    """formula_update adds s * M X A B at visual tokens and nothing elsewhere."""
    for rows in (1, 2, 3):
        v, x, visual_mask, A, B, s = example(rows, T=7, D=7)
        M, update = visual_mask[..., None].float(), x @ A @ B
        mistakes = {
            "every token is changed -> the mask is not used": v + s * update,
            "text tokens are changed, visual ones are not -> the mask is the wrong way round": v + s * (1 - M) * update,
            "the update is too large -> the factor s is missing": v + M * update,
            "the frozen values v are missing -> this is the update alone, add v": s * M * update,
            "the values of text tokens became zero -> the mask is on everything; mask the update": M * (v + s * update),
        }
        if rows == 1:  # [1, T] * [1, T, D]: with T = D torch does not complain
            features = v + s * (visual_mask * x) @ A @ B
            mistakes["features are hidden, not tokens -> the mask needs a last dimension, visual_mask[..., None]"] = features
        else:
            mistakes["all rows have the mask of row 0 -> each row has its own"] = v + s * M[:1] * update
        try:
            got = call(student.formula_update, v, x, visual_mask, A, B, s)
        except RuntimeError as error:
            require("must match" not in str(error), "the mask fits no token -> [batch, T, 1], by visual_mask[..., None]")
            raise
        compare("formula_update", got, v + s * M * update, mistakes)


def the_fast_path(student):
    """gathered_update gives the same result, and multiplies for the visual tokens only."""
    T, D, O, R = 9, 5, 8, 3
    v, x, visual_mask, A, B, s = example(3, T, D, O, R)
    index, M, update = visual_mask.flatten().nonzero()[:, 0], visual_mask[..., None].float(), s * x @ A @ B
    mistakes = {
        "every token is changed -> take the rows visual_index of x, its first two dimensions flat": v + update,
        "text tokens lost their values -> add into a copy of v, not into zeros": M * (v + update),
        "the frozen values are missing -> this is the update alone, add it to a copy of v": M * update,
        "the update replaces the frozen values -> add it to them": (1 - M) * v + M * update,
        "the update is too large -> the factor s is missing": v + M * update / s,
    }
    try:
        got = call(student.gathered_update, v, x, index, A, B, s)
    except IndexError:
        raise Wrong("visual_index is row * T + column -> flatten x and v first, x.flatten(0, 1)") from None
    compare("gathered_update", got, v + M * update, mistakes)
    N = len(index)
    flops, right, all_tokens = operations(lambda: student.gathered_update(v, x, index, A, B, s)), 2 * N * R * (D + O), 3 * T
    mistakes = {
        "products are made for all tokens -> gather the visual rows of x before you multiply": right // N * all_tokens,
        "a large matrix is made -> from left to right, X @ A @ B": 2 * D * R * O + 2 * N * D * O,
    }
    compare("the operations of gathered_update", flops, right, mistakes)
    return f"{right:,} operations in place of {right // N * all_tokens:,}, for {N} visual tokens of {all_tokens}"


def the_largest_change(student):
    """largest_text_change looks at rows without a visual token, without padding."""
    before, visual_mask = torch.randn(3, 6, 10), torch.zeros(3, 6, dtype=torch.bool)
    visual_mask[0, 1:3] = True
    attention_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    by = torch.rand(3, 6, 10) - 2  # all negative
    by[0], by[1, 4:], by[2, 5:], by[1, 2, 3] = by[0] * 7, 50.0, 90.0, -3.0  # row with an image, padding, the largest
    real, text = attention_mask.bool(), ~visual_mask.any(dim=1)[:, None].expand(3, 6)
    size = by.abs()
    mistakes = {
        "padding is counted -> leave out positions where attention_mask is 0": size[text].max().item(),
        "padding, and text of rows with an image, are counted -> take whole rows": size[~visual_mask].max().item(),
        "text after an image is counted -> it looks at changed values; take whole rows": size[~visual_mask & real].max().item(),
        "the change has a sign -> take the absolute value before the largest": by[text & real].max().item(),
        "this is the mean change -> a proof needs the largest": size[text & real].mean().item(),
    }
    got = call(student.largest_text_change, before, before + by, visual_mask, attention_mask)
    compare("largest_text_change", got, size[text & real].max().item(), mistakes)


def text_is_untouched(student):
    """In the real model, in all layers, with any A and B: a row without an image keeps its logits, bit for bit."""
    c, batch, before = tiny()[0].config, mixed(), frozen(mixed())
    A, B = torch.randn(c.hidden, 4), torch.randn(4, c.value_heads * c.head_size)
    functions = {
        "formula_update": lambda v, x, _: student.formula_update(v, x, batch.visual_mask, A, B, 0.1),
        "gathered_update": lambda v, x, visual_index: student.gathered_update(v, x, visual_index, A, B, 0.1),
    }
    for name, update in functions.items():
        after = with_updates(dict.fromkeys(range(c.layers), update), lambda: frozen(batch))
        require(same(before[1], after[1]), f"{name}: the row without an image changed")
        require(not same(before[0], after[0]), f"{name}: the rows with images did not change: nothing is adapted")
        yours = float(student.largest_text_change(before, after, batch.visual_mask, batch.attention_mask))
        require(yours == 0, f"largest_text_change is {yours:.3g} in the real model, where nothing changed")
    return f"largest change of a logit: {yours:.0f} without an image, {change(before, after, 0):.1f} with one"


CHECKS = [the_formula, the_fast_path, the_largest_change, text_is_untouched]

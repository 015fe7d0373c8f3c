"""What lesson 5 checks."""

import torch

from course.checks import call, compare, flops, require, same
from course.judge import Wrong
from course.real import change, logits, mixed, tiny


def example(rows, T, D, O=8, R=3):
    """(v, x, visual_mask, A, B, s) at random; each row has its own visual tokens."""
    visual_mask = torch.zeros(rows, T, dtype=torch.bool)
    for row in range(rows):
        visual_mask[row, 1 + row : 3 + row + row] = True
    return torch.randn(rows, T, O), torch.randn(rows, T, D), visual_mask, torch.randn(D, R), torch.randn(R, O), 0.7


def check_the_formula(student):
    """formula_update adds s * M X A B at visual tokens and nothing elsewhere."""
    for rows in (1, 2, 3):
        v, x, visual_mask, A, B, s = example(rows, T=7, D=7)
        M, update = visual_mask[..., None].float(), x @ A @ B
        mistakes = {
            "every token is changed -> the mask is not used": v + s * update,
            "text is changed, the image is not -> the mask is the wrong way round": v + s * (1 - M) * update,
            "the update is too large -> the factor s is missing": v + M * update,
            "the frozen values v are missing -> this is the update alone, add v": s * M * update,
            "the values of text became zero -> mask the update alone": M * (v + s * update),
            "all rows have the mask of row 0 -> each row has its own": v + s * M[:1] * update,
            # One row: [1, T] * [1, T, D]; with T = D torch does not complain.
            "features are hidden, not tokens -> use visual_mask[..., None]": v + s * (visual_mask[:1] * x) @ A @ B,
        }
        compare("formula_update", call(student.formula_update, v, x, visual_mask, A, B, s), v + s * M * update, mistakes)


def check_the_fast_path(student):
    """gathered_update gives the same result, and multiplies for the visual tokens only."""
    D, O, R, all_tokens = 5, 8, 3, 27
    v, x, visual_mask, A, B, s = example(3, 9, D, O, R)
    index, M, update = visual_mask.flatten().nonzero()[:, 0], visual_mask[..., None].float(), s * x @ A @ B
    mistakes = {
        "every token is changed -> take the rows visual_index of x, its first two dimensions flat": v + update,
        "the update is too large -> the factor s is missing": v + M * update / s,
        "text tokens lost their values -> add into a copy of v, not into zeros": M * (v + update),
        "the frozen values are missing -> this is the update alone, add it to a copy of v": M * update,
        "the update replaces the frozen values -> add it to them": (1 - M) * v + M * update,
    }
    try:
        got = call(student.gathered_update, v, x, index, A, B, s)
    except IndexError:
        raise Wrong("visual_index is row * T + column -> flatten x and v first, x.flatten(0, 1)") from None
    compare("gathered_update", got, v + M * update, mistakes)
    count, each = flops(lambda: student.gathered_update(v, x, index, A, B, s)), 2 * R * (D + O)
    mistakes = {
        "products are made for all tokens -> gather the visual rows of x before you multiply": each * all_tokens,
        "a large matrix is made -> from left to right, X @ A @ B": 2 * D * R * O + 2 * len(index) * D * O,
    }
    compare("the operations of gathered_update", count, each * len(index), mistakes)
    return f"{count:,} operations in place of {each * all_tokens:,}, for {len(index)} visual tokens of {all_tokens}"


def check_text_is_untouched(student):
    """In the real model, in all layers, with any A and B: a row without an image keeps its logits, bit for bit."""
    c, batch, before = tiny()[0].config, mixed(), logits(mixed())
    A, B = torch.randn(c.hidden, 4), torch.randn(4, c.value_heads * c.head_size)
    functions = {
        "formula_update": lambda v, x, _: student.formula_update(v, x, batch.visual_mask, A, B, 0.1),
        "gathered_update": lambda v, x, visual_index: student.gathered_update(v, x, visual_index, A, B, 0.1),
    }
    for name, update in functions.items():
        after = logits(batch, {(layer, "v"): update for layer in range(c.layers)})
        require(same(before[1], after[1]), f"{name}: the row without an image changed")
        require(not same(before[0], after[0]), f"{name}: the rows with images did not change: nothing is adapted")
    return f"largest change of a logit: {change(before, after, 1):.0f} without an image, {change(before, after, 0):.1f} with one"

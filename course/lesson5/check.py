"""What lesson 5 checks."""

import torch

from course.checks import Wrong, change, compare, frozen, mixed, operations, require, same, tiny, with_updates


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
        before, M, update = v.clone(), visual_mask[..., None].float(), x @ A @ B
        mistakes = {
            "every token is changed -> the mask is not used": v + s * update,
            "text tokens are changed, visual ones are not -> the mask is the wrong way round": v + s * (1 - M) * update,
            "the update is too large -> the factor s is missing": v + M * update,
            "the frozen values v are missing -> this is the update alone, add v": s * M * update,
            "the values of text tokens became zero -> the mask is on everything; mask the update": M * (v + s * update),
        }
        if rows == 1:  # [1, T] * [1, T, D]: with T = D torch does not complain
            wrong = "features are hidden, not tokens -> the mask has the wrong shape; use visual_mask[..., None]"
            mistakes[wrong] = v + s * (visual_mask * x) @ A @ B
        else:
            mistakes["all rows have the mask of row 0 -> each row has its own"] = v + s * M[:1] * update
        try:
            got = student.formula_update(v, x, visual_mask, A, B, s)
        except RuntimeError as error:
            fits = "must match the size" not in str(error)
            require(fits, "the mask has the wrong shape -> [batch, T, 1], by visual_mask[..., None]")
            raise
        require(same(v, before), "v itself was changed -> write `v + ...`, or change a copy, v.clone()")
        compare("formula_update", got, v + s * M * update, mistakes)


def the_fast_path(student):
    """gathered_update gives the same result, and multiplies for the visual tokens only."""
    v, x, visual_mask, A, B, s = example(3, T=9, D=5)
    index, M = visual_mask.flatten().nonzero()[:, 0], visual_mask[..., None].float()
    before, update = v.clone(), s * x @ A @ B
    mistakes = {
        "every token is changed -> take the rows visual_index of x, its first two dimensions flat": v + update,
        "text tokens lost their values -> add into a copy of v, not into zeros": M * (v + update),
        "the frozen values are missing -> this is the update alone, add it to a copy of v": M * update,
        "the update replaces the frozen values -> add it to them": (1 - M) * v + M * update,
        "the update is too large -> the factor s is missing": v + M * update / s,
    }
    try:
        got = student.gathered_update(v, x, index, A, B, s)
    except IndexError:
        raise Wrong("visual_index is row * T + column -> flatten x and v first, x.flatten(0, 1)") from None
    require(same(v, before), "v itself was changed -> change a copy, v.clone()")
    compare("gathered_update", got, v + M * update, mistakes)

    N, D, O, R, T = len(index), 5, 8, 3, 27
    flops, right = operations(lambda: student.gathered_update(v, x, index, A, B, s)), 2 * N * R * (D + O)
    mistakes = {
        "products are made for all tokens -> gather the visual rows of x before you multiply": 2 * T * R * (D + O),
        "a large matrix is made -> from left to right, X @ A @ B": 2 * D * R * O + 2 * N * D * O,
    }
    compare("the operations of gathered_update", flops, right, mistakes)
    return f"{right:,} operations in place of {2 * T * R * (D + O):,}, for {N} visual tokens of {T}"


def the_largest_change(student):
    """largest_text_change looks at rows without a visual token, without padding."""
    before, visual_mask = torch.randn(3, 6, 10), torch.zeros(3, 6, dtype=torch.bool)
    visual_mask[0, 1:3] = True
    attention_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    by = torch.rand(3, 6, 10) - 2  # all negative
    by[0], by[1, 4:], by[2, 5:], by[1, 2, 3] = by[0] * 7, 50.0, 90.0, -3.0  # row with an image, padding, the largest
    real, text = attention_mask.bool(), ~visual_mask.any(dim=1)[:, None].expand(3, 6)
    mistakes = {
        "padding is counted -> leave out positions where attention_mask is 0": by[text].abs().max().item(),
        "padding, and text of rows with an image, are counted -> take whole rows": by[~visual_mask].abs().max().item(),
        "text after an image is counted -> it looks at changed values; take whole rows": by[~visual_mask & real].abs().max().item(),
        "the change has a sign -> take the absolute value before the largest": by[text & real].max().item(),
        "this is the mean change -> a proof needs the largest": by[text & real].abs().mean().item(),
    }
    got = student.largest_text_change(before, before + by, visual_mask, attention_mask)
    compare("largest_text_change", got, by[text & real].abs().max().item(), mistakes)


def text_is_untouched(student):
    """In the real model, in all layers, with any A and B: a row without an image keeps its logits, bit for bit."""
    c, batch, before = tiny()[0].config, mixed(), frozen(mixed())
    for name in ("formula_update", "gathered_update"):

        def update(v, x, visual_index, name=name):
            where = batch.visual_mask if name == "formula_update" else visual_index
            A, B = torch.randn(c.hidden, 4), torch.randn(4, c.value_heads * c.head_size)
            return getattr(student, name)(v, x, where, A, B, 0.1)

        after = with_updates(dict.fromkeys(range(c.layers), update), lambda: frozen(batch))
        require(same(before[1], after[1]), f"{name}: the row without an image changed")
        require(not same(before[0], after[0]), f"{name}: the rows with images did not change: nothing is adapted")
        yours = float(student.largest_text_change(before, after, batch.visual_mask, batch.attention_mask))
        require(yours == 0, f"largest_text_change is {yours:.3g} in the real model, where nothing changed")
    return f"largest change of a logit: {yours:.0f} without an image, {change(before, after, 0):.1f} with one"


CHECKS = [the_formula, the_fast_path, the_largest_change, text_is_untouched]

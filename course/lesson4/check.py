"""What lesson 4 checks."""

import torch

from course.checks import (
    Wrong,
    compare,
    frozen,
    mixed,
    operations,
    require,
    tiny,
    with_updates,
)


def example(rows=2, T=6, D=6, O=8, R=3):
    """(v, x, visual_mask, A, B, s) at random; each row has its own visual tokens."""
    visual_mask = torch.zeros(rows, T, dtype=torch.bool)
    for row in range(rows):
        visual_mask[row, 1 + row : 3 + row + row] = True
    v, x, A, B = torch.randn(rows, T, O), torch.randn(rows, T, D), torch.randn(D, R), torch.randn(R, O)
    return v, x, visual_mask, A, B, 0.7


def the_formula(student):
    """formula_update adds s * M X A B at visual tokens and nothing elsewhere."""
    for rows in (1, 2, 3):
        v, x, visual_mask, A, B, s = example(rows, T=7, D=7)
        before, M, update = v.clone(), visual_mask[..., None].float(), x @ A @ B
        first = visual_mask[:1, :, None].float()
        mistakes = [
            (v + s * update, "every token is changed: the mask is not used"),
            (v + s * (1 - M) * update, "the mask is the wrong way round: text tokens are changed, visual ones are not"),
            (v + M * update, "the factor s is missing"),
            (s * M * update, "this is the update alone: the frozen values v are missing"),
            (M * (v + s * update), "the mask is on everything: the values of text tokens became zero; mask the update"),
        ]
        if rows == 1:  # [1, T] * [1, T, D]: with T = D torch does not complain
            wrong = v + s * (visual_mask.float() * x) @ A @ B
            mistakes.append((wrong, "the mask has the wrong shape: it hides features, not tokens; use mask[..., None]"))
        else:
            mistakes.append((v + s * first * update, "the mask of row 0 is used for all rows: each row has its own"))
        try:
            got = student.formula_update(v, x, visual_mask, A, B, s)
        except RuntimeError as error:
            if "must match the size" in str(error):
                raise Wrong("the mask has the wrong shape: make it [batch, T, 1] with visual_mask[..., None]") from None
            raise
        require(torch.equal(v, before), "v itself was changed: write `v + ...`, or change a copy, v.clone()")
        compare("formula_update", got, v + s * M * update, mistakes)


def the_fast_path(student):
    """gathered_update gives the same result."""
    v, x, visual_mask, A, B, s = example(3, T=9, D=5)
    index = visual_mask.flatten().nonzero()[:, 0]
    before, update, right = v.clone(), s * x @ A @ B, v + s * visual_mask[..., None].float() * (x @ A @ B)
    only = torch.zeros_like(right)
    only[visual_mask] = right[visual_mask]
    flat = v.clone().flatten(0, 1)
    flat[index] = update.flatten(0, 1)[index]
    mistakes = [
        (v + update, "every token is changed: take the rows visual_index of x, with its first two dimensions flat"),
        (only, "text tokens lost their values: add into a copy of v, not into zeros"),
        (visual_mask[..., None].float() * update, "this is the update alone: add it to a copy of v"),
        (flat.view_as(v), "the update replaces the frozen values: add it to them"),
        (v + visual_mask[..., None].float() * update / s, "the factor s is missing"),
    ]
    try:
        got = student.gathered_update(v, x, index, A, B, s)
    except IndexError:
        raise Wrong(
            "visual_index counts through the batch, row * T + column: flatten x and v first, x.flatten(0, 1)"
        ) from None
    require(torch.equal(v, before), "v itself was changed: change a copy, v.clone()")
    compare("gathered_update", got, right, mistakes)


def the_cost_follows_the_visual_tokens(student):
    """gathered_update multiplies for the visual tokens only: 2 * N * R * (D + O) floating-point operations."""
    v, x, visual_mask, A, B, s = example(2, T=30, D=10)
    index = visual_mask.flatten().nonzero()[:, 0]
    flops = operations(lambda: student.gathered_update(v, x, index, A, B, s))
    N, R = len(index), A.shape[1]
    mistakes = [
        (
            2 * 60 * R * (10 + 8),
            "the products are made for all tokens: gather the visual rows of x before you multiply",
        ),
        (
            2 * 10 * R * 8 + 2 * N * 10 * 8,
            "A @ B is made first, a large matrix: multiply from left to right, X @ A @ B",
        ),
    ]
    compare("the operations of gathered_update", flops, 2 * N * R * (10 + 8), mistakes)


def the_largest_change(student):
    """largest_text_change looks at rows without a visual token, without padding, and takes the largest."""
    before, visual_mask = torch.randn(3, 6, 10), torch.zeros(3, 6, dtype=torch.bool)
    visual_mask[0, 1:3] = True
    attention_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    change = torch.rand(3, 6, 10) - 2
    change[0], change[1, 4:], change[2, 5:] = change[0] * 7, 50.0, 90.0  # rows with images, padding
    change[1, 2, 3] = -3.0
    after, text = before + change, ~visual_mask.any(dim=1)
    padded, kept = text[:, None].expand(3, 6), text[:, None] & attention_mask.bool()
    right = change[kept].abs().max().item()
    mistakes = [
        (change[padded].abs().max().item(), "padding is counted: leave out positions where attention_mask is 0"),
        (
            change[~visual_mask].abs().max().item(),
            "text tokens of rows with an image, and padding, are counted: take whole rows",
        ),
        (
            change[~visual_mask & attention_mask.bool()].abs().max().item(),
            "text tokens of rows with an image are counted: they may change, since they look at changed values",
        ),
        (change[attention_mask.bool()].abs().max().item(), "rows with an image are counted"),
        (change.abs().max().item(), "rows with an image and padding are counted"),
        (change[kept].max().item(), "the largest change is negative here: take the absolute value first"),
        (change[kept].abs().mean().item(), "this is the mean change; a proof needs the largest"),
    ]
    compare(
        "largest_text_change", student.largest_text_change(before, after, visual_mask, attention_mask), right, mistakes
    )


def text_is_untouched(student):
    """In the real model, in all layers, with any A and B: a row without an image keeps its logits bit for bit; rows with
    images change. Your own largest_text_change says 0."""
    c, batch = tiny()[0].config, mixed()
    size = c.value_heads * c.head_size
    before = frozen(batch)
    for name in ("formula_update", "gathered_update"):

        def update(v, x, visual_index, name=name):
            where = batch.visual_mask if name == "formula_update" else visual_index
            A, B = torch.randn(c.hidden, 4), torch.randn(4, size)
            return getattr(student, name)(v, x, where, A, B, 0.1)

        after = with_updates(batch, dict.fromkeys(range(c.layers), update))
        require(torch.equal(before[1], after[1]), f"{name}: the row without an image changed")
        require(
            not torch.equal(before[0], after[0]), f"{name}: the rows with images did not change: nothing is adapted"
        )
        said = student.largest_text_change(before, after, batch.visual_mask, batch.attention_mask)
        require(
            float(said) == 0, f"largest_text_change says {float(said):.3g} in the real model, where nothing changed"
        )


CHECKS = [the_formula, the_fast_path, the_cost_follows_the_visual_tokens, the_largest_change, text_is_untouched]

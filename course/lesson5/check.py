"""What lesson 5 checks."""

import torch

from course.checks import (
    Wrong,
    compare,
    frozen,
    mixed,
    require,
    tensor,
    tiny,
    with_updates,
)
from imagelora import ImageLoRA


def start_has_one_a_and_a_b_for_each_head(student):
    """A is [D, R] and random with standard deviation 1 / R, B is [n, R, K] and zero."""
    D, K, R, heads = 400, 16, 5, [0, 2, 3]
    found = student.image_lora_start(D, K, heads, R)
    require(isinstance(found, tuple) and len(found) == 2, "image_lora_start: return both, `return A, B`")
    A, B = found
    if A.dim() == 3:
        raise Wrong("there is an A for each head: the heads of a layer share one, A [D, R]")
    tensor("A", A, D, R)
    if list(B.shape) == [R, K]:
        raise Wrong("there is one B for all heads: each selected head has its own, B [n, R, K]")
    tensor("B", B, len(heads), R, K)
    require((B == 0).all(), "B is not zero: step 0 would not be the frozen model")
    deviation = A.std().item()
    require(deviation > 0, "A is constant: draw it from a normal distribution")
    if abs(deviation - 1) < 0.1:
        raise Wrong("the standard deviation of A is 1: divide by R")
    if abs(deviation - R**-0.5) < 0.04:
        raise Wrong("the standard deviation of A is 1 / sqrt(R): it is 1 / R")
    require(
        abs(deviation - 1 / R) < 0.02, f"the standard deviation of A is {deviation:.3f}, expected is 1 / R = {1 / R}"
    )


def by_formula(v, x, M, A, B, s, heads, slots=None):
    """v with s * M X A B^(i) added in value head slots[i]."""
    V = v.unflatten(-1, (-1, B.shape[-1])).clone()
    for i, h in enumerate(slots or heads):
        V[:, :, h] += s * M * (x @ A @ B[i])
    return V.flatten(2)


def the_formula(student):
    """image_lora adds s * M X A B^(h) in the selected heads, with s = (alpha / R) * gamma / sqrt(n)."""
    D, K, R, G, alpha, gamma, heads = 10, 4, 2, 6, 5.0, 0.3, [1, 3, 4]
    n = len(heads)
    v, x, A, B = torch.randn(2, 7, G * K), torch.randn(2, 7, D), torch.randn(D, R), torch.randn(n, R, K)
    visual_mask = torch.tensor([[0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0]]).bool()
    before, M, s = v.clone(), visual_mask[..., None].float(), alpha / R * gamma / n**0.5
    halves = v.unflatten(-1, (K, G)).clone()  # the other way to split
    for i, h in enumerate(heads):
        halves[..., h] += s * M * (x @ A @ B[i])

    def mistake(factor=s, mask=M, slots=None):
        return by_formula(v, x, mask, A, B, factor, heads, slots)

    shared = v.unflatten(-1, (-1, K)).clone()
    for h in heads:
        shared[:, :, h] += s * M * (x @ A @ B[0])
    mistakes = [
        (
            mistake(alpha / R * gamma),
            "the factor 1/sqrt(n) is missing: without it the update grows with the number of heads",
        ),
        (mistake(alpha / R * gamma / n), "the update is divided by n; divide by sqrt(n)"),
        (mistake(alpha / R * gamma / G**0.5), "n is the number of selected heads, not G, the number of all of them"),
        (mistake(alpha / R / n**0.5), "the factor gamma is missing"),
        (mistake(alpha * gamma / n**0.5), "alpha is not divided by the rank R"),
        (mistake(gamma / n**0.5), "the factor alpha / R is missing"),
        (mistake(mask=1.0), "every token is changed: the mask is not used"),
        (mistake(slots=list(range(n))), "the update goes into heads 0, 1, ...: B[i] belongs to head heads[i]"),
        (halves.flatten(2), "v is split the wrong way: head h has the numbers from h * K to (h + 1) * K"),
        (shared.flatten(2), "all heads get the same update: B[i] is that of the i-th selected head"),
        (mistake() - v, "this is the update alone: the frozen values v are missing"),
    ]
    try:
        got = student.image_lora(v, x, visual_mask, A, B, gamma, alpha, heads)
    except IndexError:
        raise Wrong("B has n entries, one for each selected head: use B[i] for the i-th of them, not B[h]") from None
    require(torch.equal(v, before), "v itself was changed: unflatten gives a view of it; change a copy, .clone()")
    compare("image_lora", got, mistake(), mistakes)


def in_the_real_model(student):
    """In the real model your update gives the logits of the project's own Image-LoRA; at step 0, the frozen ones."""
    (vlm, _), batch = tiny(), mixed()
    heads, before = {0: [1], 2: [0, 3], 5: [0, 1, 2, 3]}, frozen(batch)
    adapter = ImageLoRA(vlm.config, heads, rank=4, alpha=12, gamma=0.5)

    def student_logits():
        updates = {}
        for layer, ours in ((layer, adapter.layers[str(layer)]) for layer in heads):
            found = ours.A, ours.B, ours.gamma, 12, heads[layer]
            updates[layer] = lambda v, x, _, found=found: student.image_lora(v, x, batch.visual_mask, *found)
        return with_updates(batch, updates)

    require(torch.equal(student_logits(), before), "with B = 0 the logits are not those of the frozen model")
    for p in adapter.parameters():
        p.data = torch.randn(p.shape) * 0.5
    adapter.attach(vlm)
    ours = frozen(batch)
    adapter.detach()
    compare("the logits with your image_lora", student_logits(), ours)


def flops_are_counted(student):
    """One layer of a step: 6 * N * (D*R + R*n*K)."""
    for N, D, R, n, K in ((5000, 2048, 8, 1, 128), (1568, 128, 8, 3, 16)):
        right = 6 * N * (D * R + R * n * K)
        mistakes = [
            (right / 3, "this is the forward pass alone: the backward pass makes each product twice more"),
            (right / 2, "a multiply-add counts as two operations"),
            (right / 6, "count two for a multiply-add, and each product three times: forward, and twice backward"),
            (6 * N * (D * R + R * K), "the second product makes n heads: [N, R] x [R, n*K]"),
            (6 * N * n * (D * R + R * K), "X A is made once for all heads of a layer: they share A"),
            (
                6 * N * D * n * K,
                "this is the cost of a full matrix: the products are [N, D] x [D, R] and [N, R] x [R, n*K]",
            ),
        ]
        compare("adapter_flops", student.adapter_flops(N, D, R, n, K), right, mistakes)


CHECKS = [start_has_one_a_and_a_b_for_each_head, the_formula, in_the_real_model, flops_are_counted]

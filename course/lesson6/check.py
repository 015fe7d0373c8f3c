"""What lesson 6 checks."""

from statistics import fmean

import torch

from course.checks import ValuePath, Wrong, compare, require, scenes, tiny
from imagelora import ImageLoRA
from probe import random_heads


def the_chain_rule(student):
    """gradient_of_B is the sum over visual tokens of (x A) times dLoss/dV."""
    dV, x, A = torch.randn(2, 9, 3, 4), torch.randn(2, 9, 6), torch.randn(6, 1)
    visual_mask = torch.zeros(2, 9, dtype=torch.bool)
    visual_mask[0, 1:4], visual_mask[1, 3:8] = True, True
    each = (x @ A)[..., None] * dV  # [B, T, G, K]
    right = each[visual_mask].sum(dim=0)
    mistakes = [
        (each.sum(dim=(0, 1)), "all tokens are summed: the update acts on visual tokens only, use the mask"),
        (each[visual_mask].mean(dim=0), "this is the mean over the visual tokens: the chain rule gives the sum"),
        (dV[visual_mask].sum(dim=0), "A is missing: V~ depends on B through x A"),
        (each[visual_mask].abs().sum(dim=0), "absolute values were summed: contributions may cancel within an example"),
        (
            each[visual_mask].square().sum(dim=0),
            "it is squared too early: first the complete gradient, then its square",
        ),
        (each[0][visual_mask[0]].sum(dim=0), "only the first row is counted"),
        (right.sum(dim=0), "the heads are added up: each has its own B, the result is [G, K]"),
    ]
    compare("gradient_of_B", student.gradient_of_B(dV, x, visual_mask, A), right, mistakes)


def the_score(student):
    """head_scores squares the norm of each example's gradient first, and then sums."""
    g = torch.randn(5, 3, 4, 6)
    right = g.square().sum(dim=(0, 3))
    mistakes = [
        (
            g.sum(dim=0).square().sum(dim=-1),
            "summed before squaring: opposite gradients cancel; square each example's first",
        ),
        (g.mean(dim=0).square().sum(dim=-1), "averaged before squaring: opposite gradients cancel; square each first"),
        (g.norm(dim=-1).sum(dim=0), "this sums norms: the score sums squared norms"),
        (g.abs().sum(dim=(0, 3)), "this sums absolute values: the score sums squares"),
        (g.square().mean(dim=(0, 3)), "this is a mean: the score is a sum over examples, and over the numbers of B"),
        (g.square().mean(dim=3).sum(dim=0), "the norm of a vector sums its squares; here their mean is taken"),
        (g.square().mean(dim=0).sum(dim=-1), "this is the mean over the examples: the score is their sum"),
        (g.square().sum(dim=(0, 2)), "the heads are summed and the numbers of B are kept: sum over dimensions 0 and 3"),
        (g[0].square().sum(dim=-1), "only the first example is counted"),
        (right.sqrt(), "a root was taken at the end: the score is the sum of squared norms"),
    ]
    compare("head_scores", student.head_scores(g), right, mistakes)


def the_best(student):
    """best_heads gives exactly the budget, the highest scores of all layers."""
    scores = torch.rand(5, 4)
    scores[1] += 2  # a strong layer
    scores[3] /= 1000
    for budget in (1, 3, 6, 11, 20):

        def chosen(numbers):
            heads = {}
            for number in sorted(numbers):
                heads.setdefault(number // 4, []).append(number % 4)
            return heads

        flat = scores.flatten()
        order = flat.argsort(descending=True).tolist()
        right = chosen(order[:budget])
        got = student.best_heads(scores, budget)
        require(isinstance(got, dict), "best_heads: return {layer: [heads]}, a dict")
        if any(torch.is_tensor(h) for hs in got.values() for h in hs) or any(torch.is_tensor(layer) for layer in got):
            raise Wrong("best_heads: tensors in the dict; make numbers of them with .item() or .tolist()")
        require(all(got.values()), "best_heads: a layer without a head is in the dict; leave it out")
        each = max(1, budget // 5)
        by_layer = {layer: sorted(scores[layer].topk(min(each, 4)).indices.tolist()) for layer in range(5)}
        mistakes = [
            (chosen(order[-budget:]), "these are the heads with the lowest scores"),
            (by_layer, "each layer gives equally many heads: here the best of all layers are asked for"),
            (chosen(range(budget)), "these are the first heads, not the best"),
        ]
        if {layer: sorted(hs) for layer, hs in got.items()} == right and got != right:
            raise Wrong("best_heads: the right heads, but within a layer they are to be in ascending order")
        compare(f"best_heads of budget {budget}", got, right, mistakes)


def by_hand(student, batch, A):
    """dLoss/dB of every layer of the real model by the student's chain rule: [L, G, K]."""
    vlm, _ = tiny()
    kept = []

    def watch(v, x, visual_index):
        v = v.detach().requires_grad_() if not v.requires_grad else v
        kept.append((v, x.detach()))
        return v

    layers = range(vlm.config.layers)
    with ValuePath(dict.fromkeys(layers, watch)):
        gradients = torch.autograd.grad(vlm.loss(batch), [v for v, _ in kept])
    found = []
    for (_, x), dv, a in zip(kept, gradients, A):
        dV = dv.unflatten(-1, (-1, vlm.config.head_size))
        found.append(student.gradient_of_B(dV, x, batch.visual_mask, a.detach()))
    return torch.stack(found)


def in_the_real_model(student):
    """In the real model your chain rule gives the gradient that autograd finds for a rank-1 Image-LoRA on every head."""
    vlm, processor = tiny()
    c, batch = vlm.config, processor(scenes(2))
    probe = ImageLoRA(c, {layer: list(range(c.value_heads)) for layer in range(c.layers)}, rank=1, alpha=1, gamma=1.0)
    n = c.value_heads
    probe.attach(vlm)
    gradients = torch.autograd.grad(vlm.loss(batch), [layer.B for layer in probe.layers.values()])
    probe.detach()
    right = torch.stack([g[:, 0] for g in gradients]) * n**0.5  # without the probe's 1/sqrt(n)
    compare("gradient_of_B", by_hand(student, batch, [layer.A for layer in probe.layers.values()]), right)


def probed_against_random(student):
    """In the real model a small step on your heads lowers the loss more than on as many random heads (mean of five)."""
    vlm, processor = tiny()
    c, budget = vlm.config, 6
    every_head = {layer: list(range(c.value_heads)) for layer in range(c.layers)}
    probe = ImageLoRA(c, every_head, rank=1, alpha=1, gamma=1.0)
    examples = scenes(8)
    A = [layer.A for layer in probe.layers.values()]
    scores = student.head_scores(torch.stack([by_hand(student, processor([e]), A) for e in examples]))
    selections = [student.best_heads(scores, budget), *(random_heads(c, budget, seed) for seed in range(5))]

    probe.attach(vlm)
    try:
        none, yours, *random = losses_after_a_step(vlm, probe, processor(examples), [{}, *selections])
    finally:
        probe.detach()
    words = f"your heads lower the loss by {none - yours:.4f}, random ones by {none - fmean(random):.4f}"
    require(yours < fmean(random), f"{words}: the scores do not find what matters")


def losses_after_a_step(vlm, probe, batch, selections):
    """The loss after a small step on the B of the selected heads alone, for each selection {layer: [heads]}."""
    parameters = [layer.B for layer in probe.layers.values()]
    gradients = torch.autograd.grad(vlm.loss(batch), parameters)
    losses = []
    with torch.no_grad():
        for heads in selections:
            for layer, (B, g) in enumerate(zip(parameters, gradients)):
                B.zero_()
                B[heads.get(layer, [])] -= 0.05 * g[heads.get(layer, [])]
            losses.append(vlm.loss(batch).item())
    return losses


CHECKS = [the_chain_rule, the_score, the_best, in_the_real_model, probed_against_random]

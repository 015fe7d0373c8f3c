"""What lesson 7 checks."""

from statistics import fmean

import torch

from course.checks import compare, gradients, require
from course.real import every_head, scenes, tiny, with_adapter, with_updates
from imagelora import ImageLoRA
from probe import random_heads

BUDGET, DRAWS, RANDOM = 6, 5, 8  # heads; draws of A; random selections for each


def the_chain_rule(student):
    """gradient_of_B is the gradient of each head's B, from dLoss/dV~."""
    dV, x, A = torch.randn(2, 9, 3, 4), torch.randn(2, 9, 6), torch.randn(6, 1)
    visual_mask = torch.zeros(2, 9, dtype=torch.bool)
    visual_mask[0, 1:4], visual_mask[1, 3:8] = True, True
    each = (x @ A)[..., None] * dV  # [batch, T, G, K]
    right = each[visual_mask].sum(dim=0)
    mistakes = {
        "all tokens are summed -> the update acts on visual tokens only, use the mask": each.sum(dim=(0, 1)),
        "this is the mean over the visual tokens -> the chain rule gives the sum": each[visual_mask].mean(dim=0),
        "A is missing -> V~ depends on B through x A": dV[visual_mask].sum(dim=0),
        "absolute values were summed -> contributions may cancel within an example": each[visual_mask].abs().sum(dim=0),
        "squared too early -> first the complete gradient, then its square": each[visual_mask].square().sum(dim=0),
        "only the first row is counted -> sum over the batch, too": each[0][visual_mask[0]].sum(dim=0),
        "the heads are added up -> each has its own B, the result is [G, K]": right.sum(dim=0),
    }
    compare("gradient_of_B", student.gradient_of_B(dV, x, visual_mask, A), right, mistakes)


def the_score(student):
    """head_scores gives each head's score over all probe examples."""
    g = torch.randn(5, 3, 4, 6)
    squares = g.square().sum(dim=-1)
    mistakes = {
        "summed before squaring -> opposite gradients cancel; square each example's first": g.sum(0).square().sum(-1),
        "averaged before squaring -> opposite gradients cancel; square each first": g.mean(0).square().sum(-1),
        "this sums norms -> the score sums squared norms": g.norm(dim=-1).sum(dim=0),
        "this sums absolute values -> the score sums squares": g.abs().sum(dim=(0, 3)),
        "the norm is K times too small -> it sums the squares, here their mean is taken": g.square().mean(3).sum(0),
        "this is the mean over the examples -> the score is their sum": squares.mean(dim=0),
        "the heads are summed -> sum over dimensions 0 and 3": g.square().sum(dim=(0, 2)),
        "only the first example is counted -> sum over dimension 0": squares[0],
    }
    compare("head_scores", student.head_scores(g), squares.sum(dim=0), mistakes)


def as_heads(numbers):
    """Numbers of heads, counted through the layers of four, as {layer: [heads]}."""
    heads = {}
    for number in sorted(numbers):
        heads.setdefault(number // 4, []).append(number % 4)
    return heads


def the_best(student):
    """best_heads gives exactly the budget, the highest scores of all layers."""
    scores = torch.rand(5, 4)
    scores[1] += 2  # a strong layer
    for budget in (1, 3, 6, 11, 20):
        order = scores.flatten().argsort(descending=True).tolist()
        got = student.best_heads(scores, budget)
        require(isinstance(got, dict), "this is no dict -> return {layer: [heads]}")
        require(all(got.values()), "a layer without a head is in the dict -> leave it out")
        numbers = {type(n) for layer, heads in got.items() for n in (layer, *heads)}
        require(numbers == {int}, "tensors are in the dict -> make numbers of them with .item() or .tolist()")
        ascending = all(heads == sorted(heads) for heads in got.values())
        require(ascending, "the heads of a layer are not in ascending order -> sort them")
        mistakes = {
            "these are the heads with the lowest scores -> descending=True": as_heads(order[-budget:]),
            "these are the first heads -> the best are asked for": as_heads(range(budget)),
        }
        compare(f"best_heads of budget {budget}", got, as_heads(order[:budget]), mistakes)


def by_chain_rule(student, batch, A):
    """dLoss/dB of every layer of the real model by the student's chain rule, [L, G, K]. A: that of each layer."""
    vlm, kept = tiny()[0], []

    def watch(v, x, visual_index):
        v = v if v.requires_grad else v.detach().requires_grad_()
        kept.append((v, x.detach()))
        return v

    loss = with_updates(dict.fromkeys(range(vlm.config.layers), watch), lambda: vlm.loss(batch))
    each = []
    for (_, x), dv, a in zip(kept, torch.autograd.grad(loss, [v for v, _ in kept]), A):
        dV = dv.unflatten(-1, (-1, vlm.config.head_size))
        each.append(student.gradient_of_B(dV, x, batch.visual_mask, a.detach()))
    return torch.stack(each)


def in_the_real_model(student):
    """In the real model your chain rule gives the gradient that autograd gives for a rank-1 Image-LoRA on every head."""
    vlm, batch = tiny()[0], tiny()[1](scenes(2))
    probe = ImageLoRA(vlm.config, every_head(), rank=1, alpha=1, gamma=1.0)
    Bs = [layer.B for layer in probe.layers.values()]
    ours = with_adapter(probe, lambda: gradients(vlm.loss(batch), Bs))
    right = torch.stack([g[:, 0] for g in ours]) * vlm.config.value_heads**0.5  # without the probe's 1/sqrt(n)
    compare("gradient_of_B", by_chain_rule(student, batch, [layer.A for layer in probe.layers.values()]), right)


def after_a_step(probe, probed, others, selections):
    """How much a gradient step on `probed`, in the selected heads alone, lowers the loss of `others`: for each selection."""
    vlm, Bs = tiny()[0], [layer.B for layer in probe.layers.values()]
    steps, losses = with_adapter(probe, lambda: gradients(vlm.loss(probed), Bs)), []
    with torch.no_grad():
        for heads in [{}, *selections]:
            for layer, (B, step) in enumerate(zip(Bs, steps)):
                B.zero_()
                B[heads.get(layer, [])] -= 0.2 * step[heads.get(layer, [])]
            losses.append(with_adapter(probe, lambda: vlm.loss(others)).item())
    return [losses[0] - loss for loss in losses[1:]]


def probed_against_random(student):
    """A step on your heads lowers the loss of other examples more than one on random heads, in the mean of five probes."""
    (vlm, processor), examples = tiny(), scenes(32)
    probed, others = processor(examples[:8]), processor(examples[16:])
    yours, random = [], []
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        probe = ImageLoRA(vlm.config, every_head(), rank=1, alpha=1, gamma=1.0)
        A = [layer.A for layer in probe.layers.values()]
        scores = student.head_scores(torch.stack([by_chain_rule(student, processor([e]), A) for e in examples[:8]]))
        selections = [student.best_heads(scores, BUDGET)]
        selections += [random_heads(vlm.config, BUDGET, RANDOM * draw + i) for i in range(RANDOM)]
        first, *rest = after_a_step(probe, probed, others, selections)
        yours.append(first)
        random.append(fmean(rest))
    each = ", ".join(f"{lower:+.4f}" for lower in yours)
    words = f"the loss of sixteen other questions falls by {fmean(yours):.4f} with your heads, {fmean(random):.4f} with random ones"
    require(fmean(yours) > fmean(random), f"{words}: the scores do not say what matters")
    return f"{words}. Your five draws of A: {each}"


CHECKS = [the_chain_rule, the_score, the_best, in_the_real_model, probed_against_random]

"""What lesson 7 checks."""

from statistics import fmean

import torch

from course.checks import compare, require
from course.real import attached, scenes, tiny
from imagelora import ImageLoRA
from probe import gradients, random_heads, select_heads


def check_the_chain_rule(student):
    """gradient_of_B is the gradient of each head's B, from dLoss/dV~."""
    dV, x, A = torch.randn(2, 9, 3, 4), torch.randn(2, 9, 6), torch.randn(6, 1)
    visual_mask = torch.zeros(2, 9, dtype=torch.bool)
    visual_mask[0, 1:4], visual_mask[1, 3:8] = True, True
    each = (x @ A)[..., None] * dV  # [batch, T, G, K]
    visual = each[visual_mask]  # [N, G, K]
    mistakes = {
        "all tokens are summed -> the update acts on visual tokens only, use the mask": each.sum(dim=(0, 1)),
        "the text is summed -> the mask is the wrong way round": each[~visual_mask].sum(dim=0),
        "this is the mean over the visual tokens -> the chain rule gives the sum": visual.mean(dim=0),
        "A is missing -> V~ depends on B through x A": dV[visual_mask].sum(dim=0),
        "squared too early -> first the complete gradient, then its square": visual.square().sum(dim=0),
        "the heads are added up -> each has its own B, the result is [G, K]": visual.sum(dim=(0, 1)),
    }
    compare("gradient_of_B", student.gradient_of_B(dV, x, visual_mask, A), visual.sum(dim=0), mistakes)


def check_the_score(student):
    """head_scores gives each head's score over all probe examples."""
    g = torch.randn(5, 3, 4, 6)
    squares = g.square().sum(dim=-1)
    mistakes = {
        "summed before squaring -> opposite gradients cancel; square each example's first": g.sum(0).square().sum(-1),
        "this sums absolute values -> a squared norm sums squares": g.abs().sum(dim=-1).sum(dim=0),
        "this sums norms -> the score sums squared norms": g.norm(dim=-1).sum(dim=0),
        "the norm is K times too small -> it sums the squares, here their mean is taken": g.square().mean(3).sum(0),
        "this is the mean over the examples -> the score is their sum": squares.mean(dim=0),
    }
    compare("head_scores", student.head_scores(g), squares.sum(dim=0), mistakes)


def draw_A(seed):
    """The A of each layer, [D, 1], as the probe draws them from this seed."""
    torch.manual_seed(seed)
    config = tiny()[0].config
    return [torch.randn(config.hidden, 1) for _ in range(config.layers)]


def by_chain_rule(student, batch, A):
    """dLoss/dB of every layer of the real model by the student's chain rule, [L, G, K]. A: that of each layer."""
    (vlm, _), kept, each = tiny(), [], []

    def watch(v, x, visual_index):
        kept.append((v.requires_grad_(), x.detach()))
        return v

    with attached({(layer, "v"): watch for layer in range(vlm.config.layers)}):
        loss = vlm.loss(batch)
    for (_, x), dV, a in zip(kept, torch.autograd.grad(loss, [v for v, _ in kept]), A):
        dV = dV.unflatten(-1, (-1, vlm.config.head_size))  # [B, T, G, K]
        each.append(student.gradient_of_B(dV, x, batch.visual_mask, a.detach()))
    return torch.stack(each)


def check_in_the_real_model(student):
    """In the real model your chain rule gives the gradient that autograd gives for a rank-1 Image-LoRA on every head."""
    vlm, processor = tiny()
    every_head = dict.fromkeys(range(vlm.config.layers), range(vlm.config.value_heads))
    layers = list(ImageLoRA(vlm.config, every_head, rank=1, alpha=1, gamma=1.0).layers.values())
    batch = processor(scenes(2))
    (ours,) = gradients(vlm, [batch], layers, [layer.B for layer in layers])
    right = ours / layers[0].norm  # our s is 1/sqrt(4), not 1
    compare("gradient_of_B", by_chain_rule(student, batch, [layer.A for layer in layers]), right)


def a_draw_of_A(student, seed):
    """By how much a step on eight questions lowers the loss of sixteen others: in heads by the student's scores, and
    in random ones (the mean of four selections)."""
    (vlm, processor), examples, A = tiny(), scenes(32), draw_A(seed)
    dB = torch.stack([by_chain_rule(student, processor([e]), A) for e in examples[:8]])  # [S, L, G, K]
    others = processor(examples[16:])
    before = vlm.loss(others).item()

    @torch.no_grad()
    def lower_by(heads):
        """By how much a step from B = 0 along the mean gradient, in these heads alone, lowers the loss of the others."""
        updates = {}
        for layer, selected in heads.items():
            B = torch.zeros(dB.shape[2:])  # [G, K]
            B[selected] = -0.05 * dB.mean(dim=0)[layer, selected]
            AB = A[layer] @ B.view(1, -1)  # [D, G*K]
            updates[layer, "v"] = lambda v, x, visual_index, AB=AB: v + others.visual_mask[..., None] * (x @ AB)
        with attached(updates):
            return before - vlm.loss(others).item()

    random = [lower_by(random_heads(vlm.config, 6, 4 * seed + i)) for i in range(4)]
    return lower_by(select_heads(student.head_scores(dB), 6)), fmean(random)


def check_probed_against_random(student):
    """A step in six heads by your scores lowers the loss of other questions more than in random heads (mean of five probes)."""
    yours, random = zip(*(a_draw_of_A(student, seed) for seed in range(5)))
    words = f"the loss of other questions falls by {fmean(yours):.4f} in heads by your scores, by {fmean(random):.4f} in random ones"
    require(fmean(yours) > fmean(random), f"{words}: the scores do not say what matters")
    return f"{words}. Your five draws of A: {', '.join(f'{lower:+.4f}' for lower in yours)}"

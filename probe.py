"""Lecture 4. Which heads? Influence scores, and a head budget that is split over the layers.

You will see the paper's probe (section 3): attach a rank-1 Image-LoRA to every value head of every layer with B = 0,
and measure how strongly the loss pulls at each head's B:

    score(h) = sum over probe batches of || dLoss / dB^(h) ||^2

With B = 0 the model is the frozen one. To first order, a gradient step of size eta on B^(h) lowers the loss of an example
by eta * || dLoss / dB^(h) ||^2: a rough estimate of what head h alone can gain. Each batch has one example. Each gradient is
squared before the sum, so opposite gradients do not cancel. A is random, one for each layer, drawn from the seed: another
seed gives somewhat other scores.

    scores = head_scores(vlm, batches)                    [L, G]
    heads = select_heads(scores, budget)                  {layer: [heads]}

`python train.py --probe-only` prints the ranking. Letters: L layers, G value heads of a layer, K head size, N visual
tokens in the batch.
"""

import json
import random

import torch
from torch import nn

from imagelora import ImageLoRA, check_heads
from parts.files import read_json, reading, write_text


def gradients(vlm, batches, updates, parameters):
    """Attach `updates`, one module a layer, to the values, and yield dLoss/dparameters, [L, G, size] on the CPU, for
    each batch. The updates stay attached until the last batch; another adapter that is attached acts too. Raises
    ValueError for a batch without visual tokens, which could only give zero."""
    slots = [layer.self_attn.updates["v"] for layer in vlm.model.layers]
    for slot, update in zip(slots, updates):
        slot.append(update.to(vlm.device))
    try:
        for i, batch in enumerate(batches):
            if len(batch.visual_index) == 0:
                raise ValueError(f"probe batch {i} has no visual token: nothing to measure")
            with torch.enable_grad():
                grads = torch.autograd.grad(vlm.loss(batch), parameters)
            yield torch.stack([g.reshape(vlm.config.value_heads, -1) for g in grads]).cpu()
    finally:
        for slot in slots:
            slot.pop()


def rank1(vlm, batches):
    """The paper's criterion: a rank-1 Image-LoRA on every head, B = 0, and the sum over the batches of || dLoss/dB^(h) ||^2.
    alpha, R and gamma are 1: the scale s is the same for all heads, so it does not change the ranking."""
    c = vlm.config
    every_head = {layer: list(range(c.value_heads)) for layer in range(c.layers)}
    updates = list(ImageLoRA(c, every_head, rank=1, alpha=1, gamma=1.0).layers.values())
    return sum(g.square().sum(dim=-1) for g in gradients(vlm, batches, updates, [update.B for update in updates]))


class HeadGates(nn.Module):
    """A factor on each head's visual values, 1 at the start."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Parameter(torch.ones(config.value_heads))

    def forward(self, v, x, visual_index):
        V = v.view(v.shape[0] * v.shape[1], len(self.gate), -1)  # [B*T, G, K]
        change = V[visual_index] * (self.gate[:, None] - 1)  # [N, G, K]
        return V.index_add(0, visual_index, change.to(v.dtype)).view_as(v)


def gate(vlm, batches):
    """The criterion of the authors' published script: a scalar on each head's visual values, (dLoss/dgate)^2."""
    updates = [HeadGates(vlm.config) for _ in range(vlm.config.layers)]
    return sum(g.square().sum(dim=-1) for g in gradients(vlm, batches, updates, [update.gate for update in updates]))


CRITERIA = {"rank1": rank1, "gate": gate}  # (vlm, batches) -> scores [L, G]; a new one is a function and a line here


def head_scores(vlm, batches, criterion="rank1", seed=0):
    """The influence of every value head, float32 [L, G] on the CPU.

    batches: Batches with answers and visual tokens, on the model's device; one example each for the paper's score.
    criterion: a name in CRITERIA (more are in harness/ablations.py); seed: draws the probe's A. Raises ValueError for
    another criterion, for no batch, and for a batch without visual tokens."""
    if criterion not in CRITERIA:
        raise ValueError(f"no criterion {criterion!r}; choose from {', '.join(CRITERIA)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scores = CRITERIA[criterion](vlm, batches)
    if not torch.is_tensor(scores):  # a sum over nothing
        raise ValueError("no probe batch: nothing to measure")
    return scores


def select_heads(scores, budget, tau=0.5):
    """Pick exactly `budget` heads: {layer: [heads]}.

    The share of a layer is proportional to mass^tau, where its mass is the sum of its scores: tau 0 treats all layers
    alike. Within a layer the highest scores win. scores [L, G] >= 0. Raises ValueError for a budget below 1 or above
    L * G, and for scores that are negative or not finite."""
    L, G = scores.shape
    if not 1 <= budget <= L * G:
        raise ValueError(f"a budget of {budget} heads: the model has {L * G}, choose 1 to {L * G}")
    if not (scores.isfinite().all() and (scores >= 0).all()):
        raise ValueError("head scores must be finite and not negative")
    mass = scores.double().sum(dim=1)
    weight = (mass / mass.max().clamp(min=1e-300)) ** tau  # 1e-300: all masses may be 0

    # A layer takes at most its G heads. What a full layer cannot take goes to the others by the same rule.
    share = torch.zeros(L, dtype=torch.double)
    while (left := budget - share.sum().item()) > 1e-9:  # 1e-9, and below: rounding errors
        not_full = share < G - 1e-9
        w = weight * not_full
        if w.sum() == 0:  # only layers without mass are left: all alike
            w = not_full.double()
        share = (share + left * w / w.sum()).clamp(max=G)

    # Round down, then give what is missing to the largest remainders, until exactly `budget` heads are given.
    quota = (share + 1e-9).floor().long()
    remainder = (share - quota).tolist()
    open_layers = [layer for layer in range(L) if quota[layer] < G]
    for layer in sorted(open_layers, key=lambda layer: -remainder[layer])[: budget - int(quota.sum())]:
        quota[layer] += 1

    ranked = scores.argsort(dim=1, descending=True, stable=True)
    return {layer: sorted(ranked[layer, :n].tolist()) for layer, n in enumerate(quota.tolist()) if n}


def random_heads(config, budget, seed):
    """Exactly `budget` heads, uniform over all L * G: the comparison for the probe."""
    every_head = [(layer, head) for layer in range(config.layers) for head in range(config.value_heads)]
    heads = {}
    for layer, head in sorted(random.Random(seed).sample(every_head, budget)):
        heads.setdefault(layer, []).append(head)
    return heads


def save_selection(path, heads, scores=None):
    """Write a selection, and the scores that led to it (lists, [L][G]), as JSON."""
    write_text(path, json.dumps({"heads": heads, "scores": scores}) + "\n")


def load_selection(path, config):
    """Read a selection: (heads, scores as lists or None). Raises InputError if it does not fit the model."""
    with reading(path, "a head selection for this model"):
        selection, size = read_json(path), (config.layers, config.value_heads)
        scores = selection["scores"]
        if scores is not None and (torch.tensor(scores).shape != size or min(map(min, scores)) < 0):
            raise ValueError("scores are a number, 0 or more, for each head of each layer")
        return check_heads(config, selection["heads"]), scores

"""Which heads to adapt: influence scores, and a head budget split over the layers.

The paper's probe (section 3): attach a rank-1 Image-LoRA to every value head of every layer with B = 0, and measure

    score(h) = sum over probe batches of || dLoss / dB^(h) ||^2

With B = 0 the model is the frozen one, so this is a first-order estimate of how far adapting head h alone can lower
the loss: a gradient step of size eta on B^(h) lowers it by eta * score(h). One example a batch: square, then sum.

    python probe.py                                       the ranking and the influence map of the tiny model

    scores = head_scores(vlm, batches)                    [L, G]
    heads = select_heads(scores, budget)                  {layer: [heads]}

L layers, G value heads of a layer, K head size, N visual tokens in the batch.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from torch import nn

from files import InputError, read_json, write_text
from imagelora import ImageLoRA


class HeadGates(nn.Module):
    """A factor on each head's visual values, 1 at the start: what the authors' published script probes with."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Parameter(torch.ones(config.value_heads))

    def forward(self, v, x, visual_index):
        V = v.view(v.shape[0] * v.shape[1], len(self.gate), -1)  # [B*T, G, K]
        gated = V[visual_index] * (self.gate[:, None] - 1)
        return V.index_add(0, visual_index, gated.to(v.dtype)).view_as(v)


class Stacked(nn.Module):
    """An instrument on top of an adapter that sits there already: to probe a model in the middle of its training."""

    def __init__(self, below, above):
        super().__init__()
        self.below, self.above = below, above

    def forward(self, v, x, visual_index):
        return self.above(self.below(v, x, visual_index), x, visual_index)


def gradients(vlm, batches, instruments, parameters):
    """Attach instruments {layer: module on the value path} and yield dLoss/dparameters, [L, G, size] on the CPU, of one
    batch after another. The model is left as it was. Raises ValueError for a batch without visual tokens, which could
    only give zero."""
    paths = [vlm.model.layers[layer].self_attn.adapters for layer in range(vlm.config.layers)]
    before = [adapters.get("v") for adapters in paths]
    for adapters, there, instrument in zip(paths, before, instruments):
        adapters["v"] = instrument.to(vlm.device) if there is None else Stacked(there, instrument.to(vlm.device))
    try:
        for i, batch in enumerate(batches):
            if len(batch.visual_index) == 0:
                raise ValueError(f"probe batch {i} has no visual token: nothing to measure")
            with torch.enable_grad():
                found = torch.autograd.grad(vlm.loss(batch), parameters)
            yield torch.stack([g.view(vlm.config.value_heads, -1) for g in found]).cpu()
    finally:
        for adapters, there in zip(paths, before):
            del adapters["v"]
            if there is not None:
                adapters["v"] = there


def rank1_gradients(vlm, batches):
    """dLoss/dB^(h) of a rank-1 Image-LoRA on every head, B = 0. s is the same for all heads (alpha, R and gamma 1), so
    that it does not touch the ranking."""
    c = vlm.config
    everything = {layer: list(range(c.value_heads)) for layer in range(c.layers)}
    layers = ImageLoRA(c, everything, rank=1, alpha=1, gate=1.0).layers.values()
    return gradients(vlm, batches, layers, [layer.B for layer in layers])


def rank1(vlm, batches):
    """The paper's: sum over the batches of || dLoss/dB^(h) ||^2."""
    return sum(g.square().sum(dim=-1) for g in rank1_gradients(vlm, batches))


def gate(vlm, batches):
    """The authors' published script: a scalar on each head's visual values instead of a direction, (dLoss/dgate)^2."""
    gates = [HeadGates(vlm.config) for _ in range(vlm.config.layers)]
    return sum(g.square().sum(dim=-1) for g in gradients(vlm, batches, gates, [g.gate for g in gates]))


def second_order(vlm, batches):
    """How much a Newton step along the mean gradient g of B^(h) would lower the loss: |g|^4 / (g^T F g), with the
    empirical Fisher matrix F (mean over the batches of g_b g_b^T) in place of the Hessian; the factor 1/2 left out."""
    each = torch.stack(list(rank1_gradients(vlm, batches)))  # [batches, L, G, K]
    g = each.mean(dim=0)
    curvature = (each * g).sum(dim=-1).square().mean(dim=0)
    return g.square().sum(dim=-1).square() / curvature.clamp(min=1e-30)


def learned_mask(vlm, batches):
    """One pass of Adam (learning rate 0.01) on a factor for each head's visual values: how far learning moves it from
    1, squared."""
    gates = [HeadGates(vlm.config) for _ in range(vlm.config.layers)]
    parameters = [g.gate for g in gates]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for found in gradients(vlm, batches, gates, parameters):
        for p, g in zip(parameters, found):
            p.grad = g[:, 0].to(p.device)
        optimizer.step()
    return torch.stack([p.detach().cpu() - 1 for p in parameters]).square()


def weight_norm(vlm, batches):
    """|| W_V^(h) ||^2: looks at no data at all."""
    G = vlm.config.value_heads
    weights = [layer.self_attn.v_proj.weight.detach().float().cpu() for layer in vlm.model.layers]
    return torch.stack([w.view(G, -1).square().sum(dim=1) for w in weights])


def chance(vlm, batches):
    """Uniform random numbers, one a head."""
    return torch.rand(vlm.config.layers, vlm.config.value_heads)


CRITERIA = {  # (vlm, batches) -> scores [L, G]; a new criterion is one function and one line here
    "rank1": rank1,
    "gate": gate,
    "second-order": second_order,
    "learned-mask": learned_mask,
    "weight-norm": weight_norm,
    "chance": chance,
}


def head_scores(vlm, batches, criterion="rank1", seed=0):
    """The influence of every value head: float32 [L, G] on the CPU; for the paper's criterion, "rank1", the sum over
    the batches of squared gradient norms.

    batches: Batches with answers and visual tokens, on the model's device; one example each for the paper's score.
    criterion: a name in CRITERIA; seed: draws the probe's A. The model is left as it was, and an adapter on it stays: an
    adapted model can be probed too. Raises ValueError for an unknown criterion, no batch, or one without visual tokens.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; known: {', '.join(CRITERIA)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CRITERIA[criterion](vlm, batches)


def select_heads(scores, budget, tau=0.5):
    """Pick exactly `budget` heads: {layer: [heads]}.

    A layer's share is in proportion to mass^tau, its mass being the sum of its scores (tau 0: all layers alike, 1: in
    proportion), and at most its G heads; what a full layer cannot take goes to the others by the same rule. Shares are
    rounded by largest remainder. Within a layer the highest scores win. scores [L, G] >= 0. Raises ValueError for a
    budget below 1 or above L * G, and for scores that are negative or not finite.
    """
    L, G = scores.shape
    if not 1 <= budget <= L * G:
        raise ValueError(f"a budget of {budget} heads: the model has {L * G}, choose 1 to {L * G}")
    if not (scores.isfinite().all() and (scores >= 0).all()):
        raise ValueError("head scores must be finite and not negative")
    weight = scores.double().sum(dim=1)
    weight = (weight / weight.max().clamp(min=1e-300)) ** tau
    share = torch.zeros(L, dtype=torch.double)
    while (left := budget - share.sum().item()) > 1e-9:
        open_layers = share < G - 1e-9
        w = weight * open_layers
        w = w if w.sum() > 0 else open_layers.double()  # only layers without mass are left: all alike
        share = (share + left * w / w.sum()).clamp(max=G)
    quota = (share + 1e-9).floor().long()
    remainder = (share - quota).tolist()
    by_remainder = sorted((l for l in range(L) if quota[l] < G), key=lambda l: -remainder[l])
    for layer in by_remainder[: budget - int(quota.sum())]:
        quota[layer] += 1
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    return {layer: sorted(ranked[layer, :n].tolist()) for layer, n in enumerate(quota.tolist()) if n}


def random_heads(config, budget, seed):
    """Exactly `budget` heads, uniform over all L * G: the comparison for the probe."""
    everything = [(layer, head) for layer in range(config.layers) for head in range(config.value_heads)]
    heads = {}
    for layer, head in sorted(random.Random(seed).sample(everything, budget)):
        heads.setdefault(layer, []).append(head)
    return heads


def save_selection(path, heads, scores=None):
    """Write a selection, and the scores behind it (lists, [L][G]), as JSON."""
    write_text(path, json.dumps({"heads": heads, "scores": scores}) + "\n")


def load_selection(path, config):
    """Read a selection: (heads, scores as lists or None). Raises InputError if it does not fit the model."""
    selection = read_json(path)
    try:
        heads = {int(layer): [int(h) for h in hs] for layer, hs in selection["heads"].items()}
        scores = selection["scores"]
        ImageLoRA(config, heads, rank=1)  # checks every layer and head
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a head selection for this model ({error})") from None
    return heads, scores


def main(argv=None):
    """`python probe.py`: print the ranking of the heads and write the influence map."""
    from data import Processor, load
    from harness import figures
    from model import VLM
    from tasks import default_root

    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="tiny", help="checkpoint folder or hub id")
    parser.add_argument("--data", default="scenes", help="data set whose training rows are probed with")
    parser.add_argument("--data-root", help="its folder (default: data/NAME)")
    parser.add_argument("--samples", type=int, default=64, help="rows to probe with, drawn from the first 4,800")
    parser.add_argument("--criterion", choices=CRITERIA, default="rank1", help="what a head is scored by")
    parser.add_argument("--seed", type=int, default=0, help="draws the probe's A and its rows")
    parser.add_argument("--heads", type=int, help="budget (default: a quarter of all value heads)")
    parser.add_argument("--tau", type=float, default=0.5, help="a layer's share goes with its score to this power")
    parser.add_argument("--max-pixels", type=int, default=401408, help="largest area of a resized image")
    parser.add_argument("--out", default="heads.png", help="the influence map")
    args = parser.parse_args(argv)
    try:
        model = here / "tiny" if args.model == "tiny" else args.model
        vlm, processor = VLM.from_pretrained(model), Processor.from_pretrained(model, max_pixels=args.max_pixels)
        rows = [e for e in load(args.data, default_root(args.data, args.data_root), "train", 4800) if e.visuals]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))[: args.samples].tolist()
        scores = head_scores(vlm, (processor([rows[i]]) for i in order), args.criterion, args.seed)
        total = vlm.config.layers * vlm.config.value_heads
        heads = select_heads(scores, args.heads or max(1, total // 4), args.tau)
        figures.head_map(args.out, scores.tolist(), heads)
    except ValueError as error:  # InputError, and a budget or criterion that does not fit
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{'layer':>5} {'head':>4} {'score':>10}")
    for i in scores.flatten().argsort(descending=True).tolist():
        layer, head = divmod(i, vlm.config.value_heads)
        print(
            f"{layer:5} {head:4} {scores[layer, head]:10.4g}" + ("  selected" if head in heads.get(layer, []) else "")
        )
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()

"""Further criteria for choosing heads, to compare the paper's with. Each is a function (vlm, batches) -> [L, G]."""

import torch

from imagelora import ImageLoRA
from probe import CRITERIA, HeadGates, gradients, rank1_gradients


def exact(vlm, batches):
    """The paper's score without the noise of drawing A: its mean over all A.

    With one column a for A, dLoss/dB^(h) = s a^T M, where M = X_v^T G^(h) [D, K] and G^(h) = dLoss/dV^(h) at the visual
    tokens. For a ~ N(0, I) the mean of || s a^T M ||^2 is s^2 || M ||_F^2. Where A is the identity, s M is the gradient.
    """
    c = vlm.config
    every_head = {layer: list(range(c.value_heads)) for layer in range(c.layers)}
    layers = list(ImageLoRA(c, every_head, rank=c.hidden, alpha=c.hidden, gamma=1.0).layers.values())
    for layer in layers:
        layer.A.data = torch.eye(c.hidden)
    return sum(g.square().sum(dim=-1) for g in gradients(vlm, batches, layers, [layer.B for layer in layers]))


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


CRITERIA["exact"] = exact
CRITERIA["second-order"] = second_order
CRITERIA["learned-mask"] = learned_mask
CRITERIA["weight-norm"] = weight_norm
CRITERIA["chance"] = chance

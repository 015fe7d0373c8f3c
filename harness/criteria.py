"""Further criteria for choosing heads, to compare the paper's with. Each is a function (vlm, batches) -> [L, G]."""

import torch

from imagelora import ImageLoRA
from model import attend
from parts.backbones.layers import weights_kept
from probe import CRITERIA, gradients


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


@torch.no_grad()
def visual_attention(vlm, batches):
    """Shares [L, H] of the attention that goes to visual tokens, mean over the positions that predict the answer."""
    shares = []
    for batch in batches:
        with weights_kept(vlm.model.layers, attend) as kept:
            vlm(batch)
        weights = torch.stack(kept)  # [L, B, H, T, T]
        to_image = (weights * batch.visual_mask[:, None, None]).sum(dim=-1)  # [L, B, H, T]
        predicts = torch.zeros_like(batch.visual_mask)  # [B, T]: the next token is one of the answer
        predicts.view(-1)[batch.answer_index] = True
        shares.append((to_image * predicts[:, None]).sum(dim=(1, 3)) / predicts.sum())  # [L, H]
    return torch.stack(shares).mean(dim=0).cpu()


def attention_mass(vlm, batches):
    """How much the query heads that read a value head attend to the image (the criterion of arXiv 2503.06287)."""
    shares = visual_attention(vlm, batches)  # [L, H]
    return shares.unflatten(1, (vlm.config.value_heads, -1)).mean(dim=2)  # [L, G]


def weight_norm(vlm, batches):
    """|| W_V^(h) ||^2: looks at no data at all."""
    G = vlm.config.value_heads
    weights = [layer.self_attn.v_proj.weight.detach().float().cpu() for layer in vlm.model.layers]
    return torch.stack([w.view(G, -1).square().sum(dim=1) for w in weights])


def chance(vlm, batches):
    """Uniform random numbers, one a head."""
    return torch.rand(vlm.config.layers, vlm.config.value_heads)


CRITERIA["exact"] = exact
CRITERIA["attention-mass"] = attention_mass
CRITERIA["weight-norm"] = weight_norm
CRITERIA["chance"] = chance

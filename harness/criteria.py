"""Further criteria for choosing heads, to compare the paper's with. Each is a function (vlm, batches) -> [L, G]."""

import torch

from imagelora import ImageLoRA
from model import attend
from parts.backbones.layers import weights_kept
from probe import CRITERIA, gradients


def exact(vlm, batches):
    """The paper's score, averaged over all A. For one column a ~ N(0, I), dLoss/dB^(h) = s a^T M with M = X_v^T dLoss/dV^(h)
    [D, K] over the visual tokens: its squared norm has the mean s^2 || M ||_F^2. (If A is the identity, it is s M.)"""
    c = vlm.config
    every_head = {layer: range(c.value_heads) for layer in range(c.layers)}
    layers = list(ImageLoRA(c, every_head, rank=c.hidden, alpha=c.hidden, gamma=1.0).layers.values())
    for layer in layers:
        layer.A.data = torch.eye(c.hidden)
    return sum(g.square().sum(dim=-1) for g in gradients(vlm, batches, layers, [layer.B for layer in layers]))


def visual_attention(vlm, batches):
    """Shares [L, H] of the attention that goes to visual tokens, mean over the positions that predict the answer."""
    shares = []
    for batch in batches:
        with torch.no_grad(), weights_kept(vlm.model.layers, attend) as kept:
            vlm(batch)
        to_image = (torch.stack(kept) * batch.visual_mask[:, None, None]).sum(dim=-1)  # [L, B, H, T]
        shares.append(to_image.transpose(2, 3).flatten(1, 2)[:, batch.answer_index].mean(dim=1))  # [L, H]
    return torch.stack(shares).mean(dim=0).cpu()


def attention_mass(vlm, batches):
    """How much the query heads that read a value head attend to the image (the criterion of arXiv 2503.06287)."""
    return visual_attention(vlm, batches).unflatten(1, (vlm.config.value_heads, -1)).mean(dim=2)  # [L, G]


def weight_norm(vlm, batches):
    """|| W_V^(h) ||^2: looks at no data at all."""
    weights = torch.stack([layer.self_attn.v_proj.weight.detach().float().cpu() for layer in vlm.model.layers])
    return weights.unflatten(1, (vlm.config.value_heads, -1)).square().sum(dim=(2, 3))  # [L, G*K, D] -> [L, G]


CRITERIA.update({"exact": exact, "attention-mass": attention_mass, "weight-norm": weight_norm})

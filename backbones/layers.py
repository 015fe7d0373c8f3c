"""Parts that both towers of a model use: RMSNorm, SwiGLU, rotary positions, attention; and what makes them faster.

Shapes: B batch, T sequence length, S keys, D hidden size, H query heads, G value (KV) heads, K head size.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32; the result has the dtype of the weights."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * x32).to(self.weight.dtype)


def linear(x, weight, bias=None):
    """x W^T + b. For the few rows of a decoding step a CPU's matrix product reads W far below the speed of its memory; cut
    into 16 products of the same rows with a part of W each, the same sum takes a half to a third of the time."""
    rows, parts = x.numel() // x.shape[-1], 16
    if x.device.type == "cpu" and x.dtype == torch.float32 and rows <= 64 and len(weight) % parts == 0:
        x_parts = x.reshape(1, rows, -1).expand(parts, -1, -1)
        y = torch.bmm(x_parts, weight.view(parts, -1, weight.shape[1]).mT)  # [parts, rows, outputs / parts]
        y = y.transpose(0, 1).reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    def forward(self, x):
        return linear(x, self.weight, self.bias)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, size, intermediate, bias):
        super().__init__()
        self.gate_proj = Linear(size, intermediate, bias=bias)
        self.up_proj = Linear(size, intermediate, bias=bias)
        self.down_proj = Linear(intermediate, size, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def attend(q, k, v, mask, causal=False, by_hand=False):
    """softmax(q k^T / sqrt(K)) v.

    q [B, H, T, K]; k, v [B, G, S, K], each KV head serving H / G query heads in turn; mask: bool, broadcastable to
    [B, 1, T, S], True where a query may look, or None: everywhere, or with `causal` (S = T) nowhere ahead. Returns the
    output [B, H, T, K] and, by hand only, the weights [B, H, T, S] (else None). The fused path computes the same
    without ever holding the weights.
    """
    on_cpu, groups = q.device.type == "cpu", q.shape[1] // k.shape[1]
    shared = not by_hand and (on_cpu or mask is None)  # kernels that read a KV head once for its query heads
    if groups > 1 and not shared:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if not by_hand:
        how = {"attn_mask": mask, "is_causal": causal, "enable_gqa": groups > 1 and shared}
        if on_cpu:  # its fused kernel is several times slower in bfloat16, so it runs in float32
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **how).to(q.dtype), None
        return F.scaled_dot_product_attention(q, k, v, **how), None
    scores = (q @ k.transpose(-2, -1)).float() / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1).to(q.dtype)
    return weights @ v, weights


def take(x, reads):
    """Some positions of each row: x [B, T, D], reads [B, S] (columns) -> [B, S, D]."""
    return x.take_along_dim(reads[..., None], dim=1)


def rotate(x, cos, sin):
    """Rotary positions: turn each pair (x_i, x_{i + K/2}) by its angle. x [..., K]; cos, sin broadcastable to it."""
    x1, x2 = x.float().chunk(2, dim=-1)
    turned = torch.cat([-x2, x1], dim=-1)
    return (x.float() * cos + turned * sin).to(x.dtype)


def frequencies(size, theta, device):
    """The size/2 rotary frequencies theta^(-2i/size), float32."""
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)


def run(block, checkpointing, x, *args):
    """block(x, *args). With checkpointing, the backward pass computes what is inside the block a second time instead of
    keeping it: memory of one block in place of all, for a forward pass more. Only where there is a backward pass: a
    frozen block under the lowest adapted layer keeps nothing anyway."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, *args, use_reentrant=False)
    return block(x, *args)

"""Parts that both towers of a model use: norms, SwiGLU, rotary positions. And: the same numbers, faster.

Whatever only makes things faster is here, so that the lectures need not mention it. Tests hold it equal to what is plain.

Letters: B batch, T sequence length, S keys, H query heads, G value (KV) heads, K head size.
"""

from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.utils.checkpoint import checkpoint

# Of the attention kernels on a GPU not cuDNN's: with a mask its backward pass gives NaN where the length is 64 modulo 128
# (pytorch issue 196678), and it plans for half a second at each new shape. Rows of images have a new shape at each step.
torch.backends.cuda.enable_cudnn_sdp(False)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight, computed in float32; the result has the dtype of the weights."""

    def forward(self, x):
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(self.weight.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / deviation * weight + bias, computed in float32; the result has the dtype of the weights."""

    def forward(self, x):
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, size, intermediate, bias):
        super().__init__()
        self.gate_proj = Linear(size, intermediate, bias=bias)
        self.up_proj = Linear(size, intermediate, bias=bias)
        self.down_proj = Linear(intermediate, size, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def frequencies(size, theta, device):
    """The size/2 rotary frequencies theta^(-2i/size), float32."""
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)


def rotate(x, cos, sin):
    """Rotary positions: turn each pair (x_i, x_{i + K/2}) by its angle. x [..., K]; cos, sin [..., K/2], float32."""
    x1, x2 = x.chunk(2, dim=-1)  # the products are float32, whatever x is
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x.dtype)


# ---------------------------------------------------------------------------------------------- the same numbers, faster


class Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x):
        return linear(x, self.weight, self.bias)


def linear(x, weight, bias=None):
    """x W^T + b. For the few rows of a decoding step a CPU's matrix product reads W far more slowly than its memory could
    deliver it. As 16 products, each of the same rows with a part of W, the same sum is made faster."""
    rows, parts = x.numel() // x.shape[-1], 16
    few = x.device.type == "cpu" and x.dtype == torch.float32 and rows <= 64 and len(weight) % parts == 0
    if not few:
        return F.linear(x, weight, bias)
    copies = x.reshape(1, rows, -1).expand(parts, -1, -1)
    y = torch.bmm(copies, weight.view(parts, -1, weight.shape[1]).mT)  # [parts, rows, outputs / parts]
    y = y.transpose(0, 1).reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def fused_attention(q, k, v, mask, causal=True):
    """softmax(q k^T / sqrt(K)) v, [B, H, T, K], without ever holding the weights; the formula is `attend` in model.py.
    q [B, H, T, K]; k, v [B, G, S, K], each KV head serving H / G query heads in turn. mask: bool, broadcastable to
    [B, 1, T, S], True where a query may look; None: causal, or everywhere if `causal` is False."""
    G, groups = k.shape[1], q.shape[1] // k.shape[1]
    causal = causal and mask is None
    if groups > 1 and q.shape[2] == 1 and not causal:
        # Decoding. The query heads of a group become queries of one head: the KV cache is read as it is, not repeated.
        heads = q.reshape(len(q), G, groups, -1)  # [B, G, H / G, K]
        return fused_attention(heads, k, v, mask, causal).reshape(q.shape)

    # Two kernels read a KV head once for all of its query heads: the CPU's, and on a GPU flash attention, which takes no
    # mask, no float32 and no GPU before compute capability 8.0. The kernel for the rest wants as many KV heads as query
    # heads. Asked for groups where no kernel takes them, torch falls back to plain products that write all the weights.
    on_cpu = q.device.type == "cpu"
    if groups > 1 and not (on_cpu or can_use_flash_attention(SDPAParams(q, k, v, mask, 0.0, causal, True))):
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    options = {"attn_mask": mask, "is_causal": causal, "enable_gqa": k.shape[1] < q.shape[1]}
    if on_cpu:  # its fused kernel is several times slower in bfloat16, so it runs in float32
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **options).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, **options)


def compute_twice(blocks):
    """Activation checkpointing: the backward pass computes each block a second time instead of keeping what is inside. Leave
    out the last block: the backward pass begins with it, so it costs nothing to keep (and `only_at` is over by then)."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def only_at(mlp, index):
    """While this lasts, an MLP runs at the flat positions `index` only, and elsewhere its output is zero."""

    def forward(x):
        rows = x.flatten(0, 1)
        y = type(mlp).forward(mlp, rows.index_select(0, index))
        return y.new_zeros(rows.shape).index_copy(0, index, y).view_as(x)  # under autocast y is bfloat16, x float32

    mlp.forward = forward
    try:
        yield
    finally:
        del mlp.forward


@contextmanager
def weights_kept(layers, attend):
    """While this lasts, the decoder's layers compute attention by `attend`, which also returns the weights, [B, H, T, S].
    Yields the list to which each layer adds its weights."""
    kept = []

    def attend_and_keep(q, k, v, mask):
        out, weights = attend(q, k, v, mask)
        kept.append(weights)
        return out

    for layer in layers:
        layer.self_attn.attention = attend_and_keep
    try:
        yield kept
    finally:
        for layer in layers:
            layer.self_attn.attention = fused_attention

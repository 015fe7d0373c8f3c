"""A frozen decoder in 4 bits a weight: NF4 of QLoRA (arXiv 2305.14314), by hand.

    block    64 weights that follow one another along the input share a scale: the largest of their absolute values
    code     weight / scale lies between -1 and 1; it is rounded to the nearest of 16 levels, whose number takes 4 bits
    again    weight' = level[code] * scale, each time the weight is needed

Trained weights are about normally distributed, so the levels are quantiles of the normal distribution: all are used. One
is 0, and the largest weight of a block is exact, up to bfloat16. Two codes fit in a byte. The scale, in bfloat16, adds
16 / 64 bits: together 4.25 bits a weight in place of 16. (QLoRA rounds the scales too, for 4.127.)

In 4 bits are the projections q, k, v, o, gate, up, down of the decoder's layers. The rest stays as it is: norms and biases
are small, a tied embedding table is the head, and the vision encoder makes what the adapter works on.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from parts.backbones.layers import Linear

BLOCK = 64  # weights that share a scale
LEVELS = torch.tensor([  # QLoRA, appendix E; a test derives them from the normal distribution
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


def quantize(weight):
    """[outputs, inputs] -> codes uint8 [outputs, blocks * 32], two in a byte, and scales bfloat16 [outputs, blocks]. The
    last block of a row is filled up with zeros."""
    weight = F.pad(weight.float(), (0, -weight.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))  # [outputs, blocks, 64]
    scales = weight.abs().amax(dim=-1).bfloat16()
    share = weight / scales.float().clamp(min=1e-38)[..., None]  # a block of zeros has the scale 0
    middles = ((LEVELS[1:] + LEVELS[:-1]) / 2).to(weight.device)  # a code: how many of these 15 are below
    codes = torch.bucketize(share, middles, out_int32=True).to(torch.uint8).flatten(1)
    return codes[:, 0::2] << 4 | codes[:, 1::2], scales


@functools.cache
def pairs(device, dtype):
    """[256, 2]: the two levels that a byte holds."""
    byte = torch.arange(256)
    return torch.stack([LEVELS[byte >> 4], LEVELS[byte & 15]], dim=1).to(device, dtype)


def dequantize(codes, scales, inputs, dtype):
    """The way back -> [outputs, inputs]. A byte is looked up at once, for two weights."""
    weight = F.embedding(codes.int(), pairs(codes.device, dtype))  # [outputs, blocks * 32, 2]
    weight = weight.view(*scales.shape, BLOCK).mul_(scales[..., None])  # [outputs, blocks, 64]
    return weight.flatten(1)[:, :inputs]


class Product(torch.autograd.Function):
    """x W^T + b, x [rows, inputs], with a W that lives for the length of this product only. An ordinary product would keep
    it for the backward pass, and soon every weight would be there in full. This one keeps nothing and makes W again."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return F.linear(x, layer.dequantized(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.layer.dequantized(grad.dtype), None


class NF4Linear(nn.Module):
    """A Linear whose weight is kept in 4 bits."""

    def __init__(self, plain):
        super().__init__()
        self.outputs, self.inputs = plain.weight.shape
        self.register_buffer("codes", None, persistent=False)
        self.register_buffer("scales", None, persistent=False)
        self.bias = plain.bias

    def keep(self, weight):
        self.codes, self.scales = quantize(weight)

    def dequantized(self, dtype):
        return dequantize(self.codes, self.scales, self.inputs, dtype)

    @property
    def weight(self):  # for who only reads it, such as the criterion weight-norm
        return self.dequantized(torch.float32)

    def forward(self, x):
        return Product.apply(x.flatten(0, -2), self).unflatten(0, x.shape[:-1])


def use_nf4(vlm):
    """Make every projection of the decoder's layers an NF4Linear, still empty."""
    for layer in vlm.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, Linear):
                    setattr(part, name, NF4Linear(module))


def nf4_layers(vlm):
    """{name of its weight: NF4Linear} of those that the model, or a part of it, has."""
    return {f"{name}.weight": module for name, module in vlm.named_modules() if isinstance(module, NF4Linear)}


def size(module):
    """(weights, their bytes) of a model or a part of it, in 4 bits or not."""
    in_4_bits = sum(layer.outputs * layer.inputs for layer in nf4_layers(module).values())
    tensors = [*module.parameters(), *module.buffers()]
    return sum(p.numel() for p in module.parameters()) + in_4_bits, sum(t.nbytes for t in tensors)

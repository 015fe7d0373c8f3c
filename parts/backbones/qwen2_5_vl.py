"""Qwen2.5-VL (arXiv 2502.13923): configuration, vision encoder with windows, multimodal positions, the scale of boxes.

Letters: P image patches, N visual tokens, E hidden size of the encoder, D hidden size of the decoder, K size of a head.
"""

from dataclasses import dataclass

import torch
from torch import nn

from parts.backbones import qwen
from parts.backbones.layers import MLP, Linear, RMSNorm

TOWERS = {"visual": "visual.", "model": "model."}  # module of model.py -> how the hub's tensor names begin
BOX_END = 1  # a box ends at most at scale - 1, the last pixel


@dataclass(frozen=True)
class VisionConfig(qwen.VisionConfig):
    window: int = qwen.key("window_size")  # pixels
    full_blocks: tuple = qwen.key("fullatt_block_indexes")  # the blocks that attend to the complete image
    tokens_per_second: int = qwen.key("tokens_per_second")


@dataclass(frozen=True, kw_only=True)
class Config(qwen.Config):
    system: str = "You are a helpful assistant."

    name, family = "Qwen2.5-VL", "qwen2_5_vl"
    Vision = VisionConfig
    qkv_bias = True
    qk_norm = False

    @property
    def head_size(self):  # K
        return self.hidden // self.heads

    def by_axis(self, angles):
        """Rotary angles by time, height and width, [3, B, T, K/2] -> [B, T, K/2]: the first section of the frequencies
        turns with a token's time, the second with its height, the third with its width."""
        time, height, width = angles.split(self.rope_sections, dim=-1)
        return torch.cat([time[0], height[1], width[2]], dim=-1)


class PatchMerger(nn.Module):
    """Every merge x merge block of patches becomes one visual token of the decoder's size."""

    def __init__(self, c, out):
        super().__init__()
        self.ln_q = RMSNorm(c.hidden, 1e-6)
        self.size = c.hidden * c.merge**2
        self.mlp = nn.Sequential(Linear(self.size, self.size), nn.GELU(), Linear(self.size, out))

    def forward(self, x):
        return self.mlp(self.ln_q(x).view(-1, self.size))


class VisionEncoder(nn.Module):
    """Patches -> visual tokens: a transformer that attends within windows of 8 x 8 patches, in a few blocks everywhere."""

    def __init__(self, c, out):
        super().__init__()
        self.config = c
        self.patch_embed = qwen.PatchEmbed(c, bias=False)
        mlps = [MLP(c.hidden, c.intermediate, bias=True) for _ in range(c.depth)]
        self.blocks = nn.ModuleList(qwen.VisionBlock(c, RMSNorm, mlp) for mlp in mlps)
        self.merger = PatchMerger(c, out)

    def forward(self, patches, grids):
        """patches [P, 1176], grids [images, 3] (slices, rows, columns in patches) -> [N, D], images in order."""
        c, device, grids = self.config, patches.device, grids.cpu()
        slices, rows, columns = qwen.patch_coordinates(grids, c.merge)

        # Who attends to whom: windows of side x side patches, ragged at the right and bottom edge, or complete slices.
        side = c.window // c.patch_size
        count = int(grids[:, 1:].max()) // side + 1  # more than any number of a window's row or column
        windows = qwen.group_patches((slices * count + rows // side) * count + columns // side, device)
        complete = qwen.group_patches(slices, device)

        cos, sin = qwen.patch_rotary(rows, columns, c.hidden // c.heads, device)
        x = self.patch_embed(patches).float()  # [P, E]: the residual stream is float32, as in the decoder
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, complete if i in c.full_blocks else windows)
        return self.merger(x)  # [N, D]


def spans(config, visual, grid, fps):
    """An image or a video in a prompt: (text before it, number of visual tokens) of each span. Always one, without text."""
    t, h, w = grid
    return [("", t * h * w // config.vision.merge**2)]


def positions(config, ids, grids, fps=2.0):
    """Multimodal positions of one row of token ids: a list of (time, height, width) for each token. Time runs by the clock:
    tokens_per_second, rounded down; an image is at time 0. grids: (slices, rows, columns) of images and videos."""
    c, blocks = config.vision, []
    for t, h, w in grids:
        times = [int(k * c.temporal_patch_size / fps * c.tokens_per_second) for k in range(t)]
        blocks.append((times, h, w))
    return qwen.count_positions(config, ids, blocks)


def box_scale(resized):
    """(width, height) of the image in the numbers that the model writes: whole pixels of the resized image."""
    return resized

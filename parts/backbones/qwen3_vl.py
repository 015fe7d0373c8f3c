"""Qwen3-VL (arXiv 2511.21631): configuration, vision encoder with a table of positions, DeepStack, times of videos.

An image's embeddings are in the decoder's input, as in Qwen2.5-VL. And DeepStack (arXiv 2406.04334) takes features from
the middle of the encoder and adds them at the visual positions after the first layers:

    layer 0 -> + feature 0 -> layer 1 -> + feature 1 -> layer 2 -> + feature 2 -> layer 3 -> ...

Letters: P image patches, N visual tokens, E hidden size of the encoder, D hidden size of the decoder, K size of a head.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from parts.backbones import qwen
from parts.backbones.layers import LayerNorm, Linear

TOWERS = {"visual": "model.visual.", "model": "model.language_model."}  # module -> how the hub's tensor names begin
BOX_END = 0  # how far below the scale of boxes the largest number of a side is: the edge itself has a number


@dataclass(frozen=True)
class VisionConfig(qwen.VisionConfig):
    table: int = qwen.key("num_position_embeddings")  # entries of the square table of positions: 48 x 48
    deepstack: tuple = qwen.key("deepstack_visual_indexes")  # the blocks after which a feature is taken


@dataclass(frozen=True, kw_only=True)
class Config(qwen.Config):
    head_size: int = qwen.key("head_dim")  # K; H * K need not be D

    name, family = "Qwen3-VL", "qwen3_vl"
    Vision = VisionConfig
    qkv_bias = False
    qk_norm = True  # each head of q and k is normed before it is turned

    def by_axis(self, angles):
        """Rotary angles by time, height and width, [3, B, T, K/2] -> [B, T, K/2]. The three take turns: frequency 0 is
        time's, 1 the height's, 2 the width's, 3 time's again; when height and width have their sections, all is time's."""
        mixed = angles[0].clone()
        for axis in (1, 2):
            turns = slice(axis, 3 * self.rope_sections[axis], 3)
            mixed[..., turns] = angles[axis, ..., turns]
        return mixed


class VisionMLP(nn.Module):
    """fc2(gelu(fc1(x))), GELU by its tanh approximation."""

    def __init__(self, c):
        super().__init__()
        self.linear_fc1 = Linear(c.hidden, c.intermediate)
        self.linear_fc2 = Linear(c.intermediate, c.hidden)

    def forward(self, x):
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class PatchMerger(nn.Module):
    """Every merge x merge block of patches becomes one visual token of the decoder's size. normed: how many numbers the
    norm is over, E (each patch on its own) or merge * merge * E (the block)."""

    def __init__(self, c, out, normed):
        super().__init__()
        self.size, self.normed = c.hidden * c.merge**2, normed
        self.norm = LayerNorm(normed, 1e-6)
        self.linear_fc1 = Linear(self.size, self.size)
        self.linear_fc2 = Linear(self.size, out)

    def forward(self, x):
        x = self.norm(x.view(-1, self.normed)).view(-1, self.size)  # [N, merge * merge * E]
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class VisionEncoder(nn.Module):
    """Patches -> visual tokens: a transformer in which every patch attends to its complete image. A patch has its position
    twice: from a learned table, which is added to it, and as 2-D rotary positions."""

    def __init__(self, c, out):
        super().__init__()
        self.config = c
        self.patch_embed = qwen.PatchEmbed(c, bias=True)
        self.pos_embed = nn.Embedding(c.table, c.hidden)
        self.blocks = nn.ModuleList(qwen.VisionBlock(c, LayerNorm, VisionMLP(c)) for _ in range(c.depth))
        self.merger = PatchMerger(c, out, normed=c.hidden)
        self.deepstack_merger_list = nn.ModuleList(PatchMerger(c, out, c.hidden * c.merge**2) for _ in c.deepstack)

    def forward(self, patches, grids):
        """patches [P, 1536], grids [images, 3] (slices, rows, columns in patches) -> [N, D + D + ...], images in order:
        of each visual token the embedding, and beside it the features that DeepStack adds after the first layers."""
        c, device, grids = self.config, patches.device, grids.cpu()
        slices, rows, columns = qwen.patch_coordinates(grids, c.merge)
        complete = qwen.group_patches(slices, device)
        cos, sin = qwen.patch_rotary(rows, columns, c.hidden // c.heads, device)
        x = self.patch_embed(patches).float()  # [P, E]: the residual stream is float32, as in the decoder
        x = x + self.table_positions(grids, rows, columns)
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, complete)
            if i in c.deepstack:
                features.append(self.deepstack_merger_list[len(features)](x))  # [N, D]
        return torch.cat([self.merger(x), *features], dim=1)  # [N, D + D + ...]

    def table_positions(self, grids, rows, columns):
        """[P, E]: the table of positions, stretched over each image corner to corner (bilinear), at each patch."""
        side = math.isqrt(self.config.table)
        table = self.pos_embed.weight.float().unflatten(0, (side, side)).permute(2, 0, 1)  # [E, side, side]
        sizes, positions = grids.prod(dim=1).tolist(), []
        for (_, h, w), y, x in zip(grids.tolist(), rows.split(sizes), columns.split(sizes)):
            stretched = F.interpolate(table[None], (h, w), mode="bilinear", align_corners=True)[0]  # [E, h, w]
            patch = (y * w + x).to(table.device, non_blocking=True)
            positions.append(stretched.flatten(1)[:, patch].T)
        return torch.cat(positions)


def spans(config, visual, grid, fps):
    """An image or a video in a prompt: (text before it, number of visual tokens) of each span. Each slice of a video is a
    span, and the text is its time: the mean of its first and its last frame's."""
    (t, h, w), c = grid, config.vision
    tokens, frames = h * w // c.merge**2, c.temporal_patch_size
    if not visual.is_video:
        return [("", tokens)]
    firsts = range(0, t * frames, frames)
    lasts = [min(first + frames, len(visual.frames)) - 1 for first in firsts]  # an odd last frame is on its own
    return [(f"<{(first + last) / 2 / fps:.1f} seconds>", tokens) for first, last in zip(firsts, lasts)]


def positions(config, ids, grids, fps=2.0):
    """Multimodal positions of one row of token ids: a list of (time, height, width) for each token. Every slice of a
    video counts as an image of its own: the time is in the text."""
    return qwen.count_positions(config, ids, [([0], h, w) for t, h, w in grids for _ in range(t)])


def box_scale(resized):
    """(width, height) of the image in the numbers that the model writes: 0 to 1000 of each side, whatever its size."""
    return 1000, 1000

"""Qwen2.5-VL: config.json -> Config, the vision encoder with its windows, and multimodal positions.

Shapes: P image patches, N visual tokens, W windows, S patches in the largest window, E hidden size of the encoder,
T sequence length.
"""

from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import nn

from backbones.layers import MLP, Linear, RMSNorm, attend, frequencies, rotate, run
from files import InputError


def key(name):
    """A field of a configuration and its key in config.json."""
    return field(metadata={"key": name})


def fields_of(cls, raw):
    """{field: value} of a configuration class, read from parsed JSON; lists become tuples. KeyError if one lacks."""
    values = {f.name: raw[f.metadata["key"]] for f in fields(cls) if f.metadata}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@dataclass(frozen=True)
class VisionConfig:
    depth: int = key("depth")
    hidden: int = key("hidden_size")  # E
    intermediate: int = key("intermediate_size")
    heads: int = key("num_heads")
    patch_size: int = key("patch_size")  # pixels
    temporal_patch_size: int = key("temporal_patch_size")  # frames
    channels: int = key("in_chans")
    merge: int = key("spatial_merge_size")  # merge x merge patches become one visual token
    window: int = key("window_size")  # pixels
    full_blocks: tuple = key("fullatt_block_indexes")  # the blocks that attend to the whole picture
    tokens_per_second: int = key("tokens_per_second")

    @property
    def patch_values(self):
        """Numbers in one patch: 3 x 2 x 14 x 14 = 1176 in the published models."""
        return self.channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class Config:
    layers: int = key("num_hidden_layers")  # L
    hidden: int = key("hidden_size")  # D
    heads: int = key("num_attention_heads")  # H, query heads
    value_heads: int = key("num_key_value_heads")  # G, key and value heads: each serves H / G query heads
    intermediate: int = key("intermediate_size")
    vocab: int = key("vocab_size")  # V
    rms_eps: float = key("rms_norm_eps")
    rope_theta: float = key("rope_theta")
    rope_sections: tuple = key("mrope_section")  # how many of the K/2 frequencies turn with time, height and width
    max_positions: int = key("max_position_embeddings")
    tied: bool = key("tie_word_embeddings")  # the head is the embedding table
    image_token: int = key("image_token_id")
    video_token: int = key("video_token_id")
    end_tokens: tuple = key("eos_token_id")
    vision: VisionConfig = None
    raw: dict = field(default=None, repr=False, compare=False)  # config.json as it was read; VLM.save writes it again
    generation: dict = field(default=None, repr=False, compare=False)  # generation_config.json, likewise

    @property
    def head_size(self):  # K
        return self.hidden // self.heads

    @classmethod
    def from_dict(cls, raw, generation=None, source="config.json"):
        """Read config.json as the hub has it (flat) or as newer transformers writes it (`text_config`).

        raw, generation: the parsed config.json and generation_config.json (or None); source: the file's name, for
        messages. Raises InputError for another model family, a missing key, or a value not implemented here.
        """
        if raw.get("model_type") != "qwen2_5_vl":
            raise InputError(f"{source}: model_type is {raw.get('model_type')!r}; only 'qwen2_5_vl' is implemented")
        text = {"tie_word_embeddings": False} | raw.get("text_config", {})
        rope = raw.get("rope_scaling") or text.get("rope_parameters") or text.get("rope_scaling") or {}
        flat = text | {k: v for k, v in raw.items() if v is not None} | rope | (generation or {})
        vision = raw.get("vision_config", {})
        vision = {"in_chans": vision.get("in_channels", 3)} | vision
        if isinstance(flat.get("eos_token_id"), int):
            flat["eos_token_id"] = [flat["eos_token_id"]]
        try:
            config = cls(
                **fields_of(cls, flat),
                vision=VisionConfig(**fields_of(VisionConfig, vision)),
                raw=raw,
                generation=generation,
            )
        except KeyError as missing:
            raise InputError(f"{source}: no key {missing}; is this a whole Qwen2.5-VL configuration?") from None
        unsupported = {
            "use_sliding_window": flat.get("use_sliding_window", False),
            "hidden_act": {flat.get("hidden_act", "silu"), vision.get("hidden_act", "silu")} != {"silu"},
            "rope type": rope.get("rope_type", rope.get("type", "default")) not in ("default", "mrope"),
            "mrope_section": 2 * sum(config.rope_sections) != config.head_size,
            "num_key_value_heads": config.heads % config.value_heads != 0,
            "out_hidden_size": vision.get("out_hidden_size", config.hidden) != config.hidden,
        }
        for name, wrong in unsupported.items():
            if wrong:
                raise InputError(f"{source}: the value of {name} does not fit a Qwen2.5-VL model as implemented here")
        return config


def patch_places(grids, merge):
    """Where each patch lies, in the order in which data.py cuts them: merge x merge blocks stay together.

    grids [images, 3]: slices, rows and columns in patches. Returns three long [P]: picture slice (an image, or two
    frames of a video, counted through the batch), row, column.
    """
    places, slices = [], 0
    for t, h, w in grids.tolist():
        s, y, x = torch.meshgrid(torch.arange(t) + slices, torch.arange(h), torch.arange(w), indexing="ij")
        blocks = (t, h // merge, merge, w // merge, merge)
        places.append(torch.stack([p.reshape(blocks).transpose(2, 3).flatten() for p in (s, y, x)]))
        slices += t
    return torch.cat(places, dim=1)


def group_patches(key):
    """Lay out patches that attend to one another (equal `key`, long [P]) as rows of a table.

    Returns table [W, S]: patch numbers, 0 where a group is shorter than the largest; valid [W, S] bool or None when
    every group is full; slot [P]: where each patch stands in the flattened table.
    """
    _, group, size = key.unique(return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    first = size.cumsum(0) - size
    within = torch.empty_like(group)
    within[order] = torch.arange(len(key)) - first[group[order]]
    slot = group * size.max() + within
    table = torch.full((len(size) * int(size.max()),), -1)
    table[slot] = torch.arange(len(key))
    table = table.view(len(size), -1)
    valid = table >= 0
    return table.clamp(min=0), None if valid.all() else valid, slot


class PatchEmbed(nn.Module):
    """A 3-D convolution whose stride is its kernel is one linear layer on flat patches."""

    def __init__(self, c):
        super().__init__()
        shape = (c.hidden, c.channels, c.temporal_patch_size, c.patch_size, c.patch_size)
        self.proj = nn.ParameterDict({"weight": nn.Parameter(torch.empty(shape))})  # the checkpoint's name and shape

    def forward(self, patches):
        weight = self.proj["weight"].flatten(1)
        return F.linear(patches.to(weight.dtype), weight)


class VisionAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c.heads
        self.qkv = Linear(c.hidden, 3 * c.hidden)
        self.proj = Linear(c.hidden, c.hidden)

    def forward(self, x, cos, sin, groups):
        table, valid, slot = groups
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)  # [P, heads, K] each
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = (y[table].transpose(1, 2) for y in (q, k, v))  # [W, heads, S, K]
        mask = None if valid is None else valid[:, None, None, :]
        out, _ = attend(q, k, v, mask)  # all windows at once
        return self.proj(out.transpose(1, 2).flatten(2).flatten(0, 1)[slot])  # [P, E]


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1 = RMSNorm(c.hidden, 1e-6)
        self.norm2 = RMSNorm(c.hidden, 1e-6)
        self.attn = VisionAttention(c)
        self.mlp = MLP(c.hidden, c.intermediate, bias=True)

    def forward(self, x, cos, sin, groups):
        x = x + self.attn(self.norm1(x), cos, sin, groups)
        return x + self.mlp(self.norm2(x))


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
    """Patches -> visual tokens: a transformer with 2-D rotary positions that attends within windows of 8 x 8 patches,
    and in a few blocks over the whole picture slice."""

    def __init__(self, c, out):
        super().__init__()
        self.config = c
        self.patch_embed = PatchEmbed(c)
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c.depth))
        self.merger = PatchMerger(c, out)
        self.checkpointing = False  # see `run`

    def forward(self, patches, grids):
        """patches [P, 1176], grids [images, 3] (slices, rows, columns in patches) -> [N, D], images in order."""
        c = self.config
        if len(patches) != int(grids.prod(dim=1).sum()):
            raise ValueError(f"{len(patches)} patches, but the grids {grids.tolist()} speak of {grids.prod(1).sum()}")
        slices, rows, columns = patch_places(grids.cpu(), c.merge)
        side = c.window // c.patch_size  # of a window, in patches; ragged at the right and bottom edge
        wide = int(grids.max()) // side + 1
        windows = group_patches((slices * wide + rows // side) * wide + columns // side)
        whole = group_patches(slices)
        windows, whole = (
            tuple(y if y is None else y.to(patches.device, non_blocking=True) for y in x) for x in (windows, whole)
        )

        # 2-D rotary positions: one half of the frequencies turns with the row, the other with the column.
        place = torch.stack([rows, columns], dim=1).to(patches.device, non_blocking=True)
        size = c.hidden // c.heads
        angles = (place[:, :, None] * frequencies(size // 2, 10000.0, patches.device)).flatten(1)  # [P, K/2]
        angles = torch.cat([angles, angles], dim=-1)[:, None]  # [P, 1, K]
        cos, sin = angles.cos(), angles.sin()

        x = self.patch_embed(patches).float()  # the residual stream, as in the decoder
        for i, block in enumerate(self.blocks):
            x = run(block, self.checkpointing, x, cos, sin, whole if i in c.full_blocks else windows)
        return self.merger(x)


def positions(config, ids, grids, fps=2.0):
    """Multimodal positions of one row, [T][3]. Text counts on in all three; visual tokens count time, rows and columns
    from there, and text goes on behind the largest of the three. Time runs by the clock: tokens_per_second a second,
    rounded down, so that the slices of a slow video lie further apart; the only slice of an image is at 0."""
    c, seen = config.vision, iter(grids)
    positions, start, i = [], 0, 0
    while i < len(ids):
        if ids[i] in (config.image_token, config.video_token):
            t, h, w = next(seen)
            h, w = h // c.merge, w // c.merge
            times = [int(k * c.temporal_patch_size / fps * c.tokens_per_second) for k in range(t)]
            positions += [(start + k, start + y, start + x) for k in times for y in range(h) for x in range(w)]
            start, i = start + max(times[-1] + 1, h, w), i + t * h * w
        else:
            positions.append((start,) * 3)
            start, i = start + 1, i + 1
    return positions

"""What the Qwen-VL families share: config.json -> Config, the order of patches, who attends to whom, positions.

A family's own file adds what only it has. The tests hold every number against transformers.

Shapes: P image patches, W windows, S patches in the largest window, E hidden size of the encoder, K size of a head, T
sequence length.
"""

from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import nn

from parts.backbones.layers import Linear, frequencies, fused_attention, rotate
from parts.files import InputError, reading

# ------------------------------------------------------------------------------------------------------- configuration


def check_number(name, value, kind, least, most):
    """Raises ValueError unless `value` is a number of this kind (a float may be an integer) within these limits."""
    if type(value) not in (int, kind) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.60}, not a number ({kind.__name__}) from {least:g} to {most:g}")


def key(name, most=2**20, least=1):
    """A field of a configuration: its key in config.json, and the largest and smallest number that makes sense there."""
    return field(metadata={"key": name, "limits": (least, most)})


def fields_of(cls, raw):
    """{field: value} of a configuration class, read from parsed JSON; lists become tuples. KeyError if one is missing,
    ValueError for one that is no number, or out of its limits: what they are is known before anything is allocated."""
    values = {}
    for f in fields(cls):
        if not f.metadata:
            continue
        name, several = f.metadata["key"], f.type is tuple
        for number in raw[name] if several else [raw[name]]:
            check_number(name, number, int if several else f.type, *f.metadata["limits"])
        values[f.name] = tuple(raw[name]) if several else raw[name]
    return values


@dataclass(frozen=True)
class QwenVisionConfig:
    depth: int = key("depth", most=200)
    hidden: int = key("hidden_size")  # E
    intermediate: int = key("intermediate_size")
    heads: int = key("num_heads", most=2**10)
    patch_size: int = key("patch_size", most=256)  # pixels
    temporal_patch_size: int = key("temporal_patch_size", most=16)  # frames
    channels: int = key("in_chans", most=3)
    merge: int = key("spatial_merge_size", most=16)  # merge x merge patches become one visual token

    @property
    def patch_values(self):
        """Numbers in one patch: in Qwen2.5-VL 3 x 2 x 14 x 14 = 1176, in Qwen3-VL 3 x 2 x 16 x 16 = 1536."""
        return self.channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class QwenConfig:
    """A family's Config adds: name, Vision (its class for `vision`), head_size, qkv_bias, qk_norm, by_axis, unsupported."""

    layers: int = key("num_hidden_layers", most=200)  # L
    hidden: int = key("hidden_size")  # D
    heads: int = key("num_attention_heads", most=2**10)  # H, query heads
    value_heads: int = key("num_key_value_heads")  # G, key and value heads: each serves H / G query heads
    intermediate: int = key("intermediate_size")
    vocab: int = key("vocab_size", most=2**22)  # V
    rms_eps: float = key("rms_norm_eps", least=1e-12, most=1)
    rope_theta: float = key("rope_theta", most=1e12)
    rope_sections: tuple = key(
        "mrope_section", least=0
    )  # how many of the K/2 frequencies turn with time, height and width
    max_positions: int = key("max_position_embeddings", most=2**24)
    tied: bool = key("tie_word_embeddings", least=0, most=1)  # the head is the embedding table
    image_token: int = key("image_token_id", least=0, most=2**22)
    video_token: int = key("video_token_id", least=0, most=2**22)
    end_tokens: tuple = key("eos_token_id", least=0, most=2**22)
    vision: QwenVisionConfig = None
    raw: dict = field(default=None, repr=False, compare=False)  # config.json as it was read; VLM.save writes it again
    generation: dict = field(default=None, repr=False, compare=False)  # generation_config.json, likewise

    @property
    def family(self):
        """The key of FAMILIES that this configuration belongs to."""
        return self.raw["model_type"]

    @property
    def visual_size(self):
        """Numbers that the encoder gives for one visual token: D, the embedding."""
        return self.hidden

    @classmethod
    def from_dict(cls, raw, generation=None, source="config.json"):
        """Read config.json: flat, or with the decoder's part in `text_config`.

        raw, generation: the parsed config.json and generation_config.json (or None); source: the file's name, for
        messages. Raises InputError for a missing key, or a value not implemented here.
        """
        # One flat dictionary, whichever form the file has.
        with reading(source, f"a complete {cls.name} configuration"):
            text = {"tie_word_embeddings": False} | raw.get("text_config", {})
            rope = raw.get("rope_scaling") or text.get("rope_parameters") or text.get("rope_scaling") or {}
            flat = text | {k: v for k, v in raw.items() if v is not None} | rope
            vision = raw.get("vision_config", {})
            vision = {"in_chans": vision.get("in_channels", 3)} | vision
            if generation and "eos_token_id" in generation:
                flat["eos_token_id"] = generation["eos_token_id"]
            if isinstance(flat.get("eos_token_id"), int):
                flat["eos_token_id"] = [flat["eos_token_id"]]
            encoder = cls.Vision(**fields_of(cls.Vision, vision))
            config = cls(**fields_of(cls, flat), vision=encoder, raw=raw, generation=generation)

        # What this code does not compute is refused, not ignored.
        tokens = config.image_token, config.video_token
        unsupported = {
            "use_sliding_window": flat.get("use_sliding_window", False),
            "hidden_act": flat.get("hidden_act", "silu") != "silu",
            "rope type": rope.get("rope_type", rope.get("type", "default")) not in ("default", "mrope"),
            "mrope_section": len(config.rope_sections) != 3 or 2 * sum(config.rope_sections) != config.head_size,
            "num_key_value_heads": config.heads % config.value_heads != 0,
            "image_token_id or video_token_id": max(tokens) >= config.vocab or len(set(tokens)) < 2,
            "out_hidden_size": vision.get("out_hidden_size", config.hidden) != config.hidden,
            "in_chans": encoder.channels != 3,
            "num_heads": encoder.hidden % (4 * encoder.heads) != 0,  # two halves of a head turn, in pairs of numbers
        }
        for name, wrong in (unsupported | config.unsupported(flat, vision)).items():
            if wrong:
                raise InputError(f"{source}: the value of {name} does not fit a {cls.name} model as implemented here")
        return config


# ------------------------------------------------------------------------------------------------------------- patches


def patch_coordinates(patches, grids, merge):
    """Slice, row and column of each patch, in the order in which data.py cuts them: merge x merge blocks stay together.

    patches [P, ...]; grids [images, 3]: slices, rows and columns in patches. A slice is an image, or two frames of a
    video; slices are counted through the batch. Returns long [3, P], on the CPU. Raises ValueError if the grids speak of
    another number of patches.
    """
    if len(patches) != int(grids.prod(dim=1).sum()):
        raise ValueError(f"{len(patches)} patches, but the grids {grids.tolist()} speak of {grids.prod(1).sum()}")
    coordinates, slices = [], 0
    for t, h, w in grids.tolist():
        s, y, x = torch.meshgrid(torch.arange(t) + slices, torch.arange(h), torch.arange(w), indexing="ij")
        blocks = (t, h // merge, merge, w // merge, merge)
        coordinates.append(torch.stack([c.reshape(blocks).transpose(2, 3).flatten() for c in (s, y, x)]))
        slices += t
    return torch.cat(coordinates, dim=1)


def group_patches(labels):
    """Lay out patches that attend to one another (equal `labels`, long [P]) as lines of a table.

    Returns table [W, S]: patch numbers, 0 where a group is shorter than the largest; valid [W, S] bool, or None if
    every group is full; slot [P]: the place of each patch in the flattened table.
    """
    _, group, size = labels.unique(return_inverse=True, return_counts=True)

    # Number the patches within their group: their rank in an order by groups, less the rank of the group's first.
    order = group.argsort(stable=True)
    first = size.cumsum(0) - size
    within = torch.empty_like(group)
    within[order] = torch.arange(len(labels)) - first[group[order]]

    # Every group gets a line as long as the largest group.
    slot = group * size.max() + within
    table = torch.full((len(size) * int(size.max()),), -1)
    table[slot] = torch.arange(len(labels))
    table = table.view(len(size), -1)
    valid = table >= 0
    return table.clamp(min=0), None if valid.all() else valid, slot


def on_device(groups, device):
    """table, valid, slot of `group_patches` on the device where the patches are."""
    return [None if t is None else t.to(device, non_blocking=True) for t in groups]


def patch_rotary(rows, columns, size, device):
    """2-D rotary positions, cos and sin [P, 1, size]: one half of the frequencies turns with the row of a patch, the
    other with its column. size: of a head."""
    coordinates = torch.stack([rows, columns], dim=1).to(device, non_blocking=True)  # [P, 2]
    angles = (coordinates[:, :, None] * frequencies(size // 2, 10000.0, device)).flatten(1)  # [P, size/2]
    angles = torch.cat([angles, angles], dim=-1)[:, None]  # [P, 1, size]
    return angles.cos(), angles.sin()


class PatchEmbed(nn.Module):
    """A 3-D convolution whose stride is its kernel is one linear layer on flat patches."""

    def __init__(self, c, bias):
        super().__init__()
        shape = (c.hidden, c.channels, c.temporal_patch_size, c.patch_size, c.patch_size)
        self.proj = nn.ParameterDict({"weight": nn.Parameter(torch.empty(shape))})  # the checkpoint's name and shape
        if bias:
            self.proj["bias"] = nn.Parameter(torch.empty(c.hidden))

    def forward(self, patches):
        weight = self.proj["weight"].flatten(1)
        bias = self.proj.get("bias")
        return F.linear(patches.to(weight.dtype), weight, bias)


class VisionAttention(nn.Module):
    """Attention within groups of patches: windows, or complete slices."""

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
        out = fused_attention(q, k, v, mask, causal=False)  # all windows at once
        return self.proj(out.transpose(1, 2).flatten(2).flatten(0, 1)[slot])  # [P, E]


class VisionBlock(nn.Module):
    """Attention and MLP, each of a norm of the residual stream. norm: the family's class; mlp: its module."""

    def __init__(self, c, norm, mlp):
        super().__init__()
        self.norm1 = norm(c.hidden, 1e-6)
        self.norm2 = norm(c.hidden, 1e-6)
        self.attn = VisionAttention(c)
        self.mlp = mlp

    def forward(self, x, cos, sin, groups):
        x = x + self.attn(self.norm1(x), cos, sin, groups)
        return x + self.mlp(self.norm2(x))


# ----------------------------------------------------------------------------------------------------------- positions


def count_positions(config, ids, blocks):
    """Multimodal positions of one row of token ids: a list of (time, height, width) for each token.

    blocks: (times, rows, columns in patches) of each run of visual tokens. Text counts on in all three. Visual tokens
    count time, rows and columns from there, and the text after them continues after the largest of the three.
    """
    merge, remaining = config.vision.merge, list(blocks)
    found, start, i = [], 0, 0
    while i < len(ids):
        if ids[i] not in (config.image_token, config.video_token):
            found.append((start, start, start))
            start, i = start + 1, i + 1
            continue
        times, h, w = remaining.pop(0)
        h, w = h // merge, w // merge  # in visual tokens
        found += [(start + k, start + y, start + x) for k in times for y in range(h) for x in range(w)]
        start, i = start + max(times[-1] + 1, h, w), i + len(times) * h * w
    return found

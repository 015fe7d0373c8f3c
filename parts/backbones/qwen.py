"""What the Qwen-VL families share: config.json -> Config, the order of patches, who attends to whom, positions.

A family's own file adds what only it has. The tests hold every number against transformers.

Letters: P image patches, W windows, S patches in the largest window, E hidden size of the encoder, K size of a head, T
sequence length.
"""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from parts.backbones.layers import Linear, frequencies, fused_attention, rotate
from parts.files import InputError, read_json, reading

DEFAULTS = read_json(Path(__file__).with_name("defaults.json"))  # {family: what its classes in transformers have}
FIXED = {"hidden_act", "use_sliding_window", "attention_bias", "mrope_interleaved", "in_chans"}  # no other value


def key(name):
    """A field of a configuration: its key in config.json."""
    return field(metadata={"key": name})


def read_fields(cls, raw):
    """{field: value} of a configuration class, from parsed JSON. KeyError for a missing key, ValueError for another type."""
    given = {f: raw[f.metadata["key"]] for f in fields(cls) if "key" in f.metadata}
    for f, value in given.items():
        if {type(number) for number in (value if f.type is tuple else [value])} - {int, f.type}:
            raise ValueError(f"{f.metadata['key']} is {value!r:.60}")
    return {f.name: tuple(value) if f.type is tuple else value for f, value in given.items()}


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

    deepstack = ()  # the blocks after which a feature for DeepStack is taken, see qwen3_vl.py


@dataclass(frozen=True, kw_only=True)
class Config:
    """A family's Config adds: name, Vision (its class for `vision`), head_size, qkv_bias, qk_norm, by_axis, family."""

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
    folder: Path = field(default=None, repr=False, compare=False)  # where they are from
    system: str = ""  # the line before the user's turn, and
    opening: str = ""  # what the answer begins with: of the chat template

    @property
    def visual_size(self):
        """Numbers that the encoder gives for one visual token: D for its embedding, and D for each feature of DeepStack."""
        return self.hidden * (1 + len(self.vision.deepstack))

    @classmethod
    def from_dict(cls, raw, generation=None, folder=None, template=""):
        """raw, generation: the parsed config.json and generation_config.json (or None) of a folder; template: the text of
        its chat template, "": the family's. Raises InputError for a missing key, or a value not implemented here."""
        source = folder / "config.json" if folder else "config.json"
        with reading(source, f"a complete {cls.name} configuration"):
            flat, vision = flattened(raw, generation)
            encoder, values = cls.Vision(**read_fields(cls.Vision, vision)), read_fields(cls, flat)
            turns = read_turns(template) if template else {}
            config = cls(**values, **turns, vision=encoder, raw=raw, generation=generation, folder=folder)

            # What this code does not compute is refused, not ignored.
            text, image = DEFAULTS[cls.family].values()
            wrong = [key for key in FIXED & text.keys() if flat[key] != text[key]]
            wrong += [f"vision {key}" for key in FIXED & image.keys() if vision[key] != image[key]]
            wrong += ["rope type"] * (flat.get("rope_type", flat.get("type", "default")) not in ("default", "mrope"))
            wrong += ["mrope_section"] * (2 * sum(config.rope_sections) != config.head_size)
            if wrong:
                raise InputError(f"{source}: the value of {wrong[0]} does not fit a {cls.name} model as implemented here")
        return config


def flattened(raw, generation):
    """(the decoder's keys, the encoder's) of config.json, which is flat or has the decoder's in `text_config`. What is left
    out has the default. The end tokens are a list, and generation_config.json's if it names some."""
    text, vision = raw.get("text_config", {}), raw.get("vision_config", {})
    rope = raw.get("rope_scaling") or text.get("rope_parameters") or text.get("rope_scaling") or {}
    given = {key: value for part in (text, raw, rope) for key, value in part.items() if value is not None}
    flat, encoder = DEFAULTS[raw["model_type"]].values()
    flat = flat | given
    ends = (generation or {}).get("eos_token_id") or flat["eos_token_id"]
    flat["eos_token_id"] = ends if isinstance(ends, list) else [ends]
    return flat, encoder | {"in_chans": vision.get("in_channels", 3)} | vision


def read_turns(template):
    """{"system", "opening"}: the line that a chat template puts before the user's turn, and what it begins the answer with.
    They are read from its text, without running it: a system turn written out, or a variable set to it; and "<think>" in
    the prompt's end, if it is not closed at once. ValueError for a template of other turns."""
    text = template.replace("\\n", "\n").replace("\\'", "'")
    if "<|im_start|>" not in text:
        raise ValueError("its chat template has no <|im_start|>: put the original checkpoint's in the folder")
    system = re.search(r"<\|im_start\|>system\n([^{}'\"][^{}]*?)<\|im_end\|>", text)
    system = system or re.search(r"set \w*system\w* *= *['\"]([^'\"]+)['\"]", text)
    end = re.sub(r"<think>\s*</think>", "", text.rpartition("add_generation_prompt")[2])
    thought = re.search(r"<think>\n*", end)
    return {"system": system[1] if system else "", "opening": thought[0] if thought else ""}


def patch_coordinates(grids, merge):
    """Slice, row and column of each patch, long [3, P], on the CPU, in the order in which data.py cuts them: merge x merge
    blocks stay together. grids [images, 3]: slices, rows and columns in patches. A slice is an image, or two frames of a
    video; slices are counted through the batch."""
    coordinates, slices = [], 0
    for t, h, w in grids.tolist():
        s, y, x = torch.meshgrid(torch.arange(t) + slices, torch.arange(h), torch.arange(w), indexing="ij")
        blocks = (t, h // merge, merge, w // merge, merge)
        coordinates.append(torch.stack([c.reshape(blocks).transpose(2, 3).flatten() for c in (s, y, x)]))
        slices += t
    return torch.cat(coordinates, dim=1)


def group_patches(labels, device="cpu"):
    """Lay out patches that attend to one another (equal `labels`, long [P], on the CPU) as lines of a table on `device`:
    table [W, S]: patch numbers, 0 where a group is shorter than the largest; mask [W, 1, 1, S] bool: False there, or None
    if every group is full; slot [P]: where each patch is in the flattened table."""
    order, sizes = labels.argsort(stable=True), labels.unique(return_counts=True)[1]
    table = pad_sequence(order.split(sizes.tolist()), batch_first=True, padding_value=-1)  # [W, S]
    full, slot = table >= 0, torch.empty_like(labels)
    slot[table[full]] = full.flatten().nonzero()[:, 0]
    mask = None if full.all() else full[:, None, None].to(device, non_blocking=True)
    return table.clamp(min=0).to(device, non_blocking=True), mask, slot.to(device, non_blocking=True)


def patch_rotary(rows, columns, size, device):
    """2-D rotary positions, cos and sin [P, 1, size/2]: one half of the frequencies turns with the row of a patch, the
    other with its column. size: of a head."""
    coordinates = torch.stack([rows, columns], dim=1).to(device, non_blocking=True)  # [P, 2]
    angles = (coordinates[:, :, None] * frequencies(size // 2, 10000.0, device)).flatten(1)  # [P, size/2]
    return angles[:, None].cos(), angles[:, None].sin()


class PatchEmbed(nn.Module):
    """A 3-D convolution whose stride is its kernel is one linear layer on flat patches."""

    def __init__(self, c, bias):
        super().__init__()
        kernel = (c.temporal_patch_size, c.patch_size, c.patch_size)
        self.proj = nn.Conv3d(c.channels, c.hidden, kernel, bias=bias)  # holds the weights, under the checkpoint's names

    def forward(self, patches):
        weight = self.proj.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)


class VisionAttention(nn.Module):
    """Attention within groups of patches: windows, or complete slices."""

    def __init__(self, c):
        super().__init__()
        self.heads = c.heads
        self.qkv = Linear(c.hidden, 3 * c.hidden)
        self.proj = Linear(c.hidden, c.hidden)

    def forward(self, x, cos, sin, groups):
        table, mask, slot = groups
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)  # [P, heads, K] each
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = (y[table].transpose(1, 2) for y in (q, k, v))  # [W, heads, S, K]
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


def count_positions(config, ids, blocks):
    """Multimodal positions of one row of token ids: a list of (time, height, width) for each token. Text counts on in all
    three. Visual tokens count time, rows and columns from there, and the text after them continues after the largest of the
    three. blocks: (times, rows, columns in patches) of each run of visual tokens."""
    visual_tokens, merge, blocks = (config.image_token, config.video_token), config.vision.merge, iter(blocks)
    positions, start = [], 0
    while len(positions) < len(ids):
        if ids[len(positions)] in visual_tokens:
            times, rows, columns = next(blocks)
            h, w = rows // merge, columns // merge  # in visual tokens
            positions += [(start + k, start + y, start + x) for k in times for y in range(h) for x in range(w)]
            start += max(times[-1] + 1, h, w)
        else:
            positions.append((start, start, start))
            start += 1
    return positions

"""The frozen vision-language model: Qwen2.5-VL, written by hand.

    patches -> VisionEncoder -> visual embeddings -+
    token ids -> embedding table ------------------+-> Decoder -> head -> logits -> loss, text

Read `Attention.forward` first: the line that begins `v = self.adapted("v", ...)` is where Image-LoRA
acts; the rest of this file is the model that stays as it is.

Names of modules and parameters are those of the checkpoints on the Hugging Face hub, so the loader needs no
translation table. Sources: the Qwen2.5-VL report (arXiv 2502.13923) and the published configurations; the
tests hold every number against transformers.

Shapes: B batch, T sequence length, S keys (T, or the length of the cache), P image patches, N visual tokens in
the batch, D hidden size, H query heads, G value (KV) heads, K head size, L layers, V vocabulary.
In the vision encoder: W windows, S patches in the largest window, E hidden size.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file
from torch import nn
from torch.utils.checkpoint import checkpoint


class InputError(ValueError):
    """Something the user gave is wrong: one line that names it and says what to do. train.py exits with code 2."""


# ------------------------------------------------------------------------------------------------ configuration


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

    @classmethod
    def from_pretrained(cls, path_or_hub_id):
        folder = checkpoint_folder(path_or_hub_id)
        generation = folder / "generation_config.json"
        generation = read_json(generation) if generation.exists() else None
        return cls.from_dict(read_json(folder / "config.json"), generation, source=str(folder / "config.json"))


# --------------------------------------------------------------------------------------------- parts of both towers


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


# -------------------------------------------------------------------------------------------------- vision encoder


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


# --------------------------------------------------------------------------------------------------------- decoder


def attention_mask(segments):
    """Who may look at whom: segments [B, T] (0, 1, ...; padding -1) -> bool [B, 1, T, T].

    Causal; within segment 0 (which everyone may read) or one's own segment; never padding. Every position may look
    at itself, so that padding rows stay finite: a softmax over nothing is NaN, and NaN spreads through 0 * NaN.
    """
    T = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    allowed = causal & ((key == 0) | (key == query)) & (key >= 0)
    return (allowed | torch.eye(T, dtype=torch.bool, device=segments.device))[:, None]


def rows_of_mask(mask, reads, T):
    """The rows of an attention mask (None: causal) for the queries at the columns reads [B, S] -> [B, 1, S, T]."""
    if mask is None:
        return (torch.arange(T, device=reads.device) <= reads[..., None])[:, None]
    return mask.take_along_dim(reads[:, None, :, None], dim=2)


class KVCache:
    """Keys and values of all layers, [L, B, G, S, K] each; `length` positions are filled."""

    def __init__(self, config, rows, positions, dtype, device):
        shape = (config.layers, rows, config.value_heads, positions, config.head_size)
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer, k, v):
        """Write the new positions of one layer behind the old ones; return all of them, [B, G, S, K] each."""
        end = self.length + k.shape[2]
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def select(self, rows):
        """Go on with these rows only: numbers, in which a row may occur several times, or a bool for each row."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]


class Attention(nn.Module):
    """Grouped-query attention with multimodal rotary positions: the place where the paper happens.

    `adapters` maps a path ("q", "k", "v" or "o") to what an attached adapter adds there; empty: the frozen model.
    """

    def __init__(self, c, layer):
        super().__init__()
        self.layer, self.head_size = layer, c.head_size
        self.q_proj = Linear(c.hidden, c.heads * c.head_size)
        self.k_proj = Linear(c.hidden, c.value_heads * c.head_size)
        self.v_proj = Linear(c.hidden, c.value_heads * c.head_size)
        self.o_proj = Linear(c.heads * c.head_size, c.hidden, bias=False)
        self.adapters = {}

    def adapted(self, path, y, x, visual_index):
        """y = x W of the frozen model -> y plus the attached adapter's update, or y itself."""
        return self.adapters[path](y, x, visual_index) if path in self.adapters else y

    def forward(self, x, cos, sin, mask, visual_index=None, cache=None, reads=None, by_hand=False):
        """x [B, T, D]; cos, sin [B, T, K]; mask bool [B, 1, T, S], None: causal; visual_index [N]: flat positions (row
        * T + column) of the visual tokens in x, None while decoding text; reads [B, S]: the columns that ask, all of
        them text (None: every one). Returns [B, T, D] (or [B, S, D]) and the weights, if by hand."""
        k = self.adapted("k", self.k_proj(x), x, visual_index)  # [B, T, G*K]
        v = self.v_proj(x)  # [B, T, G*K]
        v = self.adapted("v", v, x, visual_index)  # Image-LoRA: V~ = X W_V + s * M X A B, see imagelora.py
        k = rotate(self.split(k), cos[:, None], sin[:, None])  # [B, G, T, K]
        v = self.split(v)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)

        causal = mask is None
        if reads is not None:  # keys and values come from every position, queries from a few
            mask, causal, visual_index = rows_of_mask(mask, reads, x.shape[1]), False, None
            x, cos, sin = take(x, reads), take(cos, reads), take(sin, reads)
        q = self.adapted("q", self.q_proj(x), x, visual_index)  # [B, T, H*K]
        q = rotate(self.split(q), cos[:, None], sin[:, None])
        out, weights = attend(q, k, v, mask, causal, by_hand)
        out = out.transpose(1, 2).flatten(2)  # [B, T, H*K]
        return self.adapted("o", self.o_proj(out), out, visual_index), weights

    def split(self, x):
        """[B, T, heads * K] -> [B, heads, T, K]."""
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class DecoderLayer(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.self_attn = Attention(c, layer)
        self.mlp = MLP(c.hidden, c.intermediate, bias=False)
        self.input_layernorm = RMSNorm(c.hidden, c.rms_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden, c.rms_eps)

    def forward(self, x, cos, sin, mask, visual_index, cache, reads, by_hand):
        normed = self.input_layernorm(x)
        attended, weights = self.self_attn(normed, cos, sin, mask, visual_index, cache, reads, by_hand)
        x = (x if reads is None else take(x, reads)) + attended
        return x + self.mlp(self.post_attention_layernorm(x)), weights


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(DecoderLayer(c, i) for i in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.rms_eps)
        self.checkpointing = False  # see `run`

    def forward(self, x, position_ids, mask, visual_index=None, cache=None, reads=None, by_hand=False):
        """x [B, T, D] embeddings, position_ids [3, B, T] (time, height, width), mask bool [B, 1, T, S] or None (causal)
        -> [B, T, D] and the attention weights of each layer (Nones, unless by hand).

        reads [B, S]: the columns whose output is wanted -> [B, S, D]. All others serve these as keys and values only,
        so the last layer computes neither queries nor MLP for them."""
        cos, sin = self.rotary(position_ids)
        weights = []
        x = x.float()  # in a bfloat16 model too, the residual stream adds up in float32: most of its rounding vanishes
        for layer in self.layers:
            wanted = reads if layer is self.layers[-1] else None
            T = x.shape[1]
            x, w = run(layer, self.checkpointing, x, cos, sin, mask, visual_index, cache, wanted, by_hand)
            weights.append(w)
        if cache is not None:
            cache.length += T
        return self.norm(x), weights

    def rotary(self, position_ids):
        """Multimodal rotary positions: the first section of the frequencies turns with a token's time, the second
        with its height, the third with its width (for text all three are equal: ordinary rotary positions)."""
        c = self.config
        angles = position_ids[..., None] * frequencies(c.head_size, c.rope_theta, position_ids.device)  # [3, B, T, K/2]
        time, height, width = angles.split(c.rope_sections, dim=-1)
        angles = torch.cat([time[0], height[1], width[2]], dim=-1)  # [B, T, K/2]
        angles = torch.cat([angles, angles], dim=-1)  # [B, T, K]
        return angles.cos(), angles.sin()


# -------------------------------------------------------------------------------------------------------- the model


class VLM(nn.Module):
    """Qwen2.5-VL. `vlm(batch)` gives logits, `vlm.loss(batch)` the training loss, `vlm.generate(batch)` text."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.visual = VisionEncoder(config.vision, config.hidden)
        self.model = Decoder(config)
        self.lm_head = None if config.tied else Linear(config.hidden, config.vocab, bias=False)

    @property
    def device(self):
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self):
        return self.model.embed_tokens.weight.dtype

    def embed(self, batch):
        """Token embeddings with the visual embeddings put at the visual positions, [B, T, D]. Every picture of the
        batch is encoded once, or not at all where its embeddings came along (`batch.known`); `visual_source` says which
        visual token stands where."""
        x = self.model.embed_tokens(batch.input_ids)
        if len(batch.visual_index) == 0:
            return x
        visual = [self.visual(batch.patches, batch.grids)] if len(batch.grids) else []
        visual += [] if batch.known is None else [batch.known]
        visual = torch.cat(visual)[batch.visual_source]  # [N, D]
        return x.flatten(0, 1).index_copy(0, batch.visual_index, visual.to(x.dtype)).view_as(x)

    def checkpointing(self, on):
        """Whether the backward pass computes blocks a second time instead of keeping their insides (see `run`)."""
        self.visual.checkpointing = self.model.checkpointing = on

    def hidden(self, batch, reads=None, by_hand=False):
        """The decoder's output [B, T, D] (at the columns reads [B, S] only: [B, S, D]), and the attention weights of
        each layer if by hand. A batch without padding and segments needs no mask: plain causal attention, whose kernel
        skips what lies ahead instead of computing and discarding it."""
        mask = None if batch.causal and not by_hand else attention_mask(batch.segments)
        return self.model(self.embed(batch), batch.position_ids, mask, batch.visual_index, None, reads, by_hand)

    def head(self, x):
        return linear(x, self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)

    def forward(self, batch, return_weights=False):
        """Logits [B, T, V]; with return_weights also the attention weights, a list of L tensors [B, H, T, T], by the
        slow path that holds them."""
        x, weights = self.hidden(batch, by_hand=return_weights)
        return (self.head(x), weights) if return_weights else self.head(x)

    def loss(self, batch):
        """Mean cross-entropy over the supervised tokens of the batch, float32 scalar.

        A token is predicted from the position before it. The last layer and the head are applied at just those
        positions (`batch.reads`): at a vocabulary of 150,000 the logits of all positions would outweigh the rest of the
        step's memory. Raises ValueError if the batch supervises nothing.
        """
        if not batch.supervised:
            raise ValueError("the batch has no supervised token: its examples have no answers")
        x, _ = self.hidden(batch, batch.reads)
        return F.cross_entropy(self.head(x).flatten(0, 1).float(), batch.targets.flatten())  # -100 is left out

    @torch.no_grad()
    def generate(self, batch, max_new_tokens=64):
        """Greedy decoding with a KV cache, the whole batch at once.

        batch: of examples without answers, one a row or sharing rows. Returns one list of token ids per example, in
        input order, without the end token. A shared row is computed once, then every question goes on with its own copy
        of that row's keys and values; questions that have ended leave the batch. The new tokens are text: Image-LoRA,
        which acts on visual tokens only, has nothing to compute after the prefill. Raises ValueError if the batch holds
        answers or would outgrow the positions.
        """
        if batch.supervised:
            raise ValueError("generate needs examples without answers (answer=None)")
        c, device = self.config, batch.input_ids.device
        row, segment = torch.tensor(batch.examples, device=device).T  # [Q] each
        own = batch.segments[row]  # [Q, T]
        seen = (own == 0) | (own == segment[:, None])  # what a question may look at: segment 0 and its own
        longest = int(seen.sum(dim=1).max())
        if longest + max_new_tokens > c.max_positions:
            raise ValueError(f"{longest} + {max_new_tokens} tokens do not fit in {c.max_positions} positions")

        T = batch.input_ids.shape[1]
        x, mask = self.embed(batch), None if batch.causal else attention_mask(batch.segments)
        cache = KVCache(c, len(x), T + max_new_tokens, x.dtype, device)
        x, _ = self.model(x, batch.position_ids, mask, batch.visual_index, cache, batch.reads)  # [B, S, D]

        # from here on one question a row; its text goes on behind its last token
        question = (segment - 1).clamp(min=0)  # of its row, where `reads` has one column for each
        x, position = x[row, question], batch.position_ids[0, row, batch.reads[row, question]]  # [Q, D], [Q]
        cache.select(row)
        seen = torch.cat([seen, seen.new_ones(len(seen), max_new_tokens)], dim=1)
        texts = [[] for _ in batch.examples]
        running = torch.arange(len(texts), device=device)
        end = torch.tensor(c.end_tokens, device=device)
        for step in range(max_new_tokens):
            token = self.head(x).argmax(dim=-1)  # [Q]
            goes_on = ~torch.isin(token, end)
            if not goes_on.all():
                token, position, seen, running = (y[goes_on] for y in (token, position, seen, running))
                cache.select(goes_on)
            for i, t in zip(running.tolist(), token.tolist()):
                texts[i].append(t)
            if len(running) == 0 or step + 1 == max_new_tokens:
                break
            position = position + 1
            x, mask = self.model.embed_tokens(token[:, None]), seen[:, None, None, : cache.length + 1]
            x, _ = self.model(x, position.expand(3, 1, -1).mT, mask, None, cache)
            x = x[:, 0]
        return texts

    # -- checkpoints

    @classmethod
    def from_pretrained(cls, path_or_hub_id, dtype=torch.float32, device="cpu"):
        """Load a checkpoint in the hub's layout: a folder, or a model id that is downloaded once.

        The safetensors files are memory-mapped and each tensor goes straight to `dtype` and `device`. Returns the
        model frozen and in eval mode. Raises InputError for a missing, surplus, doubled or misshapen tensor.
        """
        folder = checkpoint_folder(path_or_hub_id)
        config = Config.from_pretrained(folder)
        with torch.device("meta"):  # names and shapes without memory
            vlm = cls(config)
        expected = {name: tuple(p.shape) for name, p in vlm.state_dict().items()}
        tensors = {}
        for file in checkpoint_files(folder):
            for name, tensor in read_safetensors(file, device):
                name = re.sub(r"^model\.(visual\.)|^(model\.)language_model\.", r"\1\2", name)  # the newer scheme
                if name not in expected:
                    raise InputError(f"{file}: surplus tensor {name}; does config.json belong to these weights?")
                if name in tensors:
                    raise InputError(f"{file}: tensor {name} occurs twice in this checkpoint")
                if tuple(tensor.shape) != expected[name]:
                    raise InputError(
                        f"{file}: {name} is {list(tensor.shape)}, config.json asks for {list(expected[name])}"
                    )
                tensors[name] = tensor.to(dtype)
        missing = [name for name in expected if name not in tensors]
        if missing:
            raise InputError(f"{folder}: missing tensor {missing[0]} (and {len(missing) - 1} more)")
        vlm.load_state_dict(tensors, assign=True)
        return vlm.requires_grad_(False).eval()

    @classmethod
    def from_scratch(cls, config, seed=0, dtype=torch.float32, device="cpu"):
        """A model with random weights: normal with variance 1 / inputs, biases 0, norms 1; frozen and in eval mode, as
        loaded ones. (The usual standard deviation of 0.02 suits wide models; small ones learn sooner with this.)"""
        generator = torch.Generator().manual_seed(seed)
        with torch.device("meta"):
            vlm = cls(config)
        vlm = vlm.to_empty(device="cpu")
        for name, p in vlm.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 1:
                nn.init.ones_(p)
            else:
                nn.init.normal_(p, std=p[0].numel() ** -0.5, generator=generator)
        return vlm.to(dtype=dtype, device=device).requires_grad_(False).eval()

    def save(self, path):
        """Write config.json, generation_config.json and model.safetensors into the folder `path`."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.state_dict()
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        raw = {k: v for k, v in self.config.raw.items() if k != "dtype"} | {"torch_dtype": dtype}
        generation = self.config.generation or {"eos_token_id": list(self.config.end_tokens)}
        write_text(folder / "config.json", json.dumps(raw, indent=2) + "\n")
        write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
        write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})

    def fingerprint(self):
        """Which model this is: a hash of the configuration and of 16 values of every tensor.

        The values are hashed as bfloat16, so that one checkpoint has one fingerprint in every dtype.
        """
        config = {k: v for k, v in asdict(self.config).items() if k not in ("raw", "generation", "end_tokens")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for _, p in sorted(self.named_parameters()):
            digest.update(str(sample(p.detach()).to(torch.bfloat16).view(torch.int16).tolist()).encode())
        return digest.hexdigest()[:32]


def sample(tensor, count=16):
    """`count` values of a tensor, evenly spaced from its first to its last. The places are integers throughout: a
    float32 cannot tell the last of the 311 million places of an embedding table from the one behind it."""
    places = torch.arange(count, device=tensor.device) * (tensor.numel() - 1) // (count - 1)
    return tensor.reshape(-1)[places]


# ------------------------------------------------------------------------------------------------------------ files


def checkpoint_folder(path_or_hub_id):
    """A local folder as it is, without touching the network; a hub id ("Qwen/Qwen2.5-VL-3B-Instruct") downloaded
    (json and safetensors files only) into the hub's cache. Raises InputError if there is neither."""
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    looks_like_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path_or_hub_id)) and not folder.parent.exists()
    if not looks_like_hub_id:
        raise InputError(f"{path_or_hub_id}: no such checkpoint folder (a hub id has the form owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path_or_hub_id}: no such folder, and not to be had from the hub: {reason}") from None


def checkpoint_files(folder):
    """The safetensors files of a checkpoint: those that the index names, or the only one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise InputError(f"{index}: no weight_map; is this a whole index?")
        files = [folder / name for name in dict.fromkeys(names.values())]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.exists():
            raise InputError(f"{file}: no such file; the folder holds no whole checkpoint")
    return files


def read_safetensors(file, device="cpu"):
    """Yield (name, tensor) of a safetensors file; on the CPU the tensors are views of the mapped file."""
    with open_safetensors(file, device) as f:
        for name in f.offset_keys():  # in the order of the file
            yield name, f.get_tensor(name)


def read_metadata(file):
    """The {key: text} that a safetensors file carries beside its tensors."""
    with open_safetensors(file) as f:
        return f.metadata() or {}


def open_safetensors(file, device="cpu"):
    try:
        return safe_open(str(file), framework="pt", device=str(device))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except SafetensorError as error:
        raise InputError(f"{file}: not a whole safetensors file ({error}); copy or download it again") from None


def write_safetensors(file, tensors, metadata):
    """Write {name: tensor} and {key: text}; the old file stays until the new one is whole.

    `safetensors.torch.save_file` would do, but imports numpy, which this project does without.
    """
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}  # alive until written
    specs = {
        name: TensorSpec(
            dtype=str(t.dtype).removeprefix("torch."),
            shape=list(t.shape),
            data_ptr=t.data_ptr(),
            data_len=t.numel() * t.element_size(),
        )
        for name, t in whole.items()
    }
    part = Path(f"{file}.part")
    serialize_file(specs, str(part), metadata)
    sort_metadata(part)
    part.chmod(0o644)  # it is written readable to its owner only
    os.replace(part, file)


def sort_metadata(file):
    """The library writes the metadata in an order that changes from process to process. Sorted, and as long as before,
    they make equal contents equal files, byte for byte."""
    with open(file, "r+b") as f:
        size = int.from_bytes(f.read(8), "little")  # the layout: size of the header, header in JSON, tensors
        header = json.loads(f.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, f"{file}: a header of {len(text)} bytes does not fit in {size}"
        f.seek(8)
        f.write(text.ljust(size))


def write_text(file, text):
    """Write a text file; the old one stays until the new one is whole."""
    part = Path(f"{file}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def read_json(file):
    """Parse a JSON file. Raises InputError, naming it, if it is absent or broken."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None

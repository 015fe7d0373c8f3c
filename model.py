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
"""

import torch
import torch.nn.functional as F
from torch import nn

from backbones.checkpoint import fingerprint, from_pretrained, from_scratch, save
from backbones.layers import (
    MLP,
    Linear,
    RMSNorm,
    attend,
    frequencies,
    linear,
    rotate,
    run,
    take,
)
from backbones.qwen2_5_vl import VisionEncoder


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

    from_pretrained = classmethod(from_pretrained)
    from_scratch = classmethod(from_scratch)
    save = save
    fingerprint = fingerprint

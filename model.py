"""Lecture 2. The frozen vision-language model, written by hand.

You will see a decoder like any other, and in it the one line where Image-LoRA acts: in `Attention.forward`, the line
`v = update(v, x, visual_index)`. Everything else in this file stays as the checkpoint has it.

    patches -> vision encoder -> visual embeddings -+
    token ids -> embedding table -------------------+-> Decoder -> head -> logits -> loss, text

Names of modules and parameters are those of the checkpoints on the Hugging Face hub; only their beginning differs in some
families. The vision encoder of a family is in parts/backbones/; so are norm, MLP and rotation, which all models share.

Letters: B batch, T sequence length, S keys (T, or the length of the cache), N visual tokens in the batch, D hidden
size, H query heads, G value (KV) heads, K head size, L layers, V vocabulary, Q questions that are being answered.
"""

import torch
import torch.nn.functional as F
from torch import nn

from parts.backbones import FAMILIES, checkpoint, layers
from parts.backbones.layers import MLP, Linear, RMSNorm


def attention_mask(segments):
    """Who may look at whom: segments [B, T] (0, 1, ...; padding -1) -> bool [B, 1, T, T], True where a query may look.

    An ordinary row is all segment 0. Where several questions share an image, segment 0 is the image, and segments 1, 2,
    ... are the questions: a token may look at earlier tokens of segment 0 and of its own segment, nothing else. Every
    token may look at itself, padding too: a softmax over no key gives NaN, and in the next layer 0 * NaN is NaN again.
    """
    T = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    allowed = causal & ((key == 0) | (key == query)) & (key >= 0)
    itself = torch.eye(T, dtype=torch.bool, device=segments.device)
    return (allowed | itself)[:, None]


def attend(q, k, v, mask):
    """Attention by hand: softmax(q k^T / sqrt(K)) v, [B, H, T, K], and its weights, [B, H, T, S].

    q [B, H, T, K]; k, v [B, G, S, K]; mask bool [B, 1, T, S] or None: causal.
    """
    H, T, K = q.shape[1:]
    G, S = k.shape[1:3]
    k = k.repeat_interleave(H // G, dim=1)  # [B, H, S, K]: each KV head serves H / G query heads, one after another
    v = v.repeat_interleave(H // G, dim=1)
    scores = (q @ k.transpose(-2, -1)).float() / K**0.5  # [B, H, T, S]
    if mask is None:  # causal
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).to(v.dtype)
    return weights @ v, weights


class Attention(nn.Module):
    """Grouped-query attention with rotary positions: where the paper happens.

    `updates` has a list for each projection, with the update of the attached adapter. Empty lists: the frozen model.
    `attention` is a fused kernel, faster than `attend`, which is the reference that the tests hold the kernel to.
    """

    def __init__(self, c, layer):
        super().__init__()
        self.layer, self.head_size = layer, c.head_size
        self.q_proj = Linear(c.hidden, c.heads * c.head_size, bias=c.qkv_bias)
        self.k_proj = Linear(c.hidden, c.value_heads * c.head_size, bias=c.qkv_bias)
        self.v_proj = Linear(c.hidden, c.value_heads * c.head_size, bias=c.qkv_bias)
        self.o_proj = Linear(c.heads * c.head_size, c.hidden, bias=False)
        self.q_norm = RMSNorm(c.head_size, c.rms_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_size, c.rms_eps) if c.qk_norm else nn.Identity()
        self.updates = {"q": [], "k": [], "v": [], "o": []}
        self.attention = layers.fused_attention

    def adapted(self, projection, y, x, visual_index):
        """Add the attached adapter's update, if it has one, to y, a projection's frozen output for x."""
        for update in self.updates[projection]:
            y = update(y, x, visual_index)
        return y

    def forward(self, x, cos, sin, mask, visual_index=None, cache=None):
        """x [B, T, D]; cos, sin [B, 1, T, K/2]; mask bool [B, 1, T, S] or None: causal; visual_index [N]: flat positions,
        row * T + column, of the visual tokens in x, None while decoding text. Returns [B, T, D]."""
        # Each token asks with its query. Keys decide which tokens answer, values what they say.
        q = self.adapted("q", self.q_proj(x), x, visual_index)  # [B, T, H*K]
        k = self.adapted("k", self.k_proj(x), x, visual_index)  # [B, T, G*K]
        v = self.v_proj(x)  # [B, T, G*K]: the frozen X W_V

        # Image-LoRA: V~ = X W_V + s * M X A B, see imagelora.py. Why the values? A text token reads the values of the image,
        # weighted by its keys. A changed key would change every weight; a changed query or output of an image token
        # reaches no text token in this layer. A changed value changes what is read, and in this layer nothing else.
        for update in self.updates["v"]:
            v = update(v, x, visual_index)

        # Split into heads, then turn queries and keys (in some families normed before) by their positions.
        q, k, v = (y.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for y in (q, k, v))  # [B, H or G, T, K]
        q = layers.rotate(self.q_norm(q), cos, sin)
        k = layers.rotate(self.k_norm(k), cos, sin)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # [B, G, S, K]: with those of earlier tokens

        # Each token mixes the values of the tokens that it looks at.
        out = self.attention(q, k, v, mask).transpose(1, 2).flatten(2)  # [B, H, T, K] -> [B, T, H*K]
        return self.adapted("o", self.o_proj(out), out, visual_index)  # [B, T, D]


# ------------------------------------------------------------------------------------------------------------- decoder


class KVCache:
    """Keys and values of all layers, [L, B, G, S, K] each, of which `length` positions are filled."""

    def __init__(self, config, rows, positions, dtype, device):
        shape = (config.layers, rows, config.value_heads, positions, config.head_size)
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer, k, v):
        """Write the new positions of one layer after the old ones; return all of them, [B, G, S, K] each."""
        end = self.length + k.shape[2]
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def select(self, rows):
        """Continue with these rows only: numbers, in which a row may occur several times, or a bool for each row."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]


class DecoderLayer(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.self_attn = Attention(c, layer)
        self.mlp = MLP(c.hidden, c.intermediate, bias=False)
        self.input_layernorm = RMSNorm(c.hidden, c.rms_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden, c.rms_eps)

    def forward(self, x, cos, sin, mask, visual_index, cache):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, visual_index, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(DecoderLayer(c, i) for i in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.rms_eps)

    def forward(self, x, position_ids, mask, visual_index=None, cache=None, features=()):
        """x [B, T, D]: embeddings; position_ids [3, B, T]: time, row, column; mask bool [B, 1, T, S] or None: causal.
        features: a list of [N, D], DeepStack of Qwen3-VL. Features from the middle of the vision encoder are added at the
        visual positions after layers 0, 1, ...; no adapter touches them. Returns [B, T, D]."""
        B, T, D = x.shape
        cos, sin = self.rotary(position_ids)
        x = x.float()  # also in a bfloat16 model: the sum over many layers would lose digits
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, visual_index, cache)
            if i < len(features):
                x = x.view(B * T, D).index_add(0, visual_index, features[i].to(x.dtype)).view(B, T, D)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def rotary(self, position_ids):
        """Multimodal rotary positions, cos and sin [B, 1, T, K/2]. Each frequency follows one of time, row and column;
        `by_axis` (per family) says which. For text all three are equal: ordinary rotary positions."""
        c = self.config
        angles = position_ids[..., None] * layers.frequencies(c.head_size, c.rope_theta, position_ids.device)
        angles = c.by_axis(angles)[:, None]  # [3, B, T, K/2] -> [B, 1, T, K/2]
        return angles.cos(), angles.sin()


# ----------------------------------------------------------------------------------------------------------- the model


class VLM(nn.Module):
    """`vlm(batch)` gives logits, `vlm.loss(batch)` the training loss, `vlm.generate(batch)` text; data.py makes batches."""

    source, marks = "", {}  # what from_pretrained was given, and what the fingerprint keeps of each tensor's file

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.visual = FAMILIES[config.family].VisionEncoder(config.vision, config.hidden)
        self.model = Decoder(config)
        self.lm_head = None if config.tied else Linear(config.hidden, config.vocab, bias=False)

    @property
    def device(self):
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self):
        return self.model.embed_tokens.weight.dtype

    def embed(self, batch):
        """(x, features): token embeddings with the visual embeddings at the visual positions, [B, T, D]; and the features
        that Decoder.forward takes, if the family has any.

        Every image of the batch is encoded once, or not at all if its embeddings came with the batch (`batch.encoded`).
        visual_source[i] is the row of the embeddings for the i-th visual position; questions about one image share rows.
        """
        x = self.model.embed_tokens(batch.input_ids)  # [B, T, D]
        if len(batch.visual_index) == 0:
            return x, []
        parts = []
        if len(batch.grids):
            parts.append(self.visual(batch.patches, batch.grids))
        if batch.encoded is not None:
            parts.append(batch.encoded)
        visual = torch.cat(parts).index_select(0, batch.visual_source)  # [N, D], with DeepStack [N, D + D + ...]
        visual, *features = visual.to(x.dtype).split(self.config.hidden, dim=1)  # [N, D] each
        return x.flatten(0, 1).index_copy(0, batch.visual_index, visual).view_as(x), features

    def run_decoder(self, batch, cache=None):
        """The decoder's output at every position, [B, T, D]."""
        # Without padding and segments the mask is plain causal attention, which has a kernel of its own.
        mask = None if batch.causal else attention_mask(batch.segments)
        x, features = self.embed(batch)
        return self.model(x, batch.position_ids, mask, batch.visual_index, cache, features)

    def head(self, x):
        """[..., D] -> logits [..., V]. A tied head is the embedding table."""
        return layers.linear(x, (self.lm_head or self.model.embed_tokens).weight)

    def forward(self, batch):
        """Logits [B, T, V]."""
        return self.head(self.run_decoder(batch))

    def loss(self, batch):
        """Mean cross-entropy over the supervised tokens of the batch, float32 scalar.

        A token is predicted from the position before it: `answer_index`. Nothing reads the output at other positions, so
        the last MLP and the head leave them out. At a vocabulary of 150,000 their logits would take more memory than the
        rest of the step. Raises ValueError if the batch supervises nothing.
        """
        if len(batch.answer_ids) == 0:
            raise ValueError("the batch has no supervised token: its examples have no answers")
        with layers.only_at(self.model.layers[-1].mlp, batch.answer_index):
            x = self.run_decoder(batch).flatten(0, 1)  # [B*T, D]
        logits = self.head(x.index_select(0, batch.answer_index))  # [supervised tokens, V]
        return F.cross_entropy(logits.float(), batch.answer_ids)

    @torch.no_grad()
    def generate(self, batch, max_new_tokens=64):
        """Greedy decoding with a KV cache, all questions of the batch at once.

        Returns one list of token ids per example, in input order, without the end token. The new tokens are text:
        Image-LoRA, which acts on visual tokens only, has nothing to compute after the prefill. Raises ValueError if the
        batch has answers or would outgrow the positions.
        """
        if len(batch.answer_ids) > 0:
            raise ValueError("generate needs examples without answers (answer=None)")
        x, position, visible, cache = self.prefill(batch, max_new_tokens)
        return self.decode(x, position, visible, cache, max_new_tokens)

    def prefill(self, batch, max_new_tokens):
        """Read every row once; then each question has a row of its own. Returns the output at each question's last token,
        x [Q, D]; its position [Q]; what it may look at, visible [Q, T + max_new_tokens] bool; and the cache."""
        # What each question may look at: segment 0 of its row, its own segment, and its new tokens.
        c, T = self.config, batch.input_ids.shape[1]
        row, segment = torch.tensor(batch.examples, device=self.device).unbind(dim=1)  # [Q] each
        segments = batch.segments[row]  # [Q, T]
        visible = (segments == 0) | (segments == segment[:, None])
        longest = int(visible.sum(dim=1).max())
        if longest + max_new_tokens > c.max_positions:
            raise ValueError(f"{longest} + {max_new_tokens} tokens do not fit in {c.max_positions} positions")
        visible = torch.cat([visible, visible.new_ones(len(row), max_new_tokens)], dim=1)

        cache = KVCache(c, len(batch.input_ids), T + max_new_tokens, self.dtype, self.device)
        with layers.only_at(self.model.layers[-1].mlp, batch.answer_index):
            x = self.run_decoder(batch, cache).flatten(0, 1)[batch.answer_index]  # [Q, D]
        position = batch.position_ids[0].flatten()[batch.answer_index]  # [Q]

        # After this each row is one question: those that shared a row continue with copies of its keys and values.
        cache.select(row)
        return x, position, visible, cache

    def decode(self, x, position, visible, cache, max_new_tokens):
        """What prefill returned -> the new tokens of each question."""
        texts = [[] for _ in x]
        running = torch.arange(len(texts), device=x.device)  # the numbers of the questions that have not ended
        end = torch.tensor(self.config.end_tokens, device=x.device)
        for step in range(max_new_tokens):
            token = self.head(x).argmax(dim=-1)  # [Q]

            # Questions that have ended leave the batch.
            runs = ~torch.isin(token, end)
            if not runs.all():
                token, position, visible, running = (y[runs] for y in (token, position, visible, running))
                cache.select(runs)
            for i, t in zip(running.tolist(), token.tolist()):
                texts[i].append(t)
            if len(running) == 0 or step + 1 == max_new_tokens:
                break

            # Each new token is read; its keys and values go into the cache.
            position = position + 1
            position_ids = position[None, :, None].expand(3, -1, 1)  # [3, Q, 1]: for text all three are equal
            mask = visible[:, None, None, : cache.length + 1]
            x = self.model(self.model.embed_tokens(token[:, None]), position_ids, mask, None, cache)[:, 0]  # [Q, D]
        return texts

    from_pretrained = classmethod(checkpoint.from_pretrained)  # (path_or_hub_id, dtype, device) -> frozen VLM
    save = checkpoint.save
    fingerprint = checkpoint.fingerprint

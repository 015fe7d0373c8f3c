"""Image-LoRA ("Towards Minimal Fine-Tuning of VLMs", arXiv 2512.19219), and the standard LoRA it is compared with.

A frozen attention layer computes the values V^(h) = X W_V^(h) of its value heads h. Image-LoRA adds, at the
positions of visual tokens only and in a few selected heads only, a low-rank update:

    V~^(h) = X W_V^(h) + s * M X A B^(h)      for h in the selected heads of this layer
    s      = (alpha / R) * gamma / sqrt(n)

    paper                     here            shape
    M = diag(1[i in I_v])     visual_index    [N]: the flat positions where M is 1; `masked` takes it as [B, T] bool
    A                         A               [D, R], one per layer, shared by its heads
    B^(h)                     B               [n, R, K], one per selected head, 0 at the start
    gamma                     gate            scalar per layer, learned
    alpha / R                 scale
    1 / sqrt(n)               norm            selection-size normalization

    B batch, T sequence length, N visual tokens in the batch, D hidden size, G value heads, K head size, R rank,
    n selected heads of a layer.

With grouped-query attention a head of the value path is a KV head, shared by several query heads.

What follows from the mask M: a row without an image gives the frozen model's logits bit for bit; generated tokens are
text, so decoding needs no adapter arithmetic. And the price: the update depends on the position, so that it cannot be
merged into W_V, as LoRA's can.
"""

import json

import torch
from torch import nn

from files import InputError, read_metadata, read_safetensors, write_safetensors

FORMAT = "1"  # of adapter files


class Adapter(nn.Module):
    """What Image-LoRA, LoRA and the probe's instruments share: updates that sit on the paths of attention layers.

    updates: {(layer, path): module}, path being "q", "k", "v" or "o"; the module's forward(y, x, visual_index) takes
    the path's frozen output y and its input x and returns y with the update. `settings` are the arguments that build
    the same adapter again, `notes` anything a user wants to keep with it (texts and numbers); both are saved.
    """

    def __init__(self, updates, settings):
        super().__init__()
        self.updates = updates
        self.settings, self.notes, self.base = settings, {}, None
        self.places = []  # where it is attached

    def attach(self, vlm):
        """Put the updates into the model's attention layers, on the model's device. The model's own parameters stay as
        they are. Raises ValueError if this or another adapter sits there, or the model has other shapes."""
        places = [(vlm.model.layers[layer].self_attn.adapters, path) for layer, path in self.updates]
        if self.places or any(path in adapters for adapters, path in places):
            raise ValueError("an adapter is attached already: detach it first")
        self.to(vlm.device)
        for (adapters, path), update in zip(places, self.updates.values()):
            adapters[path] = update
        self.places, self.base = places, vlm.fingerprint()
        return self

    def detach(self):
        """Take the updates out again: the frozen model, bit for bit."""
        for adapters, path in self.places:
            del adapters[path]
        self.places = []

    def trainable(self):
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def save(self, path):
        """Write parameters and settings as one safetensors file, with the fingerprint of the model it was attached to.
        Raises ValueError if it never was."""
        if self.base is None:
            raise ValueError("attach the adapter before saving it: the file names the model that it belongs to")
        metadata = {
            "format_version": FORMAT,
            "method": type(self).__name__,
            "base": self.base,
            "settings": json.dumps(self.settings),
            "notes": json.dumps(self.notes),
        }
        write_safetensors(path, self.state_dict(), metadata)


class HeadUpdate(nn.Module):
    """Image-LoRA in one layer: s * M X A B^(h) for the selected heads h."""

    def __init__(self, config, heads, rank, alpha, gate):
        super().__init__()
        D, K, n = config.hidden, config.head_size, len(heads)
        self.A = nn.Parameter(torch.randn(D, rank) / rank)  # normal, standard deviation 1 / R
        self.B = nn.Parameter(torch.zeros(n, rank, K))  # zero: step 0 is exactly the frozen model
        self.gate = nn.Parameter(torch.tensor(float(gate)))  # the authors' code: one per layer; a review writes gamma_h
        self.scale = alpha / rank
        self.norm = n**-0.5
        self.register_buffer("heads", torch.tensor(heads), persistent=False)

    @property
    def s(self):
        """(alpha / R) * gamma / sqrt(n)."""
        return self.scale * self.gate * self.norm

    def update(self, x):
        """s * X A B^(h) for the rows of x [N, D], all selected heads in one product: [N, n, K]."""
        n, R, K = self.B.shape
        B = self.B.transpose(0, 1).reshape(R, n * K)  # the heads side by side
        return (self.s * (x @ self.A.to(x.dtype) @ B.to(x.dtype))).view(-1, n, K)

    def forward(self, v, x, visual_index):
        """v [B, T, G*K] -> the same with the update at the flat positions visual_index [N] (None: nowhere).

        The fast path: gather the N visual rows, multiply, add back where they came from, in place. Text rows are not
        touched, so the cost is proportional to N. `masked` is the same formula, written out.
        """
        if visual_index is None:
            return v
        K = self.B.shape[-1]
        G = v.shape[-1] // K
        update = self.update(x.flatten(0, 1)[visual_index])  # [N, n, K]
        rows = visual_index[:, None] * G + self.heads  # [N, n]: rows of v seen as [B*T*G, K]
        v.view(-1, K).index_add_(0, rows.flatten(), update.flatten(0, 1))
        return v

    def masked(self, v, x, visual_mask):
        """V~ = V + s * M X A B with the mask as an explicit factor; visual_mask [B, T] bool. The tests hold `forward`
        equal to this."""
        M = visual_mask[..., None].to(x.dtype)  # [B, T, 1]: diag(1[i in I_v])
        V = v.view(*x.shape[:2], -1, self.B.shape[-1]).clone()  # [B, T, G, K]
        for i, h in enumerate(self.heads.tolist()):
            V[:, :, h] += self.s * (M * x) @ self.A @ self.B[i]
        return V.flatten(2)


class Ablation(HeadUpdate):
    """HeadUpdate with one of its decisions taken otherwise, for the ablations; the method itself does not need it.

    path    "v", or "k", "q", "o" instead. A query head belongs to the KV head that serves it. On the output path the
            formula is mirrored: each head brings its own A from its part of the input, B is shared.
    tokens  "visual", or "text", "all" instead.
    norm    whether 1 / sqrt(n) is there.
    shared  whether the heads of a layer share A.
    gate    None: gamma is 1 and not learned.
    """

    def __init__(self, config, heads, rank, alpha, gate, path, tokens, norm, shared):
        super().__init__(config, heads, rank, alpha, 1.0 if gate is None else gate)
        D, n = config.hidden, len(heads)
        W = config.head_size * (config.heads // config.value_heads if path in "qo" else 1)  # outputs (o: inputs) a head
        A, B = ([n, W, rank], [rank, D]) if path == "o" else ([D, rank] if shared else [n, D, rank], [n, rank, W])
        self.A, self.B = nn.Parameter(torch.randn(A) / rank), nn.Parameter(torch.zeros(B))
        self.gate.requires_grad_(gate is not None)
        self.norm = self.norm if norm else 1.0
        self.path, self.tokens, self.width, self.groups = path, tokens, W, config.value_heads

    def update(self, x):
        """[N, D] -> [N, n, W]; on the output path [N, H*K] -> [N, D]."""
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        if self.path == "o":
            x = x.view(len(x), self.groups, self.width)[:, self.heads]
            return self.s * torch.einsum("nhw,hwr,rd->nd", x, A, B)
        return self.s * torch.einsum("nd,dr,hrw->nhw" if A.dim() == 2 else "nd,hdr,hrw->nhw", x, A, B)

    def forward(self, y, x, visual_index):
        rows = torch.arange(x.shape[0] * x.shape[1], device=x.device)
        visual = torch.zeros_like(rows, dtype=torch.bool)
        if visual_index is not None:
            visual[visual_index] = True
        if self.tokens != "all":
            rows = rows[visual if self.tokens == "visual" else ~visual]
        update = self.update(x.flatten(0, 1)[rows]).to(y.dtype)
        if self.path == "o":
            return y.flatten(0, 1).index_add(0, rows, update).view_as(y)
        rows = rows[:, None] * self.groups + self.heads  # as in HeadUpdate.forward
        return y.reshape(-1, self.width).index_add(0, rows.flatten(), update.flatten(0, 1)).view_as(y)


class ImageLoRA(Adapter):
    """Image-LoRA on selected value heads.

    config: VLM.config; heads: {layer: [value heads]}; rank R; alpha; gate: gamma at the start (0.01 in the authors'
    code). path, tokens, norm, shared and gate=None: see Ablation. Raises ValueError for a layer or head that the model
    does not have, or no head at all.
    """

    def __init__(self, config, heads, rank=8, alpha=16, gate=0.01, path="v", tokens="visual", norm=True, shared=True):
        heads = {int(layer): sorted(hs) for layer, hs in sorted(heads.items(), key=lambda item: int(item[0])) if hs}
        if not heads:
            raise ValueError("Image-LoRA needs at least one head")
        for layer, hs in heads.items():
            if (
                not 0 <= layer < config.layers
                or not all(0 <= h < config.value_heads for h in hs)
                or len(set(hs)) < len(hs)
            ):
                raise ValueError(
                    f"layer {layer}, heads {hs}: the model has {config.layers} layers of {config.value_heads} value "
                    "heads, each of which can be selected once"
                )
        settings, switches = {"rank": rank, "alpha": alpha, "gate": gate}, (path, tokens, norm, shared)
        if switches == ("v", "visual", True, True) and gate is not None:
            layers = {layer: HeadUpdate(config, hs, **settings) for layer, hs in heads.items()}
        else:
            settings |= {"path": path, "tokens": tokens, "norm": norm, "shared": shared}
            layers = {layer: Ablation(config, hs, **settings) for layer, hs in heads.items()}
        super().__init__({(layer, path): update for layer, update in layers.items()}, {"heads": heads} | settings)
        self.tokens = tokens
        self.layers = nn.ModuleDict({str(layer): update for layer, update in layers.items()})
        self.heads = heads

    def flops(self, tokens, visual_tokens):
        """Adapter-only training FLOPs of one step over `visual_tokens` visual tokens (N in all): two matrix products,
        [N, D] x [D, R] and [N, R] x [R, n*K], forward and twice that backward (for the factor and for the input), a
        multiply-add counted as two: 6 * N * (D*R + R*n*K) a layer. The other `tokens` cost nothing."""
        N = {"visual": visual_tokens, "text": tokens - visual_tokens, "all": tokens}[self.tokens]
        return sum(6 * N * (layer.A.numel() + layer.B.numel()) for layer in self.layers.values())


class LowRank(nn.Module):
    """LoRA on one linear layer: y + (alpha / R) x A B, at every position."""

    def __init__(self, inputs, outputs, rank, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.empty(inputs, rank).uniform_(-(inputs**-0.5), inputs**-0.5))  # as loralib and peft
        self.B = nn.Parameter(torch.zeros(rank, outputs))
        self.scale = alpha / rank

    def forward(self, y, x, visual_index):
        return y + self.scale * (x @ self.A.to(x.dtype) @ self.B.to(x.dtype))


class LoRA(Adapter):
    """Standard LoRA (arXiv 2106.09685), the baseline: every token, every head, every layer.

    targets: any of "q", "k", "v", "o", the projections of an attention layer.
    """

    def __init__(self, config, targets=("q", "k", "v", "o"), rank=8, alpha=16):
        D, query, value = config.hidden, config.heads * config.head_size, config.value_heads * config.head_size
        sizes = {"q": (D, query), "k": (D, value), "v": (D, value), "o": (query, D)}
        if not targets or not set(targets) <= sizes.keys():
            raise ValueError(f"LoRA targets {targets}: choose from {', '.join(sizes)}")
        layers = [{t: LowRank(*sizes[t], rank, alpha) for t in targets} for _ in range(config.layers)]
        settings = {"targets": list(targets), "rank": rank, "alpha": alpha}
        super().__init__({(i, t): update for i, layer in enumerate(layers) for t, update in layer.items()}, settings)
        self.layers = nn.ModuleList(nn.ModuleDict(layer) for layer in layers)

    def flops(self, tokens, visual_tokens):
        """Adapter-only training FLOPs of one step over `tokens` tokens, counted as in ImageLoRA.flops."""
        return sum(6 * tokens * (u.A.numel() + u.B.numel()) for u in self.updates.values())


def load_adapter(path, vlm):
    """Read an adapter file, build the adapter, attach it to `vlm` and return it.

    Raises InputError if the file is not an adapter of this format, was trained for another base model, or its tensors
    are not exactly those of its settings.
    """
    metadata, tensors = read_metadata(path), dict(read_safetensors(path))
    methods = {"ImageLoRA": ImageLoRA, "LoRA": LoRA}
    if metadata.get("format_version") != FORMAT or metadata.get("method") not in methods:
        raise InputError(f"{path}: not an adapter file of format {FORMAT}")
    if metadata["base"] != vlm.fingerprint():
        raise InputError(
            f"{path}: made for another checkpoint (its base is {metadata['base']}, this one {vlm.fingerprint()})"
        )
    adapter = methods[metadata["method"]](vlm.config, **json.loads(metadata["settings"]))
    expected = {name: tuple(t.shape) for name, t in adapter.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise InputError(f"{path}: tensor {wrong[0]} is missing, surplus or misshapen")
    adapter.load_state_dict(tensors)
    adapter.notes = json.loads(metadata["notes"])
    return adapter.attach(vlm)

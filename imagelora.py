"""Lecture 1. The method: Image-LoRA (arXiv 2512.19219), and the standard LoRA that it is compared with.

You will see the paper's formula as it is written (`formula`), and the same result at a cost proportional to the number
of visual tokens (`forward`). After the layers: how an adapter is attached to a frozen model, saved and loaded.

A frozen attention layer computes the values V^(h) = X W_V^(h) of its value heads h. Image-LoRA adds a low-rank update,
at the positions of visual tokens only, in a few selected heads only:

    V~^(h) = X W_V^(h) + s * M X A B^(h)      for h in the selected heads of this layer
    s      = (alpha / R) * gamma / sqrt(n)

    paper                     code            shape
    X                         x               [B, T, D], the layer's input
    M = diag(1[i in I_v])     visual_mask     [B, T] bool; its True positions, flat: visual_index [N]
    A                         A               [D, R], one per layer, shared by its heads
    B^(h)                     B               [n, R, K], one per selected head, 0 at the start
    gamma                     gamma           scalar per layer, learned
    alpha / R                 scale
    1 / sqrt(n)               norm            selection-size normalization

Letters: B batch, T sequence length, N visual tokens in the batch, D hidden size, G value heads, K head size, R rank,
n selected heads of a layer. With grouped-query attention a value head is a KV head: several query heads read it.

What follows from the mask: a row without an image gives the frozen model's logits bit for bit; generated tokens are
text and need no adapter arithmetic. The price: an update that depends on the position cannot be merged into W_V.
"""

import json

import torch
from torch import nn

from parts import files, sites

FORMAT = "2"  # of adapter files


class ImageLoRALayer(nn.Module):
    """Image-LoRA in one attention layer: V~ = V + s * M X A B^(h) for the selected heads h."""

    def __init__(self, config, heads, rank, alpha, gamma):
        super().__init__()
        D, K, R, n = config.hidden, config.head_size, rank, len(heads)
        self.A = nn.Parameter(torch.randn(D, R) / R)  # normal, standard deviation 1 / R (authors' code)
        self.B = nn.Parameter(torch.zeros(n, R, K))  # zero: step 0 is the frozen model; A and gamma move from step 1 on
        self.gamma = nn.Parameter(torch.tensor(float(gamma)))  # one per layer, as in the authors' code
        self.scale = alpha / R
        self.norm = n**-0.5  # 1 / sqrt(n): a factor, not a layer
        self.register_buffer("heads", torch.tensor(heads).long(), persistent=False)  # [n]: which of the G value heads

    @property
    def s(self):
        return self.scale * self.gamma * self.norm

    def formula(self, v, x, visual_mask):
        """The formula as the paper writes it: v [B, T, G*K], the frozen values X W_V, x [B, T, D], the layer's input,
        visual_mask [B, T] bool -> V~. The model calls `forward`; the tests hold it equal to this."""
        K = self.B.shape[-1]
        M = visual_mask[..., None].to(x.dtype)  # [B, T, 1]: diag(1[i in I_v])
        V = v.unflatten(-1, (-1, K)).clone()  # [B, T, G, K]
        for i, h in enumerate(self.heads.tolist()):
            V[:, :, h] += self.s * ((M * x) @ self.A @ self.B[i])
        return V.flatten(2)

    def forward(self, v, x, visual_index):
        """The same, fast: gather the N visual rows, multiply, add to v in place. The cost is proportional to N.
        visual_index [N]: flat positions, row * T + column; None: no visual token."""
        if visual_index is None:
            return v
        n, R, K = self.B.shape
        B = self.B.to(x.dtype).transpose(0, 1).reshape(R, n * K)  # the heads side by side
        X = x.flatten(0, 1).index_select(0, visual_index)  # [N, D]: the visual rows
        update = self.s * (X @ self.A.to(x.dtype) @ B)  # [N, n*K]
        V = v.view(-1, v.shape[-1] // K, K)  # [B*T, G, K]
        V[visual_index[:, None], self.heads] += update.view(-1, n, K)  # V is a view: this changes v
        return v


class LoRALayer(nn.Module):
    """LoRA on one Linear layer: y + (alpha / R) x A B, at every position."""

    def __init__(self, inputs, outputs, rank, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.empty(inputs, rank).uniform_(-(inputs**-0.5), inputs**-0.5))  # as loralib and peft
        self.B = nn.Parameter(torch.zeros(rank, outputs))
        self.scale = alpha / rank

    def forward(self, y, x, visual_index):
        return y + self.scale * (x @ self.A.to(x.dtype) @ self.B.to(x.dtype))


class Adapter(nn.Module):
    """What all adapters share: updates {(i, site): module}; site "v" is the value projection of layer i, see sites.py.

    A module's forward(y, x, visual_index) takes the frozen output y and the layer input x, and returns y plus the update;
    it may write into y. A subclass also stores the modules in self.layers, so that torch finds their parameters.
    settings: the arguments of the constructor; notes: what train.py adds. Both are saved as text."""

    name = None  # what --method and adapter files call it: every subclass has its own
    options = ()  # names of the arguments after `config`; train.py fills them from its flags
    heads = None  # {layer: [value heads]} where heads are selected

    def __init__(self, updates, settings):
        super().__init__()
        self.updates, self.settings, self.notes = updates, settings, {}
        self.attached = []  # while attached: the lists in the model that hold the updates
        self.in_encoder = any(site in sites.IN_ENCODER for _, site in updates)  # it changes embeddings of images

    def attach(self, vlm):
        """Put the updates into the model's layers. Raises ValueError if an adapter is attached already."""
        slots = [sites.updates_of(vlm, site, i) for i, site in self.updates]
        if self.attached or any(slots):
            raise ValueError("an adapter is attached already: detach it first")
        self.to(vlm.device)
        for slot, update in zip(slots, self.updates.values()):
            slot.append(update)
        self.attached, self.base, self.source = slots, vlm.fingerprint(), vlm.source  # the last two are saved
        return self

    def detach(self):
        """Take the updates out again: the frozen model, bit for bit."""
        for slot in self.attached:
            slot.clear()
        self.attached = []

    def save(self, path):
        """Write one safetensors file, with the fingerprint of the model that the adapter is or was attached to."""
        metadata = {"format_version": FORMAT, "method": self.name, "base": self.base, "model": self.source}
        metadata |= {"settings": json.dumps(self.settings), "notes": json.dumps(self.notes)}
        files.write_safetensors(path, self.state_dict(), metadata)


class ImageLoRA(Adapter):
    """Image-LoRA on value heads {layer: [heads]}. config: VLM.config; gamma: its first value, the authors' by default."""

    name, options = "image-lora", ("heads", "rank", "alpha", "gamma")

    def __init__(self, config, heads, rank=8, alpha=16, gamma=0.01):
        heads = check_heads(config, heads)
        updates = {(layer, "v"): ImageLoRALayer(config, hs, rank, alpha, gamma) for layer, hs in heads.items()}
        super().__init__(updates, {"heads": heads, "rank": rank, "alpha": alpha, "gamma": gamma})
        self.heads = heads
        self.layers = nn.ModuleDict({str(layer): update for (layer, _), update in updates.items()})

    def flops(self, tokens, visual_tokens):
        """Training FLOPs of one step, N = visual_tokens: 6 * N * (D*R + R*n*K) a layer. Two matrix products, [N, D] x [D, R]
        and [N, R] x [R, n*K], are made once forward and twice backward; a multiply-add counts as two."""
        return sum(6 * visual_tokens * (layer.A.numel() + layer.B.numel()) for layer in self.layers.values())


def check_heads(config, heads):
    """The same heads in order. Raises ValueError for no head, or one that the model does not have."""
    L, G = config.layers, config.value_heads
    heads = dict(sorted((int(layer), sorted(hs)) for layer, hs in heads.items() if hs))
    selected = [(layer, h) for layer, hs in heads.items() for h in hs]
    exist = all(layer in range(L) and h in range(G) for layer, h in selected)
    if not selected or not exist or len(set(selected)) < len(selected):
        raise ValueError(f"heads {heads}: choose at least one of the {G} heads of {L} layers, each once")
    return heads


class LoRA(Adapter):
    """Standard LoRA (arXiv 2106.09685), the baseline; by default on q, k, v, o: every token, head and layer. targets: sites."""

    name, options = "lora", ("targets", "rank", "alpha")

    def __init__(self, config, targets=("q", "k", "v", "o"), rank=8, alpha=16):
        sizes = sites.sizes(config)  # {site: [(inputs, outputs), ...]}
        if not targets or not set(targets) <= sizes.keys():
            raise ValueError(f"LoRA targets {targets}: choose from {', '.join(sizes)}")
        n = max(len(sizes[t]) for t in targets)
        updates = {(i, t): LoRALayer(*sizes[t][i], rank, alpha) for i in range(n) for t in targets if i < len(sizes[t])}
        super().__init__(updates, {"targets": list(targets), "rank": rank, "alpha": alpha})
        self.config = config
        self.layers = nn.ModuleList(nn.ModuleDict() for _ in range(n))
        for (i, t), update in updates.items():
            self.layers[i][t] = update

    def flops(self, tokens, visual_tokens):
        """As ImageLoRA.flops, over the rows of each site: all tokens in the decoder."""
        rows = {t: sites.rows(self.config, t, tokens, visual_tokens) for t in self.settings["targets"]}
        return sum(6 * rows[t] * (u.A.numel() + u.B.numel()) for (_, t), u in self.updates.items())


METHODS = {method.name: method for method in (ImageLoRA, LoRA)}  # a new one is a class and its name in this line


def load_adapter(path, vlm):
    """Adapter file -> adapter, attached to `vlm`. Raises InputError for any other file, format or base model."""
    metadata, tensors = files.read_metadata(path), dict(files.read_safetensors(path))
    if metadata.get("format_version") != FORMAT or (method := metadata.get("method")) not in METHODS:
        raise files.InputError(f"{path}: not an adapter file of format {FORMAT}, made by one of {', '.join(METHODS)}")
    with files.reading(path, "an adapter that fits this model"):
        if metadata["base"] not in (vlm.fingerprint(), vlm.fingerprint(old=True)):
            raise ValueError(f"made for another checkpoint, {metadata['base']}; this is {vlm.fingerprint()}")
        adapter = METHODS[method](vlm.config, **files.parse_json(metadata["settings"].encode()))
        adapter.load_state_dict(tensors)
        adapter.notes = files.parse_json(metadata["notes"].encode())
    return adapter.attach(vlm)

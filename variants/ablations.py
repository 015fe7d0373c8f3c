"""Image-LoRA with one of its decisions taken otherwise, for the ablations; and training on from another adapter."""

import json

import torch
from torch import nn

from files import InputError, read_metadata, read_safetensors
from imagelora import METHODS, Adapter, ImageLoRA, ImageLoRALayer, check_heads


class AblationLayer(ImageLoRALayer):
    """ImageLoRALayer with switches.

    path    "v", or "k", "q", "o" instead. A query head belongs to the KV head that serves it. On the output path the
            formula is mirrored: each head brings its own A from its part of the input, B is shared.
    tokens  "visual", or "text", "all" instead.
    norm    whether 1 / sqrt(n) is there.
    shared  whether the heads of a layer share A.
    gamma   None: it is 1 and not learned.
    """

    def __init__(self, config, heads, rank, alpha, gamma, path, tokens, norm, shared):
        super().__init__(config, heads, rank, alpha, 1.0 if gamma is None else gamma)
        D, n = config.hidden, len(heads)
        W = config.head_size  # outputs of a head; on the output path its inputs
        if path in "qo":
            W *= config.heads // config.value_heads
        A, B = [D, rank] if shared else [n, D, rank], [n, rank, W]
        if path == "o":
            A, B = [n, W, rank], [rank, D]
        self.A, self.B = nn.Parameter(torch.randn(A) / rank), nn.Parameter(torch.zeros(B))
        self.gamma.requires_grad_(gamma is not None)
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
        # The flat positions that are adapted.
        index = torch.arange(x.shape[0] * x.shape[1], device=x.device)
        visual = torch.zeros_like(index, dtype=torch.bool)
        if visual_index is not None:
            visual[visual_index] = True
        if self.tokens != "all":
            index = index[visual if self.tokens == "visual" else ~visual]

        # Their updates, added where they belong: as in ImageLoRALayer, or to complete positions on the output path.
        update = self.update(x.flatten(0, 1)[index]).to(y.dtype)
        if self.path == "o":
            return y.flatten(0, 1).index_add(0, index, update).view_as(y)
        slots = index[:, None] * self.groups + self.heads
        return y.reshape(-1, self.width).index_add(0, slots.flatten(), update.flatten(0, 1)).view_as(y)


class Ablation(ImageLoRA):
    """Image-LoRA with the switches of AblationLayer."""

    options = ("heads", "rank", "alpha", "gamma", "path", "tokens", "norm", "shared")

    def __init__(self, config, heads, rank=8, alpha=16, gamma=0.01, path="v", tokens="visual", norm=True, shared=True):
        heads = check_heads(config, heads)
        settings = {"rank": rank, "alpha": alpha, "gamma": gamma}
        settings |= {"path": path, "tokens": tokens, "norm": norm, "shared": shared}
        layers = {layer: AblationLayer(config, hs, **settings) for layer, hs in heads.items()}
        updates = {(layer, path): update for layer, update in layers.items()}
        Adapter.__init__(self, updates, {"heads": heads} | settings)
        self.heads, self.tokens = heads, tokens
        self.layers = nn.ModuleDict({str(layer): update for layer, update in layers.items()})

    def flops(self, tokens, visual_tokens):
        adapted = {"visual": visual_tokens, "text": tokens - visual_tokens, "all": tokens}
        return super().flops(tokens, adapted[self.tokens])


METHODS["ablation"] = Ablation


def continue_from(adapter, path):
    """Give an Image-LoRA what another one, saved at `path`, has learnt in the layers and heads that both have. Raises
    InputError if the file is no Image-LoRA, or has another rank."""
    tensors, settings = dict(read_safetensors(path)), json.loads(read_metadata(path).get("settings", "{}"))
    if "heads" not in settings:
        raise InputError(f"{path}: no Image-LoRA to continue from")
    if settings["rank"] != adapter.settings["rank"]:
        raise InputError(f"{path}: its rank is {settings['rank']}; continue with --rank {settings['rank']}")
    for layer, heads in settings["heads"].items():
        if layer not in adapter.layers:
            continue
        update = adapter.layers[layer]
        update.A.data.copy_(tensors[f"layers.{layer}.A"])
        update.gamma.data.copy_(tensors[f"layers.{layer}.gamma"])
        for i, h in enumerate(update.heads.tolist()):
            if h in heads:
                update.B.data[i] = tensors[f"layers.{layer}.B"][heads.index(h)]

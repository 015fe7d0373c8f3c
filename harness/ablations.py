"""Image-LoRA with one design choice changed, for the ablations."""

import torch
from torch import nn

from imagelora import (
    METHODS,
    Adapter,
    ImageLoRA,
    ImageLoRALayer,
    check_heads,
)
from parts.files import InputError

SWITCHES = {  # name: {what --ablate NAME=VALUE calls a value: the value}; the paper's is the first
    "path": {"v": "v", "k": "k", "q": "q", "o": "o"},
    "tokens": {"visual": "visual", "text": "text", "all": "all"},
    "norm": {"on": True, "off": False},
    "shared": {"layer": "layer", "model": "model", "none": "none"},
    "outer": {"off": False, "on": True},
}
PAPER = {name: next(iter(values.values())) for name, values in SWITCHES.items()}


def parse_ablations(settings):
    """["path=k", "norm=off", "gamma=fixed"] -> {"path": "k", "norm": False, "gamma": None}: what differs from the paper,
    as arguments of Ablation; {} if nothing does. Raises InputError for any other name or value."""
    changed = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        values = (SWITCHES | {"gamma": {"learned": "learned", "fixed": None}}).get(name)
        if values is None:
            raise InputError(f"--ablate {setting:.40}: write NAME=VALUE, with a name of {', '.join(SWITCHES)}, gamma")
        if value not in values:
            raise InputError(f"--ablate {setting:.40}: {name} is one of {', '.join(values)}")
        if value != next(iter(values)):
            changed[name] = values[value]
    check_switches({name: value for name, value in changed.items() if name != "gamma"})
    return changed


def check_switches(switches):
    """All of them, those that are not given as in the paper. Raises InputError for a value that there is not, and for
    switches that exclude each other."""
    for name, value in switches.items():
        if value not in SWITCHES[name].values():
            raise InputError(f"{name} {value!r:.40}: choose from {', '.join(map(str, SWITCHES[name].values()))}")
    switches = PAPER | switches
    if switches["path"] == "o" and (switches["shared"] != "layer" or switches["outer"]):
        raise InputError("path=o has an A for each head and one B: it goes without shared and outer")
    return switches


class AblationLayer(ImageLoRALayer):
    """ImageLoRALayer with switches.

    path    "v", or "k", "q", "o" instead. A query head belongs to the KV head that serves it. On the output path the
            formula is mirrored: each head brings its own A from its part of the input, B is shared.
    tokens  "visual", or "text", "all" instead.
    norm    whether 1 / sqrt(n) is there.
    shared  who shares A: "layer", the heads of a layer; "model", all heads of all layers (one summary of the paper reads
            so); "none", nobody: each head has its own.
    outer   whether B^(h) is an outer product c d^T (another reading of the paper's rank-1 heads): c [R], d [K]. d is zero
            at the start. c is normal with standard deviation 1 / sqrt(R), so X A c is as large as a column of X A.
    gamma   None: it is 1 and not learned.
    """

    def __init__(self, config, heads, rank, alpha, gamma, path, tokens, norm, shared, outer):
        super().__init__(config, heads, rank, alpha, 1.0 if gamma is None else gamma)
        D, R, n = config.hidden, rank, len(heads)
        W = config.head_size  # outputs of a head; on the output path its inputs
        if path in "qo":
            W *= config.heads // config.value_heads
        A, B = [n, D, R] if shared == "none" else [D, R], [n, R, W]
        if path == "o":
            A, B = [n, W, R], [R, D]
        if A != list(self.A.shape):  # else it is the A that Image-LoRA draws from the same seed
            self.A = nn.Parameter(torch.randn(A) / R)
        self.B = nn.Parameter(torch.zeros(B))
        if outer:
            del self.B
            self.c, self.d = nn.Parameter(torch.randn(n, R) / R**0.5), nn.Parameter(torch.zeros(n, W))
        self.gamma.requires_grad_(gamma is not None)
        self.norm = self.norm if norm else 1.0
        self.path, self.tokens, self.outer, self.width, self.groups = path, tokens, outer, W, config.value_heads

    def matrices(self):
        """A and B, or A, c and d: what the input is multiplied with."""
        return [p for name, p in self.named_parameters() if name != "gamma"]

    def update(self, x):
        """[N, D] -> [N, n, W]; on the output path [N, H*K] -> [N, D]."""
        A, *B = (p.to(x.dtype) for p in self.matrices())
        if self.path == "o":
            x = x.view(len(x), self.groups, self.width)[:, self.heads]
            return self.s * torch.einsum("nhw,hwr,rd->nd", x, A, *B)
        if self.outer:
            c, d = B
            factors = torch.einsum("nd,dr,hr->hn" if A.dim() == 2 else "nd,hdr,hr->hn", x, A, c)  # [n, N]: X A c
            return self.s * (factors[..., None] @ d[:, None]).transpose(0, 1)
        return self.s * torch.einsum("nd,dr,hrw->nhw" if A.dim() == 2 else "nd,hdr,hrw->nhw", x, A, *B)

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
    """Image-LoRA with some of the SWITCHES of AblationLayer. Raises InputError for switches that exclude each other."""

    name, options = "ablation", (*ImageLoRA.options, *PAPER)

    def __init__(self, config, heads, rank=8, alpha=16, gamma=0.01, **switches):
        heads, switches = check_heads(config, heads), check_switches(switches)
        settings = {"rank": rank, "alpha": alpha, "gamma": gamma} | switches
        layers = {layer: AblationLayer(config, hs, **settings) for layer, hs in heads.items()}
        if switches["shared"] == "model":  # one matrix, which every layer holds
            first, *others = layers.values()
            for update in others:
                update.A = first.A
        updates = {(layer, switches["path"]): update for layer, update in layers.items()}
        Adapter.__init__(self, updates, {"heads": heads} | settings)
        self.heads, self.tokens = heads, switches["tokens"]
        self.layers = nn.ModuleDict({str(layer): update for layer, update in layers.items()})

    def flops(self, tokens, visual_tokens):
        """As ImageLoRA.flops, over the adapted tokens and all matrices. An A of the whole model is used in each layer."""
        adapted = {"visual": visual_tokens, "text": tokens - visual_tokens, "all": tokens}[self.tokens]
        return sum(6 * adapted * p.numel() for update in self.layers.values() for p in update.matrices())


METHODS[Ablation.name] = Ablation

"""Image-LoRA with one design choice changed, for the ablations; and further criteria for choosing heads, to compare the
paper's with. Each of these is a function (vlm, batches) -> [L, G]."""

import torch
from torch import nn

from imagelora import METHODS, Adapter, ImageLoRA, ImageLoRALayer, check_heads
from model import attend
from parts.backbones.layers import weights_kept
from parts.files import InputError
from probe import CRITERIA, gradients

CHOICES = "path=v|k|q|o tokens=visual|text|all norm=on|off shared=layer|model outer=off|on gamma=learned|fixed"  # the paper's first
WORDS = {"on": True, "off": False, "fixed": None}  # what a value is in Python; the others are themselves
VALUES = {name: [WORDS.get(w, w) for w in words.split("|")] for name, words in (c.split("=") for c in CHOICES.split())}
PAPER = {name: values[0] for name, values in VALUES.items() if name != "gamma"}


def parse_ablations(settings):
    """["path=k", "norm=off", "gamma=fixed"] -> {"path": "k", "norm": False, "gamma": None}: what differs from the paper,
    as arguments of Ablation; {} if nothing does. Raises InputError for any other name or value."""
    words = dict(setting.partition("=")[::2] for setting in settings)
    chosen = checked({name: WORDS.get(word, word) for name, word in words.items()})
    return {name: value for name, value in chosen.items() if value != VALUES[name][0]}


def checked(switches):
    """The same switches. Raises InputError for a value that is not in VALUES, and for switches that exclude each other."""
    for name, value in switches.items():
        if value not in VALUES.get(name, []):
            raise InputError(f"--ablate {name}={value!s:.40}: choose from {CHOICES}")
    if switches.get("path") == "o" and (switches.get("shared", "layer") != "layer" or switches.get("outer")):
        raise InputError("--ablate path=o has an A for each head and one B: it goes without shared and outer")
    return switches


class AblationLayer(ImageLoRALayer):
    """ImageLoRALayer with switches. Their values besides the paper's:

    path    "k", "q", "o": another projection. A query head belongs to the KV head that serves it. For "o" the formula is
            mirrored: each head has an A for its part of the input, and all share B.
    tokens  "text", "all": other positions.
    norm    False: without 1 / sqrt(n).
    shared  "model": one A for all layers (one summary of the paper reads so).
    outer   True: B^(h) is an outer product c d^T (another reading of the paper's rank-1 heads). At the start d is zero and
            X A c as large as a column of X A."""

    def __init__(self, config, heads, rank, alpha, gamma, switches):
        super().__init__(config, heads, rank, alpha, 1.0 if gamma is None else gamma)
        D, G, R, n = config.hidden, config.value_heads, rank, len(heads)
        self.path, self.tokens, self.outer, self.groups = switches["path"], switches["tokens"], switches["outer"], G
        W = config.head_size * (config.heads // G if self.path in "qo" else 1)  # outputs of a head; for "o" its inputs
        if self.path == "o":
            self.A, self.B = nn.Parameter(torch.randn(n, W, R) / R), nn.Parameter(torch.zeros(R, D))
        else:
            self.B = None if self.outer else nn.Parameter(torch.zeros(n, R, W))
        if self.outer:
            self.c, self.d = nn.Parameter(torch.randn(n, R) / R**0.5), nn.Parameter(torch.zeros(n, W))
        self.gamma.requires_grad_(gamma is not None)
        self.norm = self.norm if switches["norm"] else 1.0

    def matrices(self):
        """A [D, R] and B [n, R, W]; for "o" [n, W, R] and [R, D]."""
        return self.A, self.c[:, :, None] * self.d[:, None] if self.outer else self.B

    def update(self, X):
        """[N, D] -> [N, n, W]; for "o" [N, H*K] -> [N, D]."""
        A, B = (matrix.to(X.dtype) for matrix in self.matrices())
        if self.path == "o":
            X = X.unflatten(1, (self.groups, -1))[:, self.heads].transpose(0, 1)  # [n, N, W]
            return self.s * (X @ A).sum(dim=0) @ B
        return (self.s * (X @ A @ B)).transpose(0, 1)  # [n, N, W] -> [N, n, W]

    def forward(self, y, x, visual_index):
        everywhere = torch.arange(x.shape[0] * x.shape[1], device=x.device)
        index = everywhere[:0] if visual_index is None else visual_index
        if self.tokens != "visual":
            index = everywhere if self.tokens == "all" else everywhere[~torch.isin(everywhere, index)]
        update = self.update(x.flatten(0, 1).index_select(0, index))
        if self.path == "o":  # complete outputs
            y.view(-1, y.shape[-1])[index] += update
        else:  # the selected heads
            y.view(-1, self.groups, update.shape[-1])[index[:, None], self.heads] += update
        return y


class Ablation(ImageLoRA):
    """Image-LoRA with some of the switches of AblationLayer; gamma None: it is 1 and not learned."""

    name, options = "ablation", (*ImageLoRA.options, *PAPER)

    def __init__(self, config, heads, rank=8, alpha=16, gamma=0.01, **switches):
        heads, switches = check_heads(config, heads), PAPER | checked(switches)
        layers = {layer: AblationLayer(config, hs, rank, alpha, gamma, switches) for layer, hs in heads.items()}
        for update in layers.values() if switches["shared"] == "model" else ():
            update.A = next(iter(layers.values())).A  # one matrix, which every layer holds
        updates = {(layer, switches["path"]): update for layer, update in layers.items()}
        Adapter.__init__(self, updates, {"heads": heads, "rank": rank, "alpha": alpha, "gamma": gamma} | switches)
        self.heads, self.layers = heads, nn.ModuleDict({str(layer): update for layer, update in layers.items()})

    def flops(self, tokens, visual_tokens):
        """As ImageLoRA.flops, over the adapted tokens. An A of the whole model is used in each layer."""
        adapted = {"visual": visual_tokens, "text": tokens - visual_tokens, "all": tokens}[self.settings["tokens"]]
        return sum(6 * adapted * p.numel() for update in self.layers.values() for p in update.matrices())


METHODS[Ablation.name] = Ablation


def exact(vlm, batches):
    """The paper's score, averaged over all A. For one column a ~ N(0, I), dLoss/dB^(h) = s a^T M with M = X_v^T dLoss/dV^(h)
    [D, K] over the visual tokens: its squared norm has the mean s^2 || M ||_F^2. (If A is the identity, it is s M.)"""
    c = vlm.config
    every_head = {layer: range(c.value_heads) for layer in range(c.layers)}
    layers = list(ImageLoRA(c, every_head, rank=c.hidden, alpha=c.hidden, gamma=1.0).layers.values())
    for layer in layers:
        layer.A.data = torch.eye(c.hidden)
    return sum(g.square().sum(dim=-1) for g in gradients(vlm, batches, layers, [layer.B for layer in layers]))


def visual_attention(vlm, batches):
    """Shares [L, H] of the attention that goes to visual tokens, mean over the positions that predict the answer."""
    shares = []
    for batch in batches:
        with torch.no_grad(), weights_kept(vlm.model.layers, attend) as kept:
            vlm(batch)
        to_image = (torch.stack(kept) * batch.visual_mask[:, None, None]).sum(dim=-1)  # [L, B, H, T]
        shares.append(to_image.transpose(2, 3).flatten(1, 2)[:, batch.answer_index].mean(dim=1))  # [L, H]
    return torch.stack(shares).mean(dim=0).cpu()


def attention_mass(vlm, batches):
    """How much the query heads that read a value head attend to the image (the criterion of arXiv 2503.06287)."""
    return visual_attention(vlm, batches).unflatten(1, (vlm.config.value_heads, -1)).mean(dim=2)  # [L, G]


def weight_norm(vlm, batches):
    """|| W_V^(h) ||^2: looks at no data at all."""
    weights = torch.stack([layer.self_attn.v_proj.weight.detach().float().cpu() for layer in vlm.model.layers])
    return weights.unflatten(1, (vlm.config.value_heads, -1)).square().sum(dim=(2, 3))  # [L, G*K, D] -> [L, G]


CRITERIA.update({"exact": exact, "attention-mass": attention_mass, "weight-norm": weight_norm})

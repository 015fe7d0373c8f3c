"""What a training step of Image-LoRA takes in memory, computed from shapes on torch's meta device: nothing is loaded,
nothing is run. Writes the table of docs/families.md:

    python tests/fits.py Qwen3-VL-2B=config.json [NAME=FILE ...]

Of each config.json: the bytes of the parameters, and of what the forward pass of one row keeps for the backward pass, with
an adapted head in every layer, so that nothing can be left out. Attention counts as a GPU's fused kernel: it keeps queries,
keys, values, its output and a number for each query. Then how many rows fit on a card.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from backbones import FAMILIES
from backbones.layers import compute_twice
from data import Batch
from imagelora import ImageLoRA
from model import VLM

GIB = 2**30
CARDS, RESERVE = (16, 24, 80), 2  # GB of a card; GiB of it for the CUDA context, temporary tensors and the allocator
GRID, TEXT, ANSWER = (14, 28), 60, 20  # a row: rows and columns of visual tokens; text tokens, the last ones supervised


class Fused(torch.autograd.Function):
    """What a fused attention kernel keeps; no arithmetic."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *_ = ctx.saved_tensors
        return tuple(torch.empty_like(t) for t in (q, k, v))


def batch_of(config):
    """One row: an image, then text."""
    (down, across), c = GRID, config.vision
    visual, T = down * across, down * across + TEXT
    here = {"device": "meta", "dtype": torch.long}
    with torch.device("meta"):
        ids = torch.empty(1, T, **here)
        return Batch(
            input_ids=ids,
            attention_mask=ids,
            position_ids=torch.empty(3, 1, T, **here),
            segments=ids,
            labels=ids,
            visual_mask=ids.bool(),
            visual_index=torch.arange(visual, **here),
            visual_source=torch.arange(visual, **here),
            answer_index=torch.arange(T - ANSWER, T, **here),
            answer_ids=torch.empty(ANSWER, **here),
            patches=torch.empty(visual * c.merge**2, c.patch_values),
            grids=torch.tensor([[1, down * c.merge, across * c.merge]], device="cpu"),
            causal=True,
        )


def kept_bytes(config, dtype, checkpointing=False):
    """Bytes that a row keeps for the backward pass, the weights not counted."""
    with torch.device("meta"):
        vlm = VLM(config).to(dtype).requires_grad_(False)
        every_layer = {layer: list(range(config.value_heads)) for layer in range(config.layers)}
        adapter = ImageLoRA(config, every_layer)
    for (layer, path), update in adapter.updates.items():
        attention = vlm.model.layers[layer].self_attn
        attention.adapters[path].append(update)
        attention.attention = lambda q, k, v, mask: Fused.apply(q, k, v)
    if checkpointing:
        compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
    known = {p.untyped_storage()._cdata for p in [*vlm.parameters(), *adapter.parameters()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage  # held, so that no other one gets its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        vlm.loss(batch_of(config))
    return sum(storage.nbytes() for storage in kept.values())


def table_line(name, config, dtype):
    """A line of the table, GiB: the weights, a row, a row with --checkpointing, and the rows that fit on each card."""
    with torch.device("meta"):
        count = sum(p.numel() for p in VLM(config).parameters())
    weights, row, twice = count * dtype.itemsize, kept_bytes(config, dtype), kept_bytes(config, dtype, True)
    twice += row / config.layers  # a layer at a time keeps everything while it is computed again
    cells = [name, f"{count:,}", str(dtype).removeprefix("torch.")]
    cells += [f"{number / GIB:.1f}" for number in (weights, row)] + [f"{twice / GIB:.2f}"]
    for card in CARDS:
        left = card * 10**9 - RESERVE * GIB - weights
        cells.append(f"{max(0, int(left / row))}, {max(0, int(left / twice))}")
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="+", metavar="NAME=FILE")
    print(
        "| model | parameters | dtype | weights | a row | checkpointing | "
        + " | ".join(f"{c} GB" for c in CARDS)
        + " |"
    )
    print("|---" * (6 + len(CARDS)) + "|")
    for named in parser.parse_args().configs:
        name, _, file = named.partition("=")
        for dtype in (torch.float32, torch.bfloat16):
            print(table_line(name, read_config_file(file), dtype))


def read_config_file(file):
    raw = json.loads(Path(file).read_text())
    return FAMILIES[raw["model_type"]].Config.from_dict(raw, source=str(file))


if __name__ == "__main__":
    main()

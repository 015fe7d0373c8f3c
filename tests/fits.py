"""What a training step of Image-LoRA takes in memory, counted as by `python train.py --plan` (harness/shapes.py): nothing is
loaded, nothing is run. Writes the table of docs/families.md:

    python tests/fits.py Qwen3-VL-2B=config.json [NAME=FILE ...]

Of each config.json: the bytes of the weights, and by how much a further row raises the most that a forward and a backward
pass take, with an adapted head in every layer, so that nothing can be left out. Then how many rows fit on a card.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from harness.planning import GIB, RESERVE
from harness.shapes import adapted, batch_of, on_meta, step_memory
from imagelora import ImageLoRA
from model import VLM
from parts.backbones import FAMILIES, nf4

CARDS = (8, 16, 24, 80)  # GB
VISUAL = 392  # visual tokens of a row
FORMS = {"float32": (torch.float32, None), "bfloat16": (torch.bfloat16, None), "bfloat16, nf4": (torch.bfloat16, "nf4")}


def table_line(name, config, form):
    """A line of the table, GiB: the weights, a row, a row with --checkpointing, and the rows that fit on each card."""
    dtype, quantize = FORMS[form]
    heads = {layer: list(range(config.value_heads)) for layer in range(config.layers)}
    settings = {"heads": heads, "rank": 8, "alpha": 16, "gamma": 0.01}
    few, many = (replace(batch_of(config, rows, 1, VISUAL), causal=False) for rows in (1, 9))  # rows are padded
    found = []
    for checkpointing in (False, True):
        vlm = on_meta(VLM, config, dtype, quantize, checkpointing)
        adapted(vlm, ImageLoRA, settings)
        one, nine = (step_memory(vlm, batch)[1] + batch.patches.nbytes for batch in (few, many))
        row = (nine - one) / 8
        found.append((one - row, row))  # whatever the rows are, and each of them
    count, weights = nf4.size(vlm)
    cells = [name, f"{count:,}", form, f"{weights / GIB:.1f}", *(f"{row / GIB:.2f}" for _, row in found)]
    for card in CARDS:
        left = card * 10**9 - RESERVE - weights
        cells.append(", ".join(str(max(0, int((left - always) / row))) for always, row in found))
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="+", metavar="NAME=FILE")
    titles = ["model", "parameters", "weights in", "weights", "a row", "checkpointing", *(f"{c} GB" for c in CARDS)]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for named in parser.parse_args().configs:
        name, _, file = named.partition("=")
        for form in FORMS:
            print(table_line(name, read_config_file(file), form), flush=True)


def read_config_file(file):
    raw = json.loads(Path(file).read_text())
    return FAMILIES[raw["model_type"]].Config.from_dict(raw, source=str(file))


if __name__ == "__main__":
    main()

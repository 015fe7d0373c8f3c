"""Analyses of what happens inside a trained model: how large its updates are, and where its answers look."""

from contextlib import ExitStack
from functools import partial
from itertools import cycle

import torch

from experiments import charts
from experiments.comparisons import compared
from experiments.runs import run_rows, selection_file
from experiments.stage import (
    attached,
    model_and_examples,
    saved_steps,
    update_replaced,
)
from experiments.tables import accuracies, measured
from model import attend
from parts.backbones.layers import weights_kept
from parts.tasks.images import open_image

# ========== Updates ==========


def uneven(config):
    """The first 1, G // 2, G, 1, ... heads of the layers: a selection that is deliberately uneven."""
    G = config.value_heads
    sizes = cycle((1, max(1, G // 2), G))
    return {layer: list(range(n)) for layer, n in zip(range(config.layers), sizes)}


def summed(update, sums, heads, size):
    """The update of a layer's values; sums [2] gains what it adds to the visual tokens in these heads (`size` columns each)
    and what is frozen there, both squared and summed."""

    def forward(v, x, visual_index):
        tuned = update(v.clone(), x, visual_index)
        here, frozen = (y.flatten(0, 1)[visual_index].unflatten(-1, (-1, size))[:, heads] for y in (tuned, v))
        sums.add_(torch.stack([(here - frozen).square().sum(), frozen.square().sum()]).cpu())
        return tuned

    return forward


@torch.no_grad()
def update_norms(adapter, vlm, batches):
    """{layer: norm of the attached adapter's update / norm of the frozen values}, both at the visual tokens of all batches
    in the adapter's heads."""
    sums = {layer: torch.zeros(2) for layer in adapter.heads}
    with ExitStack() as stack:
        for layer, heads in adapter.heads.items():
            replace = partial(summed, sums=sums[layer], heads=heads, size=vlm.config.head_size)
            stack.enter_context(update_replaced(vlm, layer, replace))
        for batch in batches:
            vlm.loss(batch)
    return {layer: (added / frozen).sqrt().item() for layer, (added, frozen) in sums.items()}


def normalization(seeds, rates, launcher):
    """Two tables and a sentence: with a different number of heads in each layer, what does 1/sqrt(n) do to the size of the
    updates, and to the accuracy?"""
    stage = model_and_examples(launcher.more, limit=100)
    batches = stage.batches(50, share_images=True)
    heads = uneven(stage.vlm.config)
    flags = f"--selection {selection_file('uneven', heads, launcher)}"
    rows = {"with 1/sqrt(n)": flags, "without": f"{flags} --no-norm"}
    reports = run_rows(rows, seeds, rates, launcher, "ablation, uneven heads")

    norms = {}  # {layer: {with or without: a value for each seed}}
    for row, of_seeds in reports.items():
        for report in of_seeds:
            with attached(report, stage.vlm) as adapter:
                for layer, norm in update_norms(adapter, stage.vlm, batches).items():
                    name = f"layer {layer}, n = {len(heads[layer])}"
                    norms.setdefault(name, {}).setdefault(row, []).append(norm)

    found = accuracies(reports)
    tables = [
        ("An uneven selection of heads", measured(reports)),
        ("Norm of its update over that of the frozen values, at visual tokens in the same heads", norms),
    ]
    sentence = compared("Uneven heads without 1/sqrt(n), against with it", found["without"], found["with 1/sqrt(n)"])
    return tables, [sentence]


# ========== Attention ==========


def attending(reports, seeds, rates, launcher, out):
    """Two tables: the share of the attention of the answer's tokens that goes to visual tokens, after training and at the
    states saved on the way. Also draws attention-maps.png: over the first image, in each layer the head that changes most."""
    stage = model_and_examples(launcher.more, limit=60)
    batches = stage.batches(20)

    # [(shares [L, H], maps [L, H, visual tokens of the first example]) of each seed] of each row, and of each saved state
    found, on_the_way = {"base": [visual_attention(stage.vlm, batches)]}, {}
    for row, of_seeds in reports.items():
        for report in of_seeds:
            with attached(report, stage.vlm) as adapter:
                found.setdefault(row, []).append(visual_attention(stage.vlm, batches))
                for step in saved_steps(report, adapter):
                    states = on_the_way.setdefault(f"{row}, after {step} steps", [])
                    states.append(visual_attention(stage.vlm, batches))

    base, _ = found["base"][0]
    tables = [
        ("Share of the answer's attention that goes to visual tokens", share_table(found, base)),
        ("The same during training", share_table({"base": found["base"]} | on_the_way, base)),
    ]

    # The maps of the first seed.
    ours, _ = found["Image-LoRA"][0]
    changed_most = (ours - base).abs().argmax(dim=1).tolist()  # [L]
    maps = {}
    for row, of_seeds in found.items():
        _, weights = of_seeds[0]
        maps[row] = [(f"layer {i}, head {h}", weights[i, h].tolist()) for i, h in enumerate(changed_most)]
    example = stage.examples[0]
    caption, box = example.caption or example.prompt, None
    if isinstance(example.answer, tuple):
        box = example.answer
    charts.attention(out / "attention-maps.png", open_image(example.images[0]), caption, box, maps)
    return tables, []


def share_table(found, base):
    """{row: [(shares [L, H], maps) of each seed]} -> a table: means, and the largest change of a head from base [L, H]."""
    table = {}
    for row, of_seeds in found.items():
        shares = [share for share, _ in of_seeds]
        table[row] = {
            "mean over heads": [share.mean().item() for share in shares],
            "largest change of one": [(share - base).abs().max().item() for share in shares],
        }
        for layer in range(len(base)):
            table[row][f"layer {layer}"] = [share[layer].mean().item() for share in shares]
    return table


@torch.no_grad()
def visual_attention(vlm, batches):
    """(shares [L, H] of the attention that goes to visual tokens, mean over the positions that predict the answer;
    maps [L, H, N]: the attention to each visual token of the first example)."""
    shares, maps = 0, None
    for batch in batches:
        with weights_kept(vlm.model.layers, attend) as kept:
            vlm(batch)
        weights = torch.stack(kept)  # [L, B, H, T, T]
        to_image = (weights * batch.visual_mask[:, None, None]).sum(dim=-1)  # [L, B, H, T]
        predicts = torch.zeros_like(batch.visual_mask)  # [B, T]: the next token is one of the answer
        predicts.view(-1)[batch.answer_index] = True
        share = (to_image * predicts[:, None]).sum(dim=(1, 3)) / predicts.sum()  # [L, H]
        shares = shares + share / len(batches)
        if maps is None:
            first = weights[:, 0][:, :, predicts[0]].mean(dim=2)  # [L, H, T]
            maps = first[..., batch.visual_mask[0]]
    return shares, maps

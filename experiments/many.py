"""Many adapters in one decoding pass. Image-LoRA acts on visual tokens alone, and new tokens are text: after the prefill its
complete effect lies in the cached keys and values. So each row is read with its own adapter, and the frozen model decodes all
together, exactly. LoRA acts on each new token, too: every step needs the matrices of each row's own adapter."""

from copy import copy
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from experiments import bench_sides as sides
from imagelora import LoRA


@torch.no_grad()
def generate(vlm, adapters, batches, max_new_tokens=64):
    """The answers to the questions of all batches, each of which has its own adapter. Raises ValueError for an adapter that
    acts on text."""
    states = []
    for adapter, batch in zip(adapters, batches, strict=True):
        if adapter.flops(tokens=1, visual_tokens=0):
            raise ValueError(f"{adapter.name} acts on text tokens, so it is needed in decoding, too")
        adapter.attach(vlm)
        states.append(vlm.prefill(batch, max_new_tokens))
        adapter.detach()
    return vlm.decode(*join(states), max_new_tokens)


def join(states):
    """What VLM.prefill returned for several batches -> the same for all their questions together. Shorter rows are padded on
    the left, where nothing may look. Keys are turned by their positions already, so they may stand elsewhere."""
    outputs, positions, visibles, caches = zip(*states)
    cache = copy(caches[0])
    cache.length = max(c.length for c in caches)
    padding = [cache.length - c.length for c in caches]
    cache.k = torch.cat([F.pad(c.k, (0, 0, n, 0)) for c, n in zip(caches, padding)], dim=1)  # [L, Q, G, S, K]
    cache.v = torch.cat([F.pad(c.v, (0, 0, n, 0)) for c, n in zip(caches, padding)], dim=1)
    visible = torch.cat([F.pad(v, (n, 0)) for v, n in zip(visibles, padding)])  # [Q, S]
    return torch.cat(outputs), torch.cat(positions), visible, cache


def lora_of_rows(vlm, rows):
    """The updates of so many LoRAs, one for each row: A [Q, D, R] and B [Q, R, outputs]."""
    updates = {}
    for site, lora in LoRA(vlm.config).to(vlm.device, vlm.dtype).updates.items():
        A, B = (p.repeat(rows, 1, 1) for p in (lora.A, lora.B))  # equal ones, for the time it takes
        updates[site] = lambda y, x, visual_index, A=A, B=B: y + x @ A @ B
    return updates


@torch.no_grad()
def compare(args, vlm, processor, theirs):
    """Decoding of one question for each adapter, from the same caches."""
    states = []
    for seed in range(3 if args.tiny else 8):
        (example,) = sides.expressions(args.side, args.side, [4 + seed], seed)
        batch = processor([replace(example, answer=None)]).to(args.device)
        prefill = partial(vlm.prefill, batch, sides.NEW_TOKENS)
        states.append(sides.with_updates(vlm, sides.image_lora(vlm).updates, prefill))
    together = partial(sides.decode_again, vlm, join(states))
    runs = {
        "together": together,
        "in turn": lambda: [sides.decode_again(vlm, state) for state in states],
        "LoRA, a row each": partial(sides.with_updates, vlm, lora_of_rows(vlm, len(states)), together),
    }
    report = sides.measure(runs, args.device, args.rounds, memory=False)
    ratios = {f"together, against {other}": sides.against(report, "together", other) for other in list(runs)[1:]}
    return report | {"adapters": len(states), "ratios": ratios}

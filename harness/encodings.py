"""What is done ahead of the steps: examples are counted, images encoded once, Batches made by worker processes."""

from dataclasses import replace
from itertools import cycle, islice
from statistics import median

import torch

from data import load
from files import InputError
from harness.processes import RANK, WORLD, progress
from tasks import default_root

FILLER = "Ada has four red books and two bags of nuts. Ben gives away three pens and finds one coin."  # --preamble


def load_examples(processor, name, root, split, limit, room=0, preamble=0, **fetching):
    """Examples of a data set. Those longer than the model's positions (less `room` for an answer) are left out, with a
    line that counts and names them. root: see tasks.default_root; preamble: words of unrelated text before each prompt."""
    examples = load(name, default_root(name, root), split, limit, **fetching)
    if preamble:
        filler = " ".join(islice(cycle(FILLER.split()), preamble))
        examples = [replace(e, prompt=f"{filler} {e.prompt}") for e in examples]

    # What does not fit is left out, not cut off.
    longest = processor.config.max_positions - room
    with progress(examples, desc=f"reading {name} {split}") as bar:
        counts = [processor.count(e) for e in bar]
    long = [e.name for e, (tokens, _) in zip(examples, counts) if tokens > longest]
    if long:
        print(f"skipped  {len(long)} of {len(examples)} rows, longer than {longest} tokens: {', '.join(long[:5])}")
        kept = [(e, count) for e, count in zip(examples, counts) if count[0] <= longest]
        if not kept:
            raise InputError(f"{name} {split}: every row is longer than {longest} tokens; lower --max-pixels")
        examples, counts = map(list, zip(*kept))

    visual = [v for _, v in counts]
    text = [tokens - v for tokens, v in counts]
    print(
        f"data     {name} {split}: {len(examples)} rows; tokens a row (min / median / max): "
        f"visual {spread(visual)}, text {spread(text)}"
    )
    return examples


def spread(values):
    return f"{min(values)} / {median(values):.0f} / {max(values)}"


@torch.no_grad()
def encode_images(vlm, processor, examples, gib):
    """{Visual.key: its embeddings, on the CPU} of the examples' images, until `gib` GiB are full. The encoder is frozen,
    so what it says of an image never changes: once a run is enough, for every epoch and evaluation."""
    if gib == 0:
        return {}
    visuals = {visual.key: visual for e in examples for visual in e.visuals}
    chosen, left = [], gib * 2**30
    for visual in visuals.values():
        left -= processor.visual_tokens(visual) * vlm.config.hidden * vlm.dtype.itemsize
        if left < 0:
            break
        chosen.append(visual)

    known = {}
    with progress(total=len(chosen), desc="encoding images") as bar:
        for i in range(0, len(chosen), 16):
            some = chosen[i : i + 16]
            patches = torch.cat([processor.cut(visual) for visual in some])
            grids = torch.tensor([processor.grid(visual) for visual in some])
            embeddings = vlm.visual(patches.to(vlm.device), grids).cpu()
            sizes = [processor.visual_tokens(visual) for visual in some]
            known |= zip([visual.key for visual in some], embeddings.split(sizes))
            bar.update(len(some))
    print(f"images   {len(known)} of {len(visuals)} encoded once and kept")
    return known


class StepBatches:
    """The numbers of a step's examples -> this process's share of them, as Batches of at most `size` examples. A worker
    process does this ahead of time. Examples without images are short: they get Batches of their own, with no padding."""

    def __init__(self, processor, examples, known, size, share_images):
        self.processor, self.examples, self.known = processor, examples, known
        self.size, self.share_images = size, share_images

    def __getitem__(self, numbers):
        mine = [self.examples[i] for i in numbers[RANK * len(numbers) // WORLD : (RANK + 1) * len(numbers) // WORLD]]
        kinds = [e for e in mine if e.visuals], [e for e in mine if not e.visuals]
        parts = [kind[k : k + self.size] for kind in kinds for k in range(0, len(kind), self.size)]
        try:
            return [self.processor(part, self.share_images, self.known) for part in parts]
        except InputError as error:  # raised in a worker, it would arrive as a page of traceback
            return error

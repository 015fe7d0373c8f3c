"""What is done before the steps: examples are read and counted, images encoded once, examples put into batches."""

from statistics import median

import torch

from data import load
from harness.processes import RANK, WORLD, progress
from parts.files import InputError
from parts.tasks import default_root
from parts.tasks.boxes import small_targets


def load_examples(processor, name, root, split, limit, room=0):
    """Examples of a data set. Those longer than the model's positions (less `room` for an answer) are left out, with a
    line that counts and names them. root: see tasks.default_root."""
    examples = load(name, default_root(name, root), split, limit)

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
    boxed = [e for e in examples if isinstance(e.answer, tuple)]
    shown = [e.visuals[0] for e in boxed]
    seen = [processor.resized(visual) for visual in shown]
    if small := small_targets([e.answer for e in boxed], [v.size for v in shown], seen, processor.factor):
        print(f"warning  {name} {split}: {small}")
    return examples


def spread(values):
    return f"{min(values)} / {median(values):.0f} / {max(values)}"


@torch.no_grad()
def encode_images(vlm, processor, examples, gib):
    """Fill processor.encoded with the embeddings of the examples' images, until `gib` GiB are full. The encoder is
    frozen, so each image is encoded once per run. What processor.encoded held before is dropped."""
    processor.encoded, chosen, seen, left = {}, [], set(), gib * 2**30
    for example in examples if gib else ():
        new = {visual.key: visual for visual in example.visuals if visual.key not in seen}
        tokens = sum(processor.visual_tokens(visual) for visual in new.values())
        left -= tokens * vlm.config.visual_size * vlm.dtype.itemsize
        if left < 0:
            break
        if new:
            chosen.append(example.question())
            seen |= new.keys()
    processor.kept = chosen  # a drawn image's key is its id, so it has to stay alive

    with progress(total=len(chosen), desc="encoding images") as bar:
        for i in range(0, len(chosen), 16):
            part = chosen[i : i + 16]
            batch = processor(part).to(vlm.device)
            embeddings = vlm.visual(batch.patches, batch.grids).cpu()
            new = {v.key: v for e in part for v in e.visuals if v.key not in processor.encoded}
            processor.encoded |= zip(new, embeddings.split([processor.visual_tokens(v) for v in new.values()]))
            bar.update(len(part))
    if gib:
        every = {visual.key for example in examples for visual in example.visuals}
        print(f"images   {len(processor.encoded)} of {len(every)} encoded once and kept")


def by_image(examples):
    """Numbers of examples in groups: all about the same images together, one without images on its own."""
    groups = {}
    for i, example in enumerate(examples):
        shown = tuple(visual.key for visual in example.visuals)
        groups.setdefault(shown or i, []).append(i)
    return list(groups.values())


def like_batches(processor, examples, size):
    """Numbers of examples in batches of at most `size`: questions about the same images together, since they share a row,
    and rows of about the same length together, to have little padding."""
    groups = [group[k : k + size] for group in by_image(examples) for k in range(0, len(group), size)]

    def length(group):  # about, in tokens
        visual = sum(processor.visual_tokens(v) for v in examples[group[0]].visuals)
        return visual + sum(len(f"{examples[i].prompt} {examples[i].answer}") // 4 for i in group)

    batches = []
    for group in sorted(groups, key=length):
        if not batches or len(batches[-1]) + len(group) > size:
            batches.append([])
        batches[-1] += group
    return batches


class StepBatches:
    """The numbers of a step's examples -> this process's share of them, as Batches of at most `size` examples; those
    without images apart. The sum over the step is the same as in one Batch, with less padding."""

    def __init__(self, processor, examples, size):
        self.processor, self.examples, self.size = processor, examples, size

    def __getitem__(self, numbers):
        mine = [self.examples[i] for i in numbers[RANK * len(numbers) // WORLD : (RANK + 1) * len(numbers) // WORLD]]
        batches = []
        for kind in ([e for e in mine if e.visuals], [e for e in mine if not e.visuals]):
            for part in like_batches(self.processor, kind, self.size):
                batches.append(self.processor([kind[i] for i in part], share_images=True))
        return batches

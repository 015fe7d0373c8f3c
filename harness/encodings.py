"""What is done before the steps: examples are read and counted, images encoded once, examples put into batches."""

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from statistics import median

import torch

from data import load
from harness.processes import RANK, WORLD, progress
from parts.files import InputError
from parts.tasks import TASKS
from parts.tasks.boxes import in_another_scale, parse_box, small_targets


def load_examples(processor, name, root, split, limit, max_new_tokens=0):
    """Examples of a data set. Rows that are longer than the model's positions, with max_new_tokens for an answer, are left
    out and not cut off; a line names them."""
    rows, examples, lengths, long = load(name, root, split, limit), [], [], []
    longest = processor.config.max_positions - max_new_tokens
    letters = max(map(len, processor.tokenizer.get_vocab()))  # of the longest token
    with progress(rows, desc=f"reading {name} {split}") as bar:
        for example in bar:
            texts = example.prompt, str(example.answer), *itertools.chain(*example.history)
            least = max(sum(map(len, texts)) / letters, sum(len(text.split()) for text in texts))  # tokens; quickly counted
            if least > longest or (length := processor.count(example))[0] > longest:
                long.append(example.name)
            else:
                examples.append(example)
                lengths.append(length)
    if long:
        print(f"skipped  {len(long)} of {len(rows)} rows, longer than {longest} tokens: {', '.join(long[:5])}")
    if not examples:
        raise InputError(f"{name} {split}: every row is longer than {longest} tokens; lower --max-pixels")

    kinds = {"visual": [v for _, v in lengths], "text": [tokens - v for tokens, v in lengths]}
    spread = ", ".join(f"{kind} {min(n)} / {median(n):.0f} / {max(n)}" for kind, n in kinds.items())
    print(f"data     {name} {split}: {len(examples)} rows; tokens a row (min / median / max): {spread}")
    boxed = [example for example in examples if isinstance(example.answer, tuple)]
    sizes = [example.visuals[0].size for example in boxed]
    resized = [processor.resized(example.visuals[0]) for example in boxed]
    if small := small_targets([example.answer for example in boxed], sizes, resized, processor.factor):
        print(f"warning  {name} {split}: {small}")
    written = [(e, parse_box(e.answer)) for e in examples if isinstance(e.answer, str) and len(e.visuals) == 1]
    beyond = [e.name for e, box in written if box and in_another_scale(box, processor.box_scale(e.visuals[0]))]
    if beyond and TASKS[name].own:
        print(f"warning  {beyond[0]} and {len(beyond) - 1} others: a box in the answer is not in pixels of the image as the")
        print('         model sees it. A text is learnt as it is; a box under "bbox" is converted')
    return examples


@torch.no_grad()
def encode_images(vlm, processor, examples, gib):
    """Fill processor.encoded with the embeddings of the examples' images, until `gib` GiB are full. The encoder is
    frozen, so each image is encoded once per run. What processor.encoded held before is dropped."""
    firsts = [examples[group[0]].question() for group in by_image(examples) if examples[group[0]].visuals]
    sizes = [processor.count(example)[1] * vlm.config.visual_size * vlm.dtype.itemsize for example in firsts]
    chosen = firsts[: sum(total <= gib * 2**30 for total in accumulate(sizes))]
    processor.encoded, processor.kept = {}, chosen  # a drawn image's key is its id, so these examples stay alive
    with progress(total=len(chosen), desc="encoding images") as bar:
        for i in range(0, len(chosen), 16):
            batch, part = processor(chosen[i : i + 16]).to(vlm.device), chosen[i : i + 16]
            visuals = {v.key: v for example in part for v in example.visuals if v.key not in processor.encoded}
            embeddings = vlm.visual(batch.patches, batch.grids).cpu()
            processor.encoded |= zip(visuals, embeddings.split([processor.visual_tokens(v) for v in visuals.values()]))
            bar.update(len(part))
    if gib:
        every = {visual.key for example in examples for visual in example.visuals}
        print(f"images   {len(processor.encoded)} of {len(every)} encoded once and kept")


def by_image(examples):
    """Numbers of examples in groups: all about the same images together, one without images on its own."""
    groups = {}
    for i, example in enumerate(examples):
        keys = tuple(visual.key for visual in example.visuals)
        groups.setdefault(keys or i, []).append(i)
    return list(groups.values())


def row_order(examples, seed):
    """Numbers of examples without end, a pure function of the seed. Every epoch shuffles the images again; all examples
    about one image stay together, so that a batch has few images, each of which is encoded once."""
    groups = by_image(examples)
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**64)
        for g in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[g]


def rows_of_steps(examples, seed, steps, rows):
    """The numbers of the examples of each step, [steps][rows]."""
    order = row_order(examples, seed)
    return [list(itertools.islice(order, rows)) for _ in range(steps)]


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


def step_batches(processor, examples, size):
    """A step's examples -> this process's share of them, as Batches of at most `size`; those without images apart. The sum
    over the step is the same as in one Batch, with less padding."""
    mine, batches = examples[RANK * len(examples) // WORLD : (RANK + 1) * len(examples) // WORLD], []
    for kind in ([e for e in mine if e.visuals], [e for e in mine if not e.visuals]):
        for part in like_batches(processor, kind, size):
            batches.append(processor([kind[i] for i in part], share_images=True))
    return batches


def step_loader(processor, examples, steps, size, threads, device):
    """The Batches of each step, made by so many threads. steps: the numbers of each step's examples."""

    def make(numbers):
        batches = step_batches(processor, [examples[i] for i in numbers], size)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread: or pinning takes memory of the first GPU, too
            batches = [batch.pin_memory() for batch in batches]
        return batches

    return ahead(make, steps, threads)


def ahead(make, jobs, threads=2):
    """make(job) of each job, in order. While the caller uses one, each thread makes one of the next, and no more are kept;
    without threads, each is made when it is asked for."""
    if not threads:
        yield from map(make, jobs)
        return
    with ThreadPoolExecutor(threads) as pool:
        coming = deque()
        for job in jobs:
            coming.append(pool.submit(make, job))
            if len(coming) > threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

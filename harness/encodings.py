"""Before the steps: the model is loaded, examples are read and counted, images encoded once, examples put into batches."""

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch

from data import Processor, load
from harness.arguments import MAX_PIXELS
from harness.processes import RANK, WORLD, progress
from model import VLM
from parts.backbones import nf4
from parts.backbones.layers import compute_twice
from parts.devices import choose_device
from parts.files import InputError, parse_json, read_metadata, reading
from parts.tasks.answers import doubts

FOLDERS = {"tiny": Path(__file__).parent.parent / "parts/tiny"}  # of models that come with this program


def load_processor(args):
    """The processor of --model: a checkpoint folder, a hub id, or "tiny". Of --adapter FILE the pixel limits are those of
    its training, and the model is the one that it names, unless the flags say otherwise."""
    limits = {}
    if args.adapter:
        with reading(args.adapter, "an adapter"):
            metadata = read_metadata(args.adapter)
            notes = parse_json(metadata.get("notes", "{}").encode())
            limits = {name: int(notes[name]) for name in notes.keys() & {"min_pixels", "max_pixels"}}
        args.model = args.model if "model" in args.given else metadata.get("model")
        if not args.model:
            raise InputError(f"{args.adapter}: does not name its base; add --model, a checkpoint folder, a hub id or tiny")
    min_pixels = args.min_pixels or limits.get("min_pixels")
    max_pixels = args.max_pixels or limits.get("max_pixels", MAX_PIXELS)
    return Processor.from_pretrained(FOLDERS.get(args.model, args.model), min_pixels, max_pixels)


def load_model(args):
    """The frozen model of --model, after load_processor. Prints what was loaded."""
    device, dtype = choose_device(args.device, args.dtype)
    if args.method == "full":
        dtype = torch.float32  # the weights themselves are trained, and bfloat16 would round small steps away
    vlm = VLM.from_pretrained(FOLDERS.get(args.model, args.model), dtype, device, args.quantize)
    vlm.source = args.model  # an adapter's file names it
    if args.checkpointing:
        compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
    weights, memory = nf4.size(vlm)
    form = str(dtype).removeprefix("torch.") + ", the decoder's projections in nf4" * bool(args.quantize)
    print(f"model    {args.model}: {weights:,} parameters in {form} on {device}; {memory / 2**20:,.0f} MiB")
    if args.model == "tiny":
        print("         it knows drawn scenes alone: of photographs it can say nothing")
    return vlm


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
        raise InputError(f"{name} {split}: every row is longer than {longest} tokens; shorten it, or lower --max-pixels")

    kinds = {"visual": [v for _, v in lengths], "text": [tokens - v for tokens, v in lengths]}
    spread = ", ".join(f"{kind} {min(n)} / {median(n):.0f} / {max(n)}" for kind, n in kinds.items())
    print(f"data     {name} {split}: {len(examples)} rows; tokens a row (min / median / max): {spread}")
    for doubt in doubts(name, examples, processor):
        print(f"warning  {name} {split}: {doubt}")
    return examples


@torch.no_grad()
def encode_images(vlm, processor, examples, gib):
    """Fill processor.encoded with the embeddings of the examples' images, until `gib` GiB are full. The encoder is
    frozen, so each image is encoded once. What processor.encoded holds already is kept, if these examples need it."""
    firsts = [examples[group[0]].question() for group in by_image(examples) if examples[group[0]].visuals]
    sizes = [processor.count(example)[1] * vlm.config.visual_size * vlm.dtype.itemsize for example in firsts]
    chosen = firsts[: sum(total <= gib * 2**30 for total in itertools.accumulate(sizes))]
    needed, held = {visual.key for example in chosen for visual in example.visuals}, processor.encoded
    processor.encoded = {key: held[key] for key in needed & held.keys()}
    processor.kept = chosen  # a drawn image's key is its id, so these examples stay alive
    new = [example for example in chosen if any(visual.key not in held for visual in example.visuals)]
    with progress(range(0, len(new), 16), desc="encoding images, 16 at a time") as bar:
        for i in bar:
            batch, part = processor(new[i : i + 16]).to(vlm.device), new[i : i + 16]
            visuals = {v.key: v for example in part for v in example.visuals if v.key not in processor.encoded}
            embeddings = vlm.visual(batch.patches, batch.grids).cpu()
            processor.encoded |= zip(visuals, embeddings.split([processor.visual_tokens(v) for v in visuals.values()]))
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
    jobs = iter(jobs)
    with ThreadPoolExecutor(threads) as pool:
        coming = deque(pool.submit(make, job) for job in itertools.islice(jobs, threads))
        while coming:
            made = coming.popleft().result()
            coming.extend(pool.submit(make, job) for job in itertools.islice(jobs, 1))
            yield made

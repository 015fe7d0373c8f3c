"""The one training script: load -> probe -> attach -> evaluate -> train -> evaluate -> report.

    python train.py                                              the tiny model, offline, on a laptop
    python train.py --model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco --data-root FOLDER
    python train.py --data jsonl --data-root FOLDER --method lora
    python train.py --eval-only --adapter runs/.../adapter.safetensors --data refcoco --data-root FOLDER
    python train.py --eval-only --adapter runs/.../adapter.safetensors --image photo.jpg --prompt "What is this?"
    torchrun --nproc-per-node=4 train.py --data refcoco ...      on four GPUs: the same steps, each sharing its rows

Everything a run decides is printed when it starts; everything it measures is in its folder: report.json, log.jsonl
(one line a step), predictions.jsonl (one line an answer), adapter.safetensors, heads.json and three pictures.
"""

import argparse
import io
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch looks for it; nothing here needs it

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm

import figures
from data import (
    ANNOTATIONS,
    COCO_IMAGES,
    DATASETS,
    DRAWN,
    REFCOCO_PROMPT,
    Example,
    Processor,
    default_root,
    image_key,
    image_size,
    load,
    open_image,
    prediction,
)
from imagelora import ImageLoRA, LoRA, load_adapter
from metrics import box_from_model, parse_box, summary
from model import (
    VLM,
    Config,
    InputError,
    read_json,
    read_metadata,
    read_safetensors,
    write_text,
)
from probe import (
    CRITERIA,
    head_scores,
    load_selection,
    random_heads,
    save_selection,
    select_heads,
)

HERE = Path(__file__).parent
STARTED = time.perf_counter()
RANK, WORLD = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))  # torchrun
MAX_PIXELS = 401408  # 512 visual tokens: native resolution is what runs out of memory
LEARNING_RATES = {"image-lora": 5e-3, "lora": 1e-3, "full": 1e-5, "none": 0.0}
DRAWN_LEARNING_RATES = {"image-lora": 2e-2, "lora": 4e-3, "full": 5e-4, "none": 0.0}  # a small model, larger steps
DRAWN_DEFAULTS = {"limit": 4800, "batch": 32, "steps": 500, "gate": 1.0, "eval_limit": 300, "eval_batch": 100}
DRAWN_DEFAULTS |= {"workers": 0, "cache_vision": 1.0}  # its pictures are small, and in memory anyway
TINY_HEADS = 15  # of its 20: a quarter of so few heads is not enough for the demo's look
FILLER = "Ada has four red books and two bags of nuts. Ben gives away three pens and finds one coin."  # --preamble
TEXT_PROMPTS = (  # text_logit_max_change is the largest change of any logit at any position of these
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "17 + 25 =",
    "Translate into German: good morning",
    "def fibonacci(n):",
    "Why is the sky blue? Answer in one sentence.",
    "List three prime numbers.",
    "Ada has 12 apples and gives away 5. How many apples are left?",
    "你好，请介绍一下你自己。",
    "Summarise: the cat sat on the mat.",
)


# --------------------------------------------------------------------------------------------------------- arguments


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=f"For drawn data (scenes, ...) the defaults are {DRAWN_DEFAULTS}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    flag = argparse.BooleanOptionalAction

    g = parser.add_argument_group("model")
    g.add_argument("--model", default="tiny", help="checkpoint folder or hub id; tiny: the model that comes with this")
    g.add_argument("--min-pixels", type=int, help="smallest area of a resized image (default: the checkpoint's)")
    g.add_argument("--from-scratch", action=flag, default=False, help="random weights for the model's config.json")
    g.add_argument("--max-pixels", type=int, help=f"largest area of a resized image; 784 are one token ({MAX_PIXELS})")

    g = parser.add_argument_group("data")
    known = "a data set is NAME or NAME=FOLDER"
    g.add_argument("--data", help=f"training data: {', '.join(DATASETS)}; {known} (default: scenes)")
    g.add_argument("--data-root", help="folder of --data (default: data/NAME; refcoco: else fetched into a cache)")
    g.add_argument(
        "--annotations", default=ANNOTATIONS, help="where to fetch RefCOCO's from: hub file, URL or zip file"
    )
    g.add_argument("--image-url", default=COCO_IMAGES, help="where to fetch RefCOCO's images from")
    g.add_argument("--train-split", default="train", help="split to probe and train on")
    g.add_argument("--eval", nargs="+", metavar="NAME", help="data sets to evaluate on (default: --data)")
    g.add_argument("--eval-split", help="their split (default: by data set, mostly val)")
    g.add_argument("--limit", type=int, default=2000, help="training rows; 0: all")
    g.add_argument("--eval-limit", type=int, default=500, help="evaluation rows of each data set; 0: all")
    g.add_argument("--preamble", type=int, default=0, help="words of unrelated text before each question")
    g.add_argument(
        "--also",
        nargs="*",
        metavar="NAME",
        help="further data sets to evaluate on, such as gsm8k (scenes: scenes-day sums)",
    )

    g = parser.add_argument_group("method")
    g.add_argument(
        "--method", choices=LEARNING_RATES, default="image-lora", help="what is trained; none: only evaluate"
    )
    g.add_argument("--rank", type=int, default=8, help="R")
    g.add_argument("--alpha", type=float, default=16, help="alpha; updates are scaled by alpha / R")
    g.add_argument("--gate", type=float, default=0.01, help="gamma at the start; the tiny model learns faster from 1")
    g.add_argument("--heads", type=int, help="budget: value heads in all (default: a quarter of them)")
    g.add_argument(
        "--tau", type=float, default=0.5, help="a layer's share of the budget goes with its score to this power"
    )
    g.add_argument("--selection", default="probe", help="probe, gate, random, all, or a heads.json of another run")
    g.add_argument("--continue-from", metavar="ADAPTER", help="start from an Image-LoRA, in the heads it also has")
    g.add_argument("--probe-samples", type=int, default=64, help="training rows to probe with")
    g.add_argument("--probe-seed", type=int, default=0, help="draws the probe's A and its rows")

    g = parser.add_argument_group("ablations", "one decision of the method taken otherwise; see imagelora.Ablation")
    g.add_argument("--path", choices=("v", "k", "q", "o"), default="v", help="projection that Image-LoRA adapts")
    g.add_argument("--tokens", choices=("visual", "text", "all"), default="visual", help="tokens that it adapts")
    g.add_argument("--norm", action=flag, default=True, help="1 / sqrt(n), the selection-size normalization")
    g.add_argument("--shared", action=flag, default=True, help="one A a layer, not one a head")
    g.add_argument("--learn-gate", action=flag, default=True, help="learn gamma; else it is 1")
    g.add_argument("--targets", default="qkvo", help="projections that --method lora adapts")

    g = parser.add_argument_group("optimisation")
    g.add_argument("--steps", type=int, help="optimiser steps (default: one pass over the training rows)")
    g.add_argument("--epochs", type=float, help="instead of --steps: passes over the training rows")
    g.add_argument("--batch", type=int, default=8, help="rows of one forward and backward pass")
    g.add_argument("--accumulate", type=int, default=1, help="passes of one optimiser step")
    g.add_argument("--share-images", action=flag, default=True, help="questions about one picture share one row")
    g.add_argument("--checkpointing", action=flag, default=False, help="less memory, a third more time: see model.run")
    g.add_argument("--lr", type=float, help=f"peak learning rate (default by method: {LEARNING_RATES})")
    g.add_argument(
        "--warmup", type=float, default=0.05, help="share of the steps over which the rate rises; then cosine"
    )
    g.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    g.add_argument("--seed", type=int, default=0, help="draws initial weights and the order of the data")

    g = parser.add_argument_group("run")
    g.add_argument("--out", help="folder of the run (default: runs/TIME-DATA-METHOD)")
    g.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: cuda if there is one")
    g.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the frozen model; with --method full, of the arithmetic",
    )
    g.add_argument("--workers", type=int, default=2, help="processes that read and cut pictures ahead of the steps")
    g.add_argument(
        "--cache-vision",
        type=float,
        default=0.0,
        metavar="GIB",
        help="encode each picture once a run and keep its embeddings in memory, up to so many GiB",
    )
    g.add_argument("--eval-only", action=flag, default=False, help="train nothing; with --adapter also evaluate that")
    g.add_argument("--adapter", help="adapter.safetensors to evaluate, at the resolution it was trained at")
    g.add_argument("--image", nargs="*", default=[], help="with --eval-only and --prompt: ask about these pictures")
    g.add_argument("--prompt", help="with --eval-only: the question; answered before and after --adapter")
    g.add_argument("--base", action=flag, default=True, help="also evaluate the model before it is trained")
    g.add_argument("--eval-batch", type=int, default=32, help="rows generated at once")
    g.add_argument(
        "--max-new-tokens",
        type=int,
        help="longest answer (default by data set: 48, llava 200, gsm8k 400; --prompt 200)",
    )
    g.add_argument(
        "--save-every", type=int, default=100, help="steps between saved states, from which --resume goes on"
    )
    g.add_argument("--keep-states", action=flag, default=False, help="keep each saved state, as state-STEP.pt")
    g.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, with its own arguments")
    args = parser.parse_args(argv)
    args.data = args.data or (args.eval[0] if args.eval and args.eval_only else "scenes")
    args.data, _, folder = args.data.partition("=")
    args.data_root = folder or args.data_root
    if args.steps is not None and args.epochs is not None:
        parser.error("--steps and --epochs exclude each other")
    if args.data in DRAWN:  # what the command line does not say, the kind of data decides
        defaults = {name: value for name, value in DRAWN_DEFAULTS.items() if name != "steps" or not args.epochs}
        parser.set_defaults(**defaults, heads=TINY_HEADS if args.model == "tiny" else None)
        args = argparse.Namespace(**vars(parser.parse_args(argv)) | {"data": args.data, "data_root": args.data_root})
    for name in (args.data, *(args.eval or []), *(args.also or [])):
        if name.partition("=")[0] not in DATASETS:
            raise InputError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")

    if not args.targets or set(args.targets) - set("qkvo"):
        parser.error(f"--targets {args.targets}: choose from q, k, v, o")
    for name in ("rank", "batch", "accumulate", "probe_samples", "eval_batch", "max_new_tokens", "save_every"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    if (args.adapter or args.prompt) and not args.eval_only:
        parser.error("--adapter and --prompt need --eval-only")
    if args.image and not args.prompt:
        parser.error("--image needs --prompt")
    if args.method == "full":
        args.cache_vision = 0.0  # the encoder itself is trained
    return args


def choose_device(name, dtype):
    """(device, dtype): by default bfloat16 on a GPU, float32 on the CPU."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # torch's words for "no such device here"
        raise InputError(f"--device {name}: there is no such device here; use --device cpu") from None
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    return device, getattr(torch, dtype)


def progress(*args, leave=False, **kwargs):
    """A progress bar, shown by the first process."""
    return tqdm(*args, leave=leave, disable=RANK > 0, **kwargs)


# --------------------------------------------------------------------------------------------------- model and data


def load_model(args):
    """(vlm, processor), frozen; --from-scratch: random weights for the configuration of --model. A model that is
    trained itself keeps float32 weights: bfloat16 would round small steps away, so it is left to the arithmetic (mixed)."""
    device, dtype = choose_device(args.device, args.dtype)
    args.mixed = args.method == "full" and dtype == torch.bfloat16
    dtype = torch.float32 if args.mixed else dtype
    model = HERE / "tiny" if args.model == "tiny" else args.model
    noted = json.loads(read_metadata(args.adapter).get("notes", "{}")) if args.adapter else {}
    limits = {
        "min_pixels": args.min_pixels or noted.get("min_pixels"),
        "max_pixels": args.max_pixels or noted.get("max_pixels", MAX_PIXELS),
    }
    processor = Processor.from_pretrained(model, **limits)
    if args.from_scratch:
        vlm = VLM.from_scratch(Config.from_pretrained(model), args.seed, dtype, device)
    else:
        vlm = VLM.from_pretrained(model, dtype, device)
    vlm.checkpointing(args.checkpointing)
    total = sum(p.numel() for p in vlm.parameters())
    print(f"model    {args.model}, {total:,} parameters in {str(dtype).removeprefix('torch.')} on {device}")
    return vlm, processor


def load_rows(args, name, root, split, limit, processor, room=0):
    """Examples of a data set; those longer than the model's positions (less `room` for an answer) are left out, with a
    line that counts and names them. root: see data.default_root."""
    examples = load(name, default_root(name, root), split, limit, args.annotations, args.image_url)
    if args.preamble:
        filler = " ".join(itertools.islice(itertools.cycle(FILLER.split()), args.preamble))
        examples = [replace(e, prompt=f"{filler} {e.prompt}") for e in examples]
    longest = processor.config.max_positions - room
    with progress(examples, desc=f"reading {name} {split}") as bar:
        lengths = [processor.count(e) for e in bar]
    long = [e.name for e, (tokens, _) in zip(examples, lengths) if tokens > longest]
    if long:
        print(f"skipped  {len(long)} of {len(examples)} rows, longer than {longest} tokens: {', '.join(long[:5])}")
        kept = [(e, n) for e, n in zip(examples, lengths) if n[0] <= longest]
        if not kept:
            raise InputError(f"{name} {split}: every row is longer than {longest} tokens; lower --max-pixels")
        examples, lengths = map(list, zip(*kept))
    visual = [v for _, v in lengths]
    text = [t - v for t, v in lengths]
    spread = "{} / {:.0f} / {}".format
    print(
        f"data     {name} {split}: {len(examples)} rows; tokens a row (min / median / max): "
        f"visual {spread(min(visual), median(visual), max(visual))}, text {spread(min(text), median(text), max(text))}"
    )
    return examples


@torch.no_grad()
def encode_pictures(args, vlm, processor, examples):
    """{image_key: visual embeddings} of the examples' pictures, until --cache-vision is full. The encoder is frozen, so
    what it says of a picture never changes: once a run is enough, for every epoch and evaluation."""
    known, kept, left = {}, [], args.cache_vision * 2**30
    pictures = {image_key(image): image for e in examples for image in e.visuals} if left else {}
    for key, image in pictures.items():
        left -= processor.visual_tokens(image) * vlm.config.hidden * vlm.dtype.itemsize
        if left < 0:
            break
        kept.append(key)
    with progress(total=len(kept), desc="encoding pictures") as bar:
        for i in range(0, len(kept), 16):
            cuts = [processor.cut(pictures[key]) for key in kept[i : i + 16]]
            grids = torch.tensor([grid for _, grid in cuts])
            visual = vlm.visual(torch.cat([patches for patches, _ in cuts]).to(vlm.device), grids).cpu()
            sizes = [processor.visual_tokens(pictures[key]) for key in kept[i : i + 16]]
            known |= zip(kept[i : i + 16], visual.split(sizes))
            bar.update(len(cuts))
    if pictures:
        print(f"pictures {len(known)} of {len(pictures)} encoded once and kept")
    return known


def show_example(processor, example):
    """Print one row as the model reads it, the supervised part marked; runs of image tokens are counted."""
    ids, supervised = processor.tokens(example)
    text = processor.tokenizer.decode(ids[:supervised], skip_special_tokens=False)
    text = re.sub(r"(<\|(?:image|video)_pad\|>)\1*", lambda run: f"{run[1]} x {len(run[0]) // len(run[1])}", text)
    answer = processor.tokenizer.decode(ids[supervised:], skip_special_tokens=False)
    print("example  " + text.replace("\n", "\n         ") + f">>>{answer}<<<")


# -------------------------------------------------------------------------------------------------------- the method


def choose_heads(args, vlm, processor, examples, known):
    """(heads {layer: [heads]}, scores [L][G] or None) by --selection. The probe sees training rows only."""
    c = vlm.config
    everything = c.layers * c.value_heads
    budget = max(1, everything // 4) if args.heads is None else args.heads
    if not 1 <= budget <= everything:
        raise InputError(f"--heads {budget}: the model has {everything} value heads, choose 1 to {everything}")
    if args.selection == "all":
        return {layer: list(range(c.value_heads)) for layer in range(c.layers)}, None
    if args.selection == "random":
        return random_heads(c, budget, args.seed), None
    criterion = "rank1" if args.selection == "probe" else args.selection
    if criterion not in CRITERIA:
        return load_selection(args.selection, c)
    seen = [e for e in examples if e.visuals]
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(args.probe_seed))
    rows = [seen[i] for i in order[: args.probe_samples].tolist()]
    device = vlm.device
    with progress(rows, desc="probe") as bar:
        scores = head_scores(vlm, (processor([row], known=known).to(device) for row in bar), criterion, args.probe_seed)
    return select_heads(scores, budget, args.tau), scores.tolist()


def show_method(args, parameters, steps, heads):
    trainable = sum(p.numel() for p in parameters)
    size = rows_a_step(args)
    print(
        f"method   {args.method}: {trainable:,} trainable parameters, {steps} steps of {size} rows, "
        f"learning rate {peak_rate(args)}"
    )
    if heads:
        print("heads    " + ", ".join(f"layer {layer}: {hs}" for layer, hs in heads.items()))


def build_method(args, vlm, heads):
    """Attach what is to be trained: (adapter or None, its parameters)."""
    torch.manual_seed(args.seed)
    if args.method == "image-lora":
        gate = args.gate if args.learn_gate else None
        switches = {name: getattr(args, name) for name in ("path", "tokens", "norm", "shared")}
        adapter = ImageLoRA(vlm.config, heads, args.rank, args.alpha, gate, **switches).attach(vlm)
        if args.continue_from:
            inherit(adapter, args.continue_from)
    elif args.method == "lora":
        adapter = LoRA(vlm.config, tuple(args.targets), args.rank, args.alpha).attach(vlm)
    else:
        vlm.requires_grad_(args.method == "full")
        return None, [p for p in vlm.parameters() if p.requires_grad]
    return adapter, [p for p in adapter.parameters() if p.requires_grad]


def inherit(adapter, path):
    """Give an Image-LoRA what another one, saved at `path`, has learnt in the layers and heads that both have."""
    tensors, settings = dict(read_safetensors(path)), json.loads(read_metadata(path)["settings"])
    for layer, heads in settings["heads"].items():
        if layer in adapter.layers:
            update = adapter.layers[layer]
            update.A.data.copy_(tensors[f"layers.{layer}.A"])
            update.gate.data.copy_(tensors[f"layers.{layer}.gate"])
            for i, h in enumerate(update.heads.tolist()):
                if h in heads:
                    update.B.data[i] = tensors[f"layers.{layer}.B"][heads.index(h)]


# ---------------------------------------------------------------------------------------------------------- training


def rows_a_step(args):
    """The rows behind one optimiser step, however many processes share them."""
    return args.batch * args.accumulate


def peak_rate(args):
    rates = DRAWN_LEARNING_RATES if args.data in DRAWN else LEARNING_RATES
    return rates[args.method] if args.lr is None else args.lr


def learning_rate(step, steps, peak, warmup):
    """Linear rise over the first `warmup` share of the steps, then a cosine down to a tenth of the peak."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def by_picture(examples):
    """Row numbers in groups: all rows about the same pictures together, a row without pictures on its own."""
    groups = defaultdict(list)
    for i, e in enumerate(examples):
        groups[tuple(image_key(image) for image in e.visuals) or i].append(i)
    return list(groups.values())


def row_order(examples, seed):
    """Row numbers without end, a pure function of the seed: every epoch shuffles the pictures anew, and all rows about
    one picture stay together, so that a batch holds few pictures, each of which is encoded once."""
    groups = by_picture(examples)
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for g in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[g]


class Parts:
    """The rows of a step -> this process's share of them, as Batches of at most `batch` rows. A worker process does
    this ahead of time. Rows without images are short and go apart, so that nothing pads them to the others."""

    def __init__(self, args, processor, examples, known):
        self.args, self.processor, self.examples, self.known = args, processor, examples, known

    def __getitem__(self, rows):
        mine = rows[RANK * len(rows) // WORLD : (RANK + 1) * len(rows) // WORLD]
        with_image = [i for i in mine if self.examples[i].visuals]
        without = [i for i in mine if not self.examples[i].visuals]
        size = self.args.batch
        try:
            return [
                self.processor([self.examples[i] for i in kind[k : k + size]], self.args.share_images, self.known)
                for kind in (with_image, without)
                for k in range(0, len(kind), size)
            ]
        except InputError as error:  # raised in a worker, it would arrive as a page of traceback
            return error


def sum_over_processes(parameters, sums):
    """Add up the gradients, and a vector of sums, over the processes that share a step: one message, no rounding but
    that of the order of adding. The whole of data parallelism, since every process holds the same frozen model."""
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    message = torch.cat([p.grad.flatten() for p in parameters] + [sums])
    dist.all_reduce(message)
    *grads, sums = message.split([p.numel() for p in parameters] + [len(sums)])
    for p, grad in zip(parameters, grads):
        p.grad.copy_(grad.view_as(p))
    return sums


def train(args, vlm, processor, examples, known, parameters, steps, state, file):
    """The training loop, from state["step"] on; state["log"] gains a line a step. Every --save-every steps the whole
    state (weights, optimiser, log) goes into `file`: the rest is a function of seed and step."""
    device, size = vlm.device, rows_a_step(args)
    for p, saved in zip(parameters, state["parameters"] or []):
        p.data.copy_(saved)
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    if state["optimizer"]:
        optimizer.load_state_dict(state["optimizer"])
    order = itertools.islice(row_order(examples, args.seed), state["step"] * size, None)
    rows_of_steps = (list(itertools.islice(order, size)) for _ in range(state["step"], steps))
    loader = DataLoader(
        Parts(args, processor, examples, known),
        sampler=rows_of_steps,
        batch_size=None,
        num_workers=args.workers,
        pin_memory=device.type == "cuda",
    )
    with progress(total=steps, initial=state["step"], desc="train", leave=True) as bar:
        start, late = time.perf_counter(), None
        for step, parts in enumerate(loader, start=state["step"]):
            if isinstance(parts, InputError):
                raise parts
            waited = time.perf_counter() - start

            loss = torch.zeros((), device=device)
            for part in parts:
                with torch.autocast(device.type, torch.bfloat16, enabled=args.mixed):
                    part_loss = vlm.loss(part.to(device)) * part.supervised  # a sum over tokens: parts simply add up
                part_loss.backward()
                loss += part_loss.detach()
            counts = [sum(part.supervised for part in parts), *count_tokens(parts)]
            sums = torch.cat([loss[None], torch.tensor(counts).to(device, non_blocking=True)])
            if WORLD > 1:
                sums = sum_over_processes(parameters, sums)
            for p in parameters:
                if p.grad is not None:
                    p.grad /= sums[1]  # the mean over all supervised tokens of the step
            torch.nn.utils.clip_grad_norm_(parameters, args.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak_rate(args), args.warmup)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            now = time.perf_counter()
            line = {"step": step, "sums": sums, "lr": optimizer.param_groups[0]["lr"], "ms": 1000 * (now - start)}
            line |= {"wait_ms": 1000 * waited, "elapsed": now - STARTED}
            if late:  # a step's numbers are read when the next step is on its way: the GPU never waits for them
                write_down(late, state["log"], bar, device)
            late, start = line, now
            if (step + 1) % args.save_every == 0 or step + 1 == steps:
                write_down(late, state["log"], bar, device)
                late = None
                weights = [p.detach().cpu() for p in parameters]
                state |= {"step": step + 1, "parameters": weights, "optimizer": optimizer.state_dict()}
                if RANK == 0:
                    torch.save(state, f"{file}.part")
                    os.replace(f"{file}.part", file)
                    if args.keep_states:
                        shutil.copyfile(file, file.with_stem(f"state-{step + 1}"))


def count_tokens(parts):
    """(all tokens, visual tokens) of some batches."""
    return sum(int(p.attention_mask.sum()) for p in parts), sum(len(p.visual_index) for p in parts)


def write_down(line, log, bar, device):
    """Complete the line of a step (its sums come from the device), append it to the log, show it in the bar."""
    loss, supervised, tokens, visual_tokens = line.pop("sums").tolist()
    line |= {"loss": loss / supervised, "tokens": tokens, "visual_tokens": visual_tokens}
    peak = peak_memory(device)
    line["peak_mib"] = None if peak is None else peak / 2**20
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} at step {line['step']}; lower --lr (now {line['lr']:.3g})")
    log.append(line)
    bar.update()
    memory = "memory not measured" if peak is None else f"{line['peak_mib']:.0f} MiB"
    bar.set_postfix_str(
        "loss {loss:.3f}, lr {lr:.1e}, {ms:.0f} ms ({wait_ms:.0f} data), ".format(**line) + memory
    )


def peak_memory(device):
    """Bytes: of the GPU's allocator, or of the process; None where the platform does not say (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# -------------------------------------------------------------------------------------------------------- evaluation


def evaluation_batches(args, processor, examples):
    """Row numbers in batches of at most --eval-batch: questions about one picture together (they share its row, unless
    --no-share-images), rows of like length together (little padding)."""
    groups = by_picture(examples) if args.share_images else [[i] for i in range(len(examples))]
    groups = [g[k : k + args.eval_batch] for g in groups for k in range(0, len(g), args.eval_batch)]
    counts = [processor.count(e) for e in examples]
    batches = []
    for group in sorted(groups, key=lambda g: sum(t for t, _ in (counts[i] for i in g))):
        if not batches or len(batches[-1]) + len(group) > args.eval_batch:
            batches.append([])
        batches[-1] += group
    return batches


def new_tokens(args, name):
    """The room for an answer to a question of a data set."""
    return args.max_new_tokens or DATASETS[name].new_tokens


def evaluate(args, vlm, processor, examples, name, known):
    """Generate an answer to every example and score it: a list of predictions, in the order of the examples. Several
    processes take turns at the batches and put the answers together."""
    room = new_tokens(args, name)
    written = torch.full((len(examples), room), -1)  # token ids; -1: nothing
    with progress(total=len(examples), desc=f"evaluate {name}") as bar:
        for rows in evaluation_batches(args, processor, examples)[RANK::WORLD]:
            questions = [replace(examples[i], answer=None) for i in rows]
            batch = processor(questions, args.share_images, known).to(vlm.device)
            for i, ids in zip(rows, vlm.generate(batch, room)):
                written[i, : len(ids)] = torch.tensor(ids)
            bar.update(len(rows) * WORLD)
    if WORLD > 1:
        written = written.to(vlm.device)
        dist.all_reduce(written, dist.ReduceOp.MAX)  # a process has -1 where another one wrote
    texts = [processor.decode([t for t in row if t >= 0]) for row in written.tolist()]
    return [prediction(e, text, processor, name) for e, text in zip(examples, texts)]


@torch.no_grad()
def text_logits(vlm, processor):
    """The logits of the built-in text prompts, each on its own."""
    device = vlm.device
    return [vlm(processor([Example([], prompt)]).to(device)).cpu() for prompt in TEXT_PROMPTS]


def ask(args, vlm, processor, out):
    """One question about any pictures, answered by the frozen model and, if there is one, with the adapter. The boxes
    in the answers are drawn on the picture, if it is one."""
    example = Example(args.image, args.prompt, source="--prompt")
    batch = processor([example]).to(vlm.device)
    item = {"caption": args.prompt}
    for when in ("before", "after") if args.adapter else ("before",):
        if when == "after":
            load_adapter(args.adapter, vlm)
        text = processor.decode(vlm.generate(batch, args.max_new_tokens or 200)[0])
        print(f"{when:8} {text}")
        box = parse_box(text)
        item[when] = text
        if box and len(args.image) == 1:
            item[when] = box_from_model(box, image_size(args.image[0]), processor.resized(args.image[0]))
            print(f"         box in pixels of the picture: {[round(c) for c in item[when]]}")
    if len(args.image) == 1:
        make_folder(out)
        figures.examples(out / "answer.png", [item | {"image": open_image(args.image[0])}], side=640)
        print(f"         drawn in {out / 'answer.png'}")


# ------------------------------------------------------------------------------------------------------------ report


def versions():
    packages = ("torch", "safetensors", "tokenizers", "pillow", "tqdm")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def commit():
    """The git commit of this code, or None outside a checkout."""
    command = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def draw_figures(out, report, scores, log, examples, predictions):
    """heads.png, curve.png and examples.png; predictions: {"base": [...], "tuned": [...]} for the examples."""
    if report["heads"]:
        figures.head_map(out / "heads.png", scores, report["heads"])
    if log:
        accuracy = [(0, report["base"]["accuracy"]), (report["steps"], report["tuned"]["accuracy"])]
        losses = [(line["step"], line["loss"]) for line in log]
        figures.curve(out / "curve.png", losses, [point for point in accuracy if point[1] is not None])
    items = []
    for i, e in enumerate(examples):
        if len(e.visuals) == 1 and len(items) < 12:
            (image,) = e.visuals
            image = image[len(image) // 2] if isinstance(image, tuple) else image  # of a video, the frame in the middle
            item = {"image": open_image(image), "caption": expression(e.prompt), "reference": e.answer}
            for name, when in (("before", "base"), ("after", "tuned")):
                if predictions[when]:
                    found = predictions[when][i]["parsed"]
                    is_point = predictions[when][i]["metric"] == "point" and found
                    item[name] = [found[0] - 4, found[1] - 4, found[0] + 4, found[1] + 4] if is_point else found
            items.append(item)
    if items:
        figures.examples(out / "examples.png", items)


def expression(prompt):
    """What a RefCOCO prompt asks for; any other prompt as it is."""
    before, behind = REFCOCO_PROMPT.split("{}")
    return prompt.removeprefix(before).removesuffix(behind)


def print_table(report):
    """The run in a few lines: before, after and what it cost."""

    def shown(value, form):
        return "not measured" if value is None else format(value, form)

    base, tuned = report["base"]["by_kind"], report["tuned"]["by_kind"]
    rows = [(kind, shown(base.get(kind), ".1%"), shown(tuned.get(kind), ".1%")) for kind in base | tuned]
    failures = report["parse_failures"]
    rows.append(("answers without a box", str(failures["base"]), str(failures["tuned"])))
    print(f"\n  {'':32}{'before':>14}{'after':>14}")
    for name, before, after in rows:
        print(f"  {name:32}{before:>14}{after:>14}")
    boxes = report["tuned"]["boxes"] or report["base"]["boxes"]
    if boxes and boxes["count"]:
        centre, size = boxes["centre_error"], boxes["size_ratio"]
        print(
            f"\n  box centres off by              {centre['median']:.1%} of the diagonal (90 %: up to {centre['p90']:.1%})"
        )
        print(f"  box sizes over the true ones    {size['median']:.2f} (80 %: {size['p10']:.2f} to {size['p90']:.2f})")
    trainable, total = report["trainable_parameters"], report["parameters"]
    print(f"\n  largest change of a text logit  {shown(report['text_logit_max_change'], '')}")
    print(f"  trainable parameters            {trainable:,} ({trainable / total:.2%} of {total:,})")
    print(f"  adapter FLOPs a step            {shown(report['adapter_flops_per_step'], '.3g')}")
    print(f"  seconds until the first step    {shown(report['seconds_to_first_step'], '.1f')}")


# --------------------------------------------------------------------------------------------------------- the run


def start(args):
    """(arguments, folder, state) of a new run or, with --resume, of the interrupted one as it was last saved."""
    state = dict.fromkeys(("base", "heads", "scores", "parameters", "optimizer")) | {"step": 0, "log": []}
    if not args.resume:
        return args, Path(args.out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{args.data}-{args.method}"), state
    out = Path(args.resume)
    args = argparse.Namespace(**read_json(out / "arguments.json"))
    if (out / "state.pt").exists():  # else it was interrupted before anything was saved: from the beginning
        state = torch.load(out / "state.pt", weights_only=True)
    return args, out, state


def make_folder(out):
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror})") from None


def load_data(args, processor):
    """(training examples, {name: held-out examples}); the accuracy of the first of these is the run's."""
    usual = ["scenes-day", "sums"] if args.data == "scenes" and not args.eval else []
    also = usual if args.also is None else args.also
    held_out, roots = {}, {args.data: args.data_root}
    for said in [*(args.eval or [args.data]), *also]:
        name, _, folder = said.partition("=")
        split = args.eval_split if said not in also or name in DRAWN else None  # --also: data sets with other splits
        split, room = split or DATASETS[name].eval_split, new_tokens(args, name)
        held_out[name] = load_rows(args, name, folder or roots.get(name), split, args.eval_limit, processor, room)
    if args.method == "none" or args.eval_only:
        return [], held_out
    examples = load_rows(args, args.data, args.data_root, args.train_split, args.limit, processor)
    if args.method == "image-lora" and not any(e.visuals for e in examples):
        raise InputError(f"{args.data} {args.train_split}: no image in any row: Image-LoRA has nothing to adapt to")
    show_example(processor, examples[0])
    return examples, held_out


def run(args, command):
    """One run from its arguments to its report."""
    args, out, state = start(args)
    vlm, processor = load_model(args)
    if args.prompt:
        return ask(args, vlm, processor, out)
    examples, held_out = load_data(args, processor)
    steps = (args.steps or math.ceil((args.epochs or 1) * len(examples) / rows_a_step(args))) if examples else 0
    if RANK == 0:
        make_folder(out)
        write_text(out / "arguments.json", json.dumps(vars(args), indent=1) + "\n")
    soon = set(itertools.islice(row_order(examples, args.seed), steps * rows_a_step(args)))
    known = encode_pictures(args, vlm, processor, [*itertools.chain(*held_out.values()), *(examples[i] for i in soon)])

    # before
    def answers():
        return [p for name, rows in held_out.items() for p in evaluate(args, vlm, processor, rows, name, known)]

    if state["base"] is None:
        state["base"] = json.dumps(answers() if args.base and not args.from_scratch else [])
    predictions = {"base": json.loads(state["base"]), "tuned": []}
    logits_before, logit_change = text_logits(vlm, processor), None

    # probe, attach, train
    adapter, parameters = None, []
    if examples:
        if args.method == "image-lora" and state["heads"] is None:
            state["heads"], state["scores"] = choose_heads(args, vlm, processor, examples, known)
        adapter, parameters = build_method(args, vlm, state["heads"])
        show_method(args, parameters, steps, state["heads"])
        train(args, vlm, processor, examples, known, parameters, steps, state, out / "state.pt")
    elif args.adapter:
        adapter = load_adapter(args.adapter, vlm)
        parameters = list(adapter.parameters())
        args.method = "lora" if isinstance(adapter, LoRA) else "image-lora"
    else:
        args.method = "none"

    # after
    if parameters:
        predictions["tuned"] = answers()
        pairs = zip(logits_before, text_logits(vlm, processor))
        logit_change = max((a - b).abs().max().item() for a, b in pairs)
    if RANK > 0:  # all processes hold the same result, the first one writes it
        return
    if state["heads"]:
        save_selection(out / "heads.json", state["heads"], state["scores"])
    if examples and adapter:
        adapter.notes = {"min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels}
        adapter.save(out / "adapter.safetensors")
    elif examples:
        vlm.save(out / "checkpoint")
        processor.save(out / "checkpoint")

    log = state["log"]
    summaries = {when: summary(rows, next(iter(held_out))) for when, rows in predictions.items()}
    report = {
        "method": args.method,
        "seed": args.seed,
        "data": args.data,
        "steps": steps,
        "trainable_parameters": sum(p.numel() for p in parameters),
        "parameters": sum(p.numel() for p in vlm.parameters()),
        "adapter_flops_per_step": mean(adapter.flops(x["tokens"], x["visual_tokens"]) for x in log)
        if adapter and log
        else None,
        "train_seconds": sum(line["ms"] for line in log) / 1000,
        "step_ms": median(line["ms"] for line in log) if log else None,
        "wall_seconds": time.perf_counter() - STARTED,
        "seconds_to_first_step": log[0]["elapsed"] if log else None,
        "processes": WORLD,
        "peak_memory_bytes": peak_memory(vlm.device),
        "parse_failures": {when: s.pop("parse_failures") for when, s in summaries.items()},
        **summaries,
        "text_logit_max_change": logit_change,
        "heads": adapter.heads if isinstance(adapter, ImageLoRA) else None,
        "arguments": vars(args),
        "versions": versions(),
        "command": " ".join(command),
        "commit": commit(),
    }
    lines = [p | {"when": when} for when, rows in predictions.items() for p in rows]
    write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))
    write_text(out / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    draw_figures(out, report, state["scores"], log, next(iter(held_out.values())), predictions)
    print_table(report)
    print(f"\n  written to {out}")


def main(argv=None):
    if WORLD > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if RANK > 0:  # the first process speaks for all
            sys.stdout = io.StringIO()
    try:
        run(parse_args(argv), ["python", "train.py", *(sys.argv[1:] if argv is None else argv)])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        if WORLD > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()

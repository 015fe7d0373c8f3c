"""--plan: what a training will need, from its flags and the shapes of the model, before anything is loaded.

What the data would say is assumed: images as large as --max-pixels allows, questions as long as RefCOCO's, each about an
image of its own or seven about one; and where a probe is to choose, equal scores, with which the lowest layers come first.
Memory is counted (harness/shapes.py). FLOPs follow from the number of weights, and time from a share of what the
makers of some cards say of them: it is an order of magnitude.
"""

import math

import torch

from harness.arguments import MAX_PIXELS
from harness.processes import choose_device
from harness.report import HERE
from harness.shapes import adapted, batch_of, on_meta, step_memory
from parts.backbones import nf4
from parts.backbones.checkpoint import checkpoint_folder, read_config
from parts.files import InputError

QUESTIONS = 7  # about an image of RefCOCO
SIZES = (8, 12, 16, 24, 32, 40, 48, 80, 141)  # GB, of cards
GIB = 2**30
RESERVE = 2 * GIB  # of a card: for the CUDA context, and for what the allocator cannot use
# TFLOP/s in float32 and in 16 bits, dense
RATES = {"T4": (8.1, 65), "L4": (30.3, 121), "A100": (19.5, 312), "H100": (67, 989)}
MALLOC = ", to which the C library's malloc may add a third"  # on a CPU: docs/speed.md
SHARE = 0.4  # of that rate, which a step is assumed to reach


def step_flops(vlm, batch, full, checkpointing):
    """Of the model: 2 for each weight and token forward, 2 backward for the input, 2 for a weight that learns. That is 4 P N
    of a frozen decoder; the frozen encoder has no backward pass. What queries and keys make of each other is left out."""
    forwards, each = 1 + checkpointing, 4 if full else 2
    decoder = nf4.size(vlm.model.layers)[0] * batch.input_ids.numel()
    encoder = nf4.size(vlm.visual.blocks)[0] * len(batch.patches)
    head = vlm.config.vocab * vlm.config.hidden * len(batch.answer_ids)
    return (2 * forwards + each) * decoder + (2 + each) * head + (2 * forwards + each if full else 2) * encoder


def asked(args):
    """(device, dtype) of the training; the GPU need not be here. Raises InputError for flags that do not go with --plan."""
    for name in ("find", "prompt", "eval_only", "probe_only", "resume", "score", "show"):
        if getattr(args, name):
            raise InputError(f"--plan is for a training: leave out --{name.replace('_', '-')}")
    device, gpu = args.device.partition(":")[0], torch.cuda.is_available()
    if args.method == "none":
        raise InputError("--plan is for a training: --method none trains nothing")
    if args.method == "ablation":  # it looks for its tokens in the data
        raise InputError("--plan does not know the ablations; leave them out: they need about what Image-LoRA needs")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--plan: --device {args.device:.40}; it can be cpu or cuda")
    device = ("cuda" if gpu else "cpu") if device == "auto" else device
    dtype = "bfloat16" if args.dtype == "auto" and device == "cuda" and not gpu else args.dtype
    _, dtype, _ = choose_device(device if gpu else "cpu", dtype)
    if args.method == "full" and dtype != torch.float32:
        raise InputError("--plan counts --method full in float32 only; add --dtype float32")
    return device, dtype


def plan(args, VLM, METHODS, choose_heads):
    """What a training with these flags needs, as plain data. choose_heads: that of train.py. Raises InputError for flags that
    make no training, and for rows that are too long."""
    device, dtype = asked(args)
    config = read_config(HERE / "tiny" if args.model == "tiny" else checkpoint_folder(args.model, weights=False))
    vlm, full = on_meta(VLM, config, dtype, args.quantize, args.checkpointing, device), args.method == "full"
    settings = vars(args) | {"gamma": args.gamma if args.learn_gamma else None}
    if not full and "heads" in METHODS[args.method].options:
        even = torch.ones(config.layers, config.value_heads)
        settings["heads"], _ = choose_heads(config, args.selection, args.heads, args.tau, args.seed, lambda _: even)
    adapter = None if full else adapted(vlm, METHODS[args.method], settings)
    trained = [p for p in (vlm.requires_grad_(True) if full else adapter).parameters() if p.requires_grad]

    parts = {
        "vision": vlm.visual,
        "decoder": vlm.model.layers,
        "embedding": vlm.model.embed_tokens,
        "head": vlm.lm_head,
    }
    learnt = sum(p.numel() for p in trained)
    found = {"device": device, "dtype": str(dtype).removeprefix("torch."), "in_4_bits": bool(args.quantize)}
    found |= {"bytes": nf4.size(vlm)[1], "learnt": learnt}
    found["parts"] = {name: nf4.size(part) for name, part in parts.items() if part}  # a tied head is the embedding
    found["learnt_bytes"] = (8 if full else 12) * learnt  # AdamW's two moments, and the adapter, in float32
    found["visual"] = max(1, (args.max_pixels or MAX_PIXELS) // (config.vision.patch_size * config.vision.merge) ** 2)
    found["batches"] = []
    for questions in sorted({1, min(QUESTIONS, args.batch) if args.share_images else 1}):
        batch = batch_of(config, math.ceil(args.batch / questions), questions, found["visual"])
        (rows, T), N = batch.input_ids.shape, len(batch.visual_index)
        if T > config.max_positions:
            raise InputError(f"--plan: a row of {T} tokens in {config.max_positions} positions; lower --max-pixels")
        kept, most = step_memory(vlm, batch)
        line = {"questions": questions, "rows": rows, "tokens": T, "visual_tokens": N, "kept": kept, "most": most}
        line["together"] = found["bytes"] + found["learnt_bytes"] + most + batch.patches.nbytes
        line["flops"] = args.accumulate * step_flops(vlm, batch, full, args.checkpointing)
        line["adapter_flops"] = 0 if full else args.accumulate * adapter.flops(rows * T, N)
        found["batches"].append(line)
    return found


def show(model, found):
    """Print a plan. model: as --model says it."""
    form = found["dtype"] + (", the decoder in nf4," if found["in_4_bits"] else "")
    print(f"plan     {model} in {form} on {found['device']}: computed from shapes, not measured")
    for name, (count, memory) in found["parts"].items():
        print(f"         {name:12}{count:15,} weights {gib(memory):>12}")
    print(f"         to be learnt{found['learnt']:15,} weights", end="")
    print(f"{found['learnt_bytes'] / 2**20:>9,.1f} MiB with AdamW's moments")
    print(f"         images of up to {found['visual']} visual tokens (--max-pixels), questions as long as RefCOCO's")
    rates = {name: rate[found["dtype"] != "float32"] * 1e12 for name, rate in RATES.items()}
    if found["dtype"] == "bfloat16":  # which it does not compute in
        del rates["T4"]
    on_gpu = found["device"] == "cuda"
    for b in found["batches"]:
        print(f"\n{b['questions']} question{'s' * (b['questions'] > 1)} about an image: ", end="")
        print(f"{b['rows']} row{'s' * (b['rows'] > 1)} of {b['tokens']} tokens, {b['visual_tokens']:,} of them visual")
        print(f"  kept for the backward pass {gib(b['kept']):>11}, at most beside it {gib(b['most'] - b['kept'])}")
        print(f"  together                   {gib(b['together']):>11}{card(b['together']) if on_gpu else MALLOC}")
        print(f"  FLOPs of a step            {b['flops']:11.3g}, of the adapter {b['adapter_flops']:.3g}")
        seconds = [f"{name} {b['flops'] / SHARE / rate:.2g} s" for name, rate in rates.items()]
        if on_gpu:
            print(f"  at {SHARE:.0%} of the stated rate: {', '.join(seconds)}")


def card(memory):
    """The smallest card on which so many bytes fit, in words."""
    fits = [size for size in SIZES if memory + RESERVE <= size * 10**9]
    needed = f"a card of {fits[0]} GB" if fits else f"more than a card of {SIZES[-1]} GB"
    return f": needs {needed}, {RESERVE / GIB:g} GiB of it in reserve"


def gib(size):
    return f"{size / GIB:.2f} GiB"

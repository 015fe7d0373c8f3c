"""The command line of train.py."""

import argparse

from files import InputError
from tasks import TASKS
from tasks.download import ANNOTATIONS, COCO_IMAGES
from tasks.scenes import DRAWN

MAX_PIXELS = 401408  # 512 visual tokens: native resolution is what runs out of memory
LEARNING_RATES = {"image-lora": 5e-3, "lora": 1e-3, "full": 1e-5, "none": 0.0}
DRAWN_LEARNING_RATES = {"image-lora": 2e-2, "lora": 4e-3, "full": 5e-4, "none": 0.0}  # a small model, larger steps
DRAWN_DEFAULTS = {"limit": 4800, "batch": 32, "steps": 500, "gate": 1.0, "eval_limit": 300, "eval_batch": 100}
DRAWN_DEFAULTS |= {"workers": 0, "cache_vision": 1.0}  # its pictures are small, and in memory anyway
TINY_HEADS = 15  # of its 20: a quarter of so few heads is not enough for the demo's look


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
    g.add_argument("--data", help=f"training data: {', '.join(TASKS)}; {known} (default: scenes)")
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
        if name.partition("=")[0] not in TASKS:
            raise InputError(f"unknown data set {name!r}; known: {', '.join(TASKS)}")

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

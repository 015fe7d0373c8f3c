"""The command line of train.py. `python train.py --help` is the documentation of its flags."""

import argparse
import math
import os
import sys
from pathlib import Path

from harness.ablations import CHOICES, Ablation, parse_ablations
from imagelora import METHODS
from parts.files import InputError
from parts.sites import SITES
from parts.tasks import TASKS
from parts.tasks.scenes import DEMO_LOOK, DRAWN
from probe import CRITERIA

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
MAX_PIXELS = 401408  # 512 visual tokens: native resolution is what runs out of memory
TINY_HEADS = 12  # half of its 24; how many are enough is a question of the suite `main`
DEMO_SETS = [f"scenes-{DEMO_LOOK}", "scenes-day", "sums"]  # what the data set "scenes" is measured by
LEARNING_RATES = {"image-lora": (5e-3, 2e-2), "lora": (1e-3, 4e-3), "full": (1e-5, 5e-4)}  # of real, of drawn data
MAY_BE_0 = ("limit", "eval_limit", "eval_every", "cache_vision", "workers", "seed", "tau")  # other numbers are positive


class Parser(argparse.ArgumentParser):
    """What is wrong with the flags is one line."""

    def error(self, message):
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def make_parser():
    """(the parser, which gives a value to what is on the command line alone; {flag: its default}). A pair is a default for
    real data and one for drawn data, whose images are small and in memory anyway."""
    about = "Fine-tune a vision-language model by Image-LoRA, LoRA or completely; evaluate it before and after."
    parser = Parser(usage="python train.py [flags]", description=about, argument_default=argparse.SUPPRESS)
    usual, yes_no = {}, argparse.BooleanOptionalAction

    def add(name, help, default=None, **options):
        """Add a flag to the current group."""
        usual[name.removeprefix("--").replace("-", "_")] = default
        if default not in (None, []):
            usually = "{}; drawn data: {}".format(*default) if type(default) is tuple else default
            help += f" (default: {usually})"
        if not options.keys() & {"action", "choices", "metavar"}:
            options["metavar"] = {int: "N", float: "X", None: "NAME"}[options.get("type")]
        group.add_argument(name, help=help, **options)

    group = parser.add_argument_group("what is trained, and how long")
    add("--model", "checkpoint folder or hub id; tiny: the model that comes with this program", "tiny")
    add("--data", f"data set, NAME or NAME=FOLDER (jsonl, llava: or =FILE): {', '.join(TASKS)}", "scenes")
    methods = [*(name for name in METHODS if name != Ablation.name), "full", "none"]  # --ablate names that one
    add("--method", "what is trained; none: only evaluate", "image-lora", choices=methods)
    add("--heads", f"budget: value heads in all (default: a quarter of them; tiny model: {TINY_HEADS})", type=int)
    add("--steps", "optimiser steps (default: one pass over the training rows; drawn data: 300)", type=int)
    add("--epochs", "instead of --steps: passes over the training rows", type=float)
    rates = ", ".join(f"{method} {real:g} ({drawn:g})" for method, (real, drawn) in LEARNING_RATES.items())
    add("--lr", f"peak learning rate (default by method, for drawn data in brackets: {rates})", type=float)
    add("--batch", "examples of one forward and backward pass; of an evaluation four times as many", (4, 32), type=int)
    add("--accumulate", "passes of one optimiser step; with --batch usually 1", (2, 1), type=int)
    add("--seed", "draws initial weights, the order of the data, and the probe's rows and A", 0, type=int)

    group = parser.add_argument_group("speed and memory")
    add("--max-pixels", f"largest area of an image; 784 (Qwen3-VL: 1024) are a token (default: {MAX_PIXELS})", type=int)
    add("--min-pixels", "smallest area of an image (default: the checkpoint's)", type=int)
    add("--device", "cpu, cuda, cuda:1, mps (not tested), ...; auto: cuda if there is one", "auto")
    add("--dtype", "of the frozen model; of arithmetic", "auto", choices=["auto", "float32", "bfloat16", "float16"])
    add("--quantize", "keep the projections of the decoder's layers in 4 bits a weight", choices=["nf4"])
    add("--checkpointing", "less memory, a third more time", False, action=yes_no)
    add("--workers", "threads that read and cut images, each of a step ahead", (min(8, CORES - 1), 0), type=int)
    add("--cache-vision", "GiB for embeddings of images, each encoded once", (0.0, 1.0), type=float)

    group = parser.add_argument_group("the folder of the run")
    add("--out", "where (default: runs/TIME-DATA-METHOD)", metavar="FOLDER")
    add("--resume", "continue an interrupted run, with its own arguments", metavar="RUN")
    add("--save-every", "steps between saved states, from which --resume continues", 100, type=int)
    add("--keep-states", "keep each saved state, as state-STEP.pt", False, action=yes_no)

    group = parser.add_argument_group("data and evaluation")
    add("--train-split", "split to probe and train on", "train")
    add("--limit", "training rows; 0: all", (2000, 4800), type=int)
    held_out = "data sets to evaluate on; the first one counts as the run's (default: --data; of scenes: its parts)"
    add("--eval", held_out, nargs="+")
    add("--eval-split", "split of the first one (default: by data set, mostly val)")
    add("--eval-limit", "evaluation rows of each data set; 0: all", (500, 300), type=int)
    add("--max-new-tokens", "longest answer (default by data set: 48, llava 200, gsm8k 400)", type=int)
    add("--eval-every", "steps between points of the curve, on a few held-out rows; 0: none", (0, 100), type=int)
    add("--base", "also evaluate the model before it is trained", True, action=yes_no)
    add("--adapter", "train nothing: evaluate this adapter, at the resolution it was trained at", metavar="FILE")
    add("--probe-only", "print the ranking of the heads, draw the map, train nothing", False, action=yes_no)

    group = parser.add_argument_group("method")
    add("--rank", "R", 8, type=int)
    add("--alpha", "alpha; updates are scaled by alpha / R", 16, type=float)
    add("--gamma", "gamma at the start; the tiny model learns faster from 1", (0.01, 1.0), type=float)
    selections = f"probe (rank1), {', '.join(CRITERIA)}, random, all, or a heads.json of another run"
    add("--selection", selections, "probe")
    add("--tau", "a layer's share of the heads is proportional to score^tau", 0.5, type=float)
    add("--probe-samples", "training rows to probe with", 64, type=int)
    targets, letters = f"of --method lora, as letters or with commas: {', '.join(SITES)}", set("qkvo")
    add("--targets", targets, [*"qkvo"], metavar="NAMES", type=lambda t: t.split(",") if set(t) - letters else [*t])
    add("--ablate", f"design choices of Image-LoRA to change: {CHOICES}", [], nargs="+", metavar="NAME=VALUE")
    return parser, usual


def parse_args(argv=None):
    """The command line `argv` (None: that of this program) -> a Namespace in which every flag has its value; `given` has
    the names of those on the command line. Ends the program with code 2 for flags that make no sense; raises InputError for
    an unknown data set."""
    parser, usual = make_parser()
    given = vars(parser.parse_args(argv))
    if problem := nonsense(given):
        parser.error(problem)

    # What is only evaluated, and on what data.
    if "adapter" in given or given.get("method") == "none":
        usual |= {"method": "none", "data": given.get("eval", [usual["data"]])[0]}
    data = given.get("data", usual["data"])
    for name in [data, *given.get("eval", [])]:
        if data_set(name)[0] not in TASKS:
            raise InputError(f"unknown data set {name!r:.80}; choose from {', '.join(TASKS)}")

    # Every flag that was not given has its default. Some depend on the data, the model and the method.
    drawn = data_set(data)[0] in DRAWN
    usual |= {name: default[drawn] for name, default in usual.items() if type(default) is tuple}
    usual["lr"] = LEARNING_RATES.get(given.get("method", "image-lora"), LEARNING_RATES["lora"])[drawn]
    if "batch" in given:
        usual["accumulate"] = 1
    if drawn and "epochs" not in given:
        usual["steps"] = 300
    if drawn and given.get("model", usual["model"]) == "tiny":
        usual["heads"] = TINY_HEADS
    args = argparse.Namespace(**(usual | given), given=sorted(given))

    # One design choice of Image-LoRA changed is another method.
    if parse_ablations(args.ablate):
        args.method = "ablation"
    return args


def data_set(text):
    """"NAME" or "NAME=FOLDER" -> (name, folder or None)."""
    name, _, folder = text.partition("=")
    return name, folder or None


def nonsense(given):
    """What is wrong with the flags that were given, or None."""
    for name, value in given.items():
        zero = value == 0 and name in MAY_BE_0
        if type(value) in (int, float) and not zero and not 0 < value < math.inf:
            return f"--{name.replace('_', '-')} {value}: must be {'0 or ' * (name in MAY_BE_0)}a positive number"
    method, targets = given.get("method"), given.get("targets", ["q"])
    mistaken = set(targets) - set(SITES) or len(set(targets)) < max(1, len(targets))
    others = "ablate" in given and ("adapter" in given or method not in (None, "image-lora"))
    problems = {
        "--steps and --epochs exclude each other": "steps" in given and "epochs" in given,
        f"--targets {','.join(targets)}: choose from {', '.join(SITES)}, each once": mistaken,
        "--adapter is evaluated, not trained: leave --method out": "adapter" in given and method not in (None, "none"),
        "--ablate changes --method image-lora: leave the other method out": others,
        "--method full: --dtype must be float32 or bfloat16": method == "full" and given.get("dtype") == "float16",
        "--quantize is for frozen weights: not with --method full": method == "full" and "quantize" in given,
    }
    return next((problem for problem, applies in problems.items() if applies), None)


def planned_steps(args, rows):
    """Optimiser steps of a run on so many examples: --steps, or those of --epochs (1) passes over them."""
    return (args.steps or math.ceil((args.epochs or 1) * rows / (args.batch * args.accumulate))) if rows else 0


def evaluation_sets(args):
    """What is evaluated: [(data set, its folder or None, split, max_new_tokens)]. The accuracy of the first is the run's.
    --eval-split is the split of the first one and of drawn data. A file that is not trained on is evaluated completely."""
    trained, sets = data_set(args.data), {}
    for text in args.eval or (DEMO_SETS if args.data == "scenes" else [args.data]):
        name, folder = data_set(text)
        if name in sets:
            raise InputError(f"--eval: {name} is named twice; evaluate its folders one after another")
        folder = folder or (trained[1] if name == trained[0] else None)
        other = args.method == "none" or Path(folder or "").resolve() != Path(trained[1] or "").resolve()
        complete = args.eval and folder and Path(folder).is_file() and other
        asked = args.eval_split if not sets or name in DRAWN else None
        split = asked or ("test" if complete else TASKS[name].eval_split)
        sets[name] = name, folder, split, args.max_new_tokens or TASKS[name].new_tokens
    return list(sets.values())

"""The command line of train.py. `python train.py --help` is the documentation of its flags."""

import argparse
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

from harness.evaluate import CURVE_ROWS
from parts.files import InputError
from parts.tasks import TASKS
from parts.tasks.rows import GROUNDING_PROMPT
from parts.tasks.scenes import DEMO_LOOK, DRAWN

MAX_PIXELS = 401408  # 512 visual tokens: native resolution is what runs out of memory
TINY_HEADS = 12  # half of its 24; how many are enough is a question of the suite `main`
DEFAULTS = {  # what depends on the data: (of real data, of drawn data, whose images are small and in memory anyway)
    "limit": (2000, 4800),
    "batch": (8, 32),
    "gamma": (0.01, 1.0),
    "eval_limit": (500, 300),
    "eval_batch": (32, 100),
    "eval_every": (0, 100),
    "workers": (2, 0),
    "cache_vision": (0.0, 1.0),
}
LEARNING_RATES = {  # of real data, of drawn data: a small model takes larger steps
    "image-lora": (5e-3, 2e-2),
    "ablation": (5e-3, 2e-2),
    "lora": (1e-3, 4e-3),
    "full": (1e-5, 5e-4),
    "none": (0.0, 0.0),
}
ABLATIONS = {  # as in the paper
    "path": "v",
    "tokens": "visual",
    "norm": True,
    "shared": "layer",
    "outer": False,
    "learn_gamma": True,
}
MOST_ROWS = 10**9  # of a training: steps x batch x accumulate
EXAMPLES = """
examples:
  python train.py                                        the tiny model, offline, on a laptop
  python train.py --model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco
  python train.py --adapter runs/.../adapter.safetensors --image photo.jpg --find "the red cup"
"""


# -- what the values of flags may be: argparse types, which raise ArgumentTypeError


class Range(NamedTuple):
    """A number from `least` to `most`; "nan" is none."""

    kind: type
    least: float
    most: float

    def __call__(self, text):
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most:
            what = "whole number" if self.kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r:.60} is not a {what} from {self.least:,} to {self.most:,}")
        return value


COUNT, FROM_ZERO = Range(int, 1, 10**9), Range(int, 0, 10**9)
ROWS = Range(int, 0, 10**6)
PIXELS = Range(int, 1, 10**8)
AT_ONCE = Range(int, 1, 10**5)  # so many rows or words are in memory at the same time
SEED = Range(int, 0, 2**64 - 1)
POSITIVE, SHARE = Range(float, 1e-30, 10**6), Range(float, 0, 1)


def words(text):
    """A text that says something."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is empty or holds a zero byte")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not valid UTF-8") from None
    return text


def path(text):
    """A name that a file or folder can have."""
    try:
        os.stat(words(text))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # what must be there is looked for later
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r:.60} cannot name a file ({error.strerror})") from None
    return text


def file(text):
    """The name of a file that is there."""
    if not os.path.isfile(path(text)):
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return text


def data_set(text):
    """NAME or NAME=FOLDER."""
    _, equals, folder = words(text).partition("=")
    if equals:
        path(folder)
    return text


class Parser(argparse.ArgumentParser):
    """What is wrong with the flags is one line."""

    def error(self, message):
        line = " ".join(message.split())
        print("error: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
        sys.exit(2)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Every flag with its default, if that is one value; the examples at the end as they are."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def parse_args(argv, methods, criteria):
    """The command line `argv` (None: that of this program) -> a Namespace in which every flag has its value.

    methods: what --method may be; criteria: what --selection may be besides the usual. Ends the program with code 2 for
    flags that make no sense; raises InputError for an unknown data set.
    """
    parser = make_parser(methods, criteria)
    args = parser.parse_args(argv)
    found = dict(vars(args))
    unset = object()  # what was said, and not only filled in
    said = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(found, unset)))
    found["given"] = sorted(name for name, value in vars(said).items() if value is not unset)

    # A data set is NAME or NAME=FOLDER.
    usual = found["eval"][0] if found["eval"] and args.eval_only else "scenes"
    found["data"], _, folder = (args.data or usual).partition("=")
    found["data_root"] = folder or args.data_root
    for name in (found["data"], *(args.eval or []), *(args.also or []), args.show or "scenes"):
        if name.partition("=")[0] not in TASKS:
            raise InputError(f"unknown data set {name!r:.80}; known: {', '.join(TASKS)}")

    # What the command line does not say depends on the data.
    drawn = found["data"] in DRAWN
    defaults = {name: values[drawn] for name, values in DEFAULTS.items()}
    found = defaults | {name: value for name, value in found.items() if value is not None or name not in defaults}
    if found["steps"] is None and found["epochs"] is None and drawn:
        found["steps"] = 300
    if found["heads"] is None and drawn and args.model == "tiny":
        found["heads"] = TINY_HEADS
    if found["method"] == "image-lora" and any(found[name] != usual for name, usual in ABLATIONS.items()):
        found["method"] = "ablation"
    if found["lr"] is None:
        rates = LEARNING_RATES.get(found["method"], LEARNING_RATES["lora"])
        found["lr"] = rates[drawn]
    if found["method"] == "full":
        found["cache_vision"] = 0.0  # the encoder itself is trained
    if found["find"] and not found["prompt"]:
        found["prompt"] = GROUNDING_PROMPT.format(found["find"])
    if found["prompt"]:  # a question, not a training
        found["eval_only"] = True

    if problem := nonsense(found):
        parser.error(problem)
    return argparse.Namespace(**found)


def nonsense(found):
    """What is wrong with {flag: value}, or None."""
    if found["steps"] is not None and found["epochs"] is not None:
        return "--steps and --epochs exclude each other"
    if not found["targets"] or set(found["targets"]) - set("qkvo"):
        return f"--targets {found['targets']:.40}: choose from q, k, v, o"
    smallest, largest = found["min_pixels"] or 0, found["max_pixels"] or (math.inf if found["adapter"] else MAX_PIXELS)
    if smallest > largest:
        return f"--min-pixels {smallest}: max_pixels {largest} is below min_pixels"
    if (rows := (found["steps"] or 0) * found["batch"] * found["accumulate"]) > MOST_ROWS:
        return f"--steps x --batch x --accumulate are {rows:,} rows; {MOST_ROWS:,} is the most"
    if found["adapter"] and not found["eval_only"]:  # --prompt and --find imply it
        return "--adapter needs --eval-only"
    if (found["image"] or found["predict"]) and not found["prompt"]:
        return "--image and --predict need --prompt or --find"
    if found["image"] and found["predict"]:
        return "--image and --predict exclude each other"
    if found["method"] == "full" and found["dtype"] == "float16":
        return "--method full: --dtype must be float32 or bfloat16"
    if found["quantize"] and (found["method"] == "full" or found["from_scratch"]):
        return "--quantize is for a checkpoint's frozen weights: not with --method full or --from-scratch"
    if found["continue_from"] and found["method"] not in ("image-lora", "ablation"):
        return "--continue-from needs --method image-lora"
    return None


def planned_steps(args, rows):
    """Optimiser steps of a run on so many examples: --steps, or those of --epochs (1) passes over them."""
    step = args.batch * args.accumulate
    steps = (args.steps or math.ceil((args.epochs or 1) * rows / step)) if rows else 0
    if steps * step > MOST_ROWS:
        raise InputError(f"--epochs {args.epochs:g}: {steps * step:,} rows; {MOST_ROWS:,} is the most")
    return steps


def evaluation_sets(args):
    """What --eval and --also name: [(data set, its folder or None, its split, room for an answer), ...]. The accuracy of
    the first is the run's."""
    own, also = args.eval or [args.data], args.also or []
    if args.data == "scenes" and not args.eval:  # a mixture, which is measured by its parts
        own = [f"scenes-{DEMO_LOOK}"]
        also = list(dict.fromkeys(["scenes-day", "sums", *also]))
    sets = []
    for named in [*own, *also]:
        name, _, folder = named.partition("=")
        if not folder and name == args.data:
            folder = args.data_root
        split = args.eval_split
        if named in also and name not in DRAWN:  # it may have other splits
            split = None
        other = args.eval_only or (name, folder) != (args.data, args.data_root)
        if named in [*(args.eval or []), *also] and other and folder and Path(folder).is_file():
            split = split or "test"  # all of a file that is not trained on
        room = args.max_new_tokens or TASKS[name].new_tokens
        if any(name == other for other, *_ in sets):
            raise InputError(f"--eval, --also: {name} is named twice; evaluate its folders one after another")
        sets.append((name, folder, split or TASKS[name].eval_split, room))
    return sets


def make_parser(methods, criteria):
    """The flags in groups: first the ten that matter most. A flag whose default depends on others has None here; its
    help says what it will be."""
    about = "Fine-tune a vision-language model by Image-LoRA, LoRA or completely; evaluate it before and after."
    usage = "python train.py [flags]"
    parser = Parser(usage=usage, description=about, epilog=EXAMPLES, formatter_class=HelpFormatter)
    yes_no = argparse.BooleanOptionalAction

    def selection(text):
        return text if text in ("probe", *criteria, "random", "all") else file(text)

    def group(title):
        g = parser.add_argument_group(title)

        def add(name, help, default=None, **options):
            if isinstance(options.get("type"), Range):
                options["metavar"] = "N" if options["type"].kind is int else "X"
            g.add_argument(name, help=help, default=default, **options)

        return add

    add = group("the ten flags that matter first")
    models = "checkpoint folder or hub id; tiny: the model that comes with this program"
    add("--model", models, "tiny", type=path, metavar="NAME")
    sets = f"data set, NAME or NAME=FOLDER (jsonl, llava: or =FILE): {', '.join(TASKS)} (default: scenes)"
    add("--data", sets, type=data_set, metavar="NAME")
    where = "folder of --data (default: data/NAME; RefCOCO: fetched if it is not there)"
    add("--data-root", where, type=path, metavar="FOLDER")
    add("--method", "what is trained; none: only evaluate", "image-lora", choices=methods)
    add("--heads", f"budget: value heads in all (default: a quarter of them; tiny model: {TINY_HEADS})", type=COUNT)
    add("--steps", "optimiser steps (default: one pass over the training rows; drawn data: 300)", type=COUNT)
    rates = ", ".join(f"{method} {real:g} ({drawn:g})" for method, (real, drawn) in LEARNING_RATES.items() if real)
    add("--lr", f"peak learning rate (default by method, for drawn data in brackets: {rates})", type=POSITIVE)
    area = f"largest area of a resized image; 784 (Qwen3-VL: 1024) are a token (default: {MAX_PIXELS})"
    add("--max-pixels", area, type=PIXELS)
    add("--out", "folder of the run (default: runs/TIME-DATA-METHOD)", type=path, metavar="FOLDER")
    add("--resume", "continue an interrupted run, with its own arguments", type=path, metavar="RUN")

    add = group("instead of training")
    add("--eval-only", "train nothing; with --adapter also evaluate that", False, action=yes_no)
    add("--adapter", "adapter.safetensors to evaluate, at the resolution it was trained at", type=file, metavar="FILE")
    add("--prompt", "one question, answered without and with --adapter", type=words, metavar="TEXT")
    add("--find", 'in short: where is it? "the red cup" is put into the prompt for boxes', type=words, metavar="TEXT")
    add("--image", "with --prompt or --find: ask about these images", [], nargs="*", type=path, metavar="FILE")
    add("--predict", "with --prompt or --find: ask about every image of a folder", type=path, metavar="FOLDER")
    add("--probe-only", "print the ranking of the heads, draw the map, train nothing", False, action=yes_no)
    add("--score", "score the answers of a run again, from its predictions.jsonl", type=file, metavar="FILE")
    add(
        "--show",
        "draw rows of a data set with their boxes into OUT/rows.png, load no model",
        type=data_set,
        metavar="NAME",
    )

    add = group("model")
    add("--min-pixels", "smallest area of a resized image (default: the checkpoint's)", type=PIXELS)
    add("--from-scratch", "random weights for the model's config.json", False, action=yes_no)
    add(
        "--device",
        "cpu, cuda, cuda:1, mps (not tested), ...; auto: cuda if there is one",
        "auto",
        type=words,
        metavar="NAME",
    )
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", "of the frozen model; with --method full, of the arithmetic", "auto", choices=dtypes)
    add("--quantize", "keep the projections of the decoder's layers in 4 bits a weight", choices=["nf4"])

    add = group("data")
    add("--train-split", "split to probe and train on", "train", type=words, metavar="NAME")
    add("--limit", f"training rows; 0: all ({by_data('limit')})", type=ROWS)
    held_out = f"data sets to evaluate on (default: --data; of scenes: scenes-{DEMO_LOOK})"
    add("--eval", held_out, nargs="+", type=data_set, metavar="NAME")
    also = "further data sets to evaluate on; scenes without --eval adds scenes-day and sums"
    add("--also", also, nargs="*", type=data_set, metavar="NAME")
    add("--eval-split", "their split (default: by data set, mostly val)", type=words, metavar="NAME")
    add("--eval-limit", f"evaluation rows of each data set; 0: all ({by_data('eval_limit')})", type=ROWS)
    add("--preamble", "words of unrelated text before each question", 0, type=Range(int, 0, 10**5))

    add = group("method")
    add("--rank", "R", 8, type=Range(int, 1, 10**4))
    add("--alpha", "alpha; updates are scaled by alpha / R", 16, type=POSITIVE)
    add("--gamma", f"gamma at the start; the tiny model learns faster from 1 ({by_data('gamma')})", type=POSITIVE)
    selections = f"probe (rank1), {', '.join(criteria)}, random, all, or a heads.json of another run"
    add("--selection", selections, "probe", type=selection, metavar="NAME")
    add("--tau", "a layer's share of the budget goes with its score to this power", 0.5, type=Range(float, 0, 1000))
    add("--probe-samples", "training rows to probe with", 64, type=COUNT)
    add("--probe-seed", "draws the probe's A and its rows", 0, type=SEED)
    add("--targets", "projections that --method lora adapts", "qkvo", type=words, metavar="LETTERS")
    add("--continue-from", "start from an Image-LoRA, in the heads it also has", type=file, metavar="ADAPTER")

    add = group("ablations: one decision of the method taken otherwise, see harness/ablations.py")
    add("--path", "projection that Image-LoRA adapts", "v", choices=("v", "k", "q", "o"))
    add("--tokens", "tokens that it adapts", "visual", choices=("visual", "text", "all"))
    add("--norm", "1 / sqrt(n), the selection-size normalization", True, action=yes_no)
    sharing = "who shares one A: the heads of a layer, all heads of the model, none"
    add("--shared", sharing, "layer", choices=("layer", "model", "none"))
    add("--outer", "B of each head is an outer product: its rank is 1", False, action=yes_no)
    add("--learn-gamma", "learn gamma; else it is 1", True, action=yes_no)

    add = group("optimisation")
    add("--epochs", "instead of --steps: passes over the training rows", type=POSITIVE)
    add("--batch", f"examples of one forward and backward pass ({by_data('batch')})", type=AT_ONCE)
    add("--accumulate", "passes of one optimiser step", 1, type=AT_ONCE)
    add("--warmup", "share of the steps over which the rate rises; then it follows a cosine", 0.05, type=SHARE)
    add("--clip", "largest norm of the gradient", 1.0, type=POSITIVE)
    add("--seed", "draws initial weights and the order of the data", 0, type=SEED)

    add = group("speed and memory: the same results")
    add("--share-images", "questions about one image share one row", True, action=yes_no)
    add(
        "--cache-vision",
        f"GiB for embeddings of images, each encoded once ({by_data('cache_vision')})",
        type=Range(float, 0, 10**6),
    )
    add("--checkpointing", "less memory, a third more time", False, action=yes_no)
    add(
        "--workers",
        f"processes that read and cut images ahead of the steps ({by_data('workers')})",
        type=Range(int, 0, 256),
    )
    add("--eval-batch", f"questions answered at once ({by_data('eval_batch')})", type=AT_ONCE)

    add = group("evaluation and saving")
    add("--base", "also evaluate the model before it is trained", True, action=yes_no)
    tokens = "longest answer (default by data set: 48, llava 200, gsm8k 400; --prompt 200)"
    add("--max-new-tokens", tokens, type=AT_ONCE)
    by_now = (
        f"steps between measurements on {CURVE_ROWS} held-out rows, for the curve; 0: none ({by_data('eval_every')})"
    )
    add("--eval-every", by_now, type=FROM_ZERO)
    add("--save-every", "steps between saved states, from which --resume continues", 100, type=COUNT)
    add("--keep-states", "keep each saved state, as state-STEP.pt", False, action=yes_no)
    return parser


def by_data(name):
    """The default of a flag that depends on the data, in words."""
    real, drawn = DEFAULTS[name]
    return f"default: {real}; drawn data: {drawn}"

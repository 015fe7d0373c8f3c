"""Time and memory of training steps and of evaluation, ours against transformers + peft on the same weights and rows.
By hand, alone on the machine: `python -m experiments bench SUITE ...`

    steps       a training step: one expression a row, seven expressions an image
    evaluation  24 new tokens for seven expressions about an image
    inference   prefill and decoding: Image-LoRA against LoRA merged into the weights
    many        decoding for many adapters at once: together, one after another, and LoRA with its own matrices for each row
    gpu         the full 3B and 7B, and what only a GPU can show: see bench_gpu.py

In each round all sides run in turn. A ratio is the median of the rounds' ratios, so a machine whose speed drifts favours no
side. A step is forward and backward; memory is what it takes beyond the weights, which both sides share. Weights are random.
On a CPU there are 12 decoder layers and 10 vision blocks. Each suite writes experiments/results/bench-SUITE.json.
"""

import argparse
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

import torch

from experiments import bench_gpu, many
from experiments import bench_sides as sides
from experiments.bench_sides import NEW_TOKENS, PEFT, against, measure
from harness.report import commit


def steps(args, *models):
    report = {"ratios": {}}
    for name, count in (("one expression a row", 1), ("seven expressions an image", 7)):
        runs, _ = sides.step_sides(models, sides.expressions(args.side, args.side, [4] * count))
        report[name] = measure(runs, args.device, args.rounds)
        for other in (PEFT, "lora", "floor"):
            report["ratios"][f"{name}, against {other}"] = against(report[name], "image-lora", other)
        report["ratios"][f"{name}, our LoRA against {PEFT}"] = against(report[name], "lora", PEFT)
    return report


@torch.no_grad()
def evaluation(args, vlm, processor, theirs):
    """Greedy text of a fixed length: no token ends it."""
    questions = [replace(e, answer=None) for e in sides.expressions(args.side, args.side, [4] * 7)]
    shared, apart = (processor(questions, share_images=share).to(args.device) for share in (True, False))
    inputs = sides.transformers_inputs(apart, questions, vlm.config.image_token)
    length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    model = theirs.base_model.model
    runs = {"ours": lambda: vlm.generate(shared, NEW_TOKENS), "theirs": lambda: model.generate(**inputs, **length)}
    results = measure(runs, args.device, args.rounds)
    return results | {"ratios": {"evaluation, seven expressions an image": against(results, "ours", "theirs")}}


def inference(args, vlm, processor, theirs):
    questions = [replace(e, answer=None) for e in sides.expressions(args.side, args.side, [4])]
    return sides.answers(vlm, processor, questions, args.rounds)


SUITES = {f.__name__: f for f in (steps, evaluation, inference)} | {"many": many.compare}


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=[*SUITES, "gpu"], metavar="SUITE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, one round: only to see that everything runs")
    parser.add_argument("--out", type=Path, help="folder of the reports (default: experiments/results; tiny: runs/tiny)")
    args = parser.parse_args(argv)

    # What depends on the machine, and on --tiny.
    args.command = f"python -m experiments bench {' '.join(argv)}"
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = torch.bfloat16 if args.device.type == "cuda" else torch.float32
    args.side = 56 if args.tiny else 448  # of an image, in pixels
    args.out = args.out or sides.ROOT / ("runs/tiny" if args.tiny else "experiments/results")
    small_enough = args.device.type == "cuda" or args.tiny  # for all layers and blocks: None
    args.layers, args.blocks = (None, None) if small_enough else (12, 10)
    return args


def write_report(args, suite, report):
    """bench-SUITE.json, with what is needed to make it again."""
    about = {name: value if isinstance(value, int) else str(value) for name, value in vars(args).items()}
    del about["out"]  # a path of this machine
    about |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
    about["commit"] = commit()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out.resolve() / f"bench-{suite}.json"
    file.write_text(json.dumps(about | report, indent=1) + "\n")
    return file


def main(argv):
    args = parse_args(argv)
    if "gpu" in args.suites:
        if args.device.type != "cuda" and not args.tiny:
            sys.exit("error: bench gpu: torch sees no GPU; nothing was measured (--tiny tries it on a CPU)")
        return bench_gpu.run_all(str(args.device), write_report(args, "gpu", {}), args.tiny)
    size = "tiny" if args.tiny else "3b"
    models = sides.random_models(sides.raw_config(size, args.layers, args.blocks), args.device, args.dtype)
    for suite in args.suites:
        report = SUITES[suite](args, *models)
        write_report(args, suite, report)
        for name, ratio in report["ratios"].items():
            print(f"{suite:12}{name:64}", *(f"{what} {value:.3f}" for what, value in ratio.items()))

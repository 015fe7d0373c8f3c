"""On one GPU, in at most 8 minutes: `python -m experiments bench gpu`

    tests      tests/test_gpu.py on this GPU: numbers, gradients under padding, no step that waits, --method full
    numbers    a random 3B in bfloat16 against float32, ours and transformers'
    3b, 7b     training steps on rows of varying length, ours and transformers + peft in turn; prefill and decoding; the
               ten longest kernels of a step, and the time without any; the same steps and answers under NF4

Each part is a process with a time limit, and each line goes into the report at once. What fails is written down and the
next line or part follows. Share: of the rate of a large bfloat16 matrix product on the same GPU; a step counts as 4 P N, P
parameters of the decoder's layers (without embedding and head), N tokens of the rows (without padding).
"""

import copy
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from experiments import bench_sides as sides
from parts.backbones.nf4 import nf4_layers, use_nf4
from parts.devices import choose_device

REFCOCO = """640 427 2 2 3 3 2 3 / 640 480 2 7 2 5 4 3 / 476 640 4 5 5 2 2 2 / 640 427 1 1 1 4 2 / 640 567 3 4 5 5
/ 640 424 3 4 2 5 2 3 3 7 6 3 3 3 7 4 3 / 427 640 4 12 4 1 3 1 / 640 480 2 4 3 16 3 3 2 4 5 / 640 526 9 4 7 3 4
/ 575 640 10 4 2 2 4 3 2 4 3 / 640 424 4 6 5 3 2 3 1 1 1 6 6 5 6 4 6 / 640 480 4 5 6 4 / 640 503 4 1 3 1 1 5
/ 640 466 1 2 1 2 1 / 640 528 6 3 2 9 2 7 2 4 4 1 7 3 / 640 480 10 4 5 1 1 2 3 3 4 3 2 11 / 612 612 7 4 3 3 4 3
"""  # of 16 images of its val split: width, height, words of each expression


def varying_rows(size, images, limit, seed=0):
    """The examples of a step: so many images of RefCOCO's sizes, each with its first `limit` expressions (None: all)."""
    examples, parts = [], 10 if size == "tiny" else 1  # of the tiny model: a tenth of the width, fewer images
    for i, image in enumerate(random.Random(seed).sample(REFCOCO.split("/"), -(-images // min(3, parts)))):
        width, height, *lengths = map(int, image.split())
        examples += sides.expressions(width // parts, height // parts, lengths[:limit], seed=100 * seed + i)
    return examples


def tests(size, device):
    def line():
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_gpu.py", *["--collect-only"] * (device.type == "cpu")]
        env = os.environ | {"IMAGELORA_TEST_DEVICE": device.type}
        done = subprocess.run(command, cwd=sides.ROOT, env=env, capture_output=True, text=True, check=False)
        return {"passed": done.returncode == 0, "end": done.stdout.strip().splitlines()[-5:]}

    yield "tests/test_gpu.py", line


def numbers(size, device):
    vlm, processor, theirs = sides.random_models(sides.raw_config(size), device, torch.bfloat16)
    exact, examples = copy.deepcopy(vlm).float(), varying_rows(size, 2, 3)
    batch, shared = (processor(examples, share_images=share).to(device) for share in (False, True))

    @torch.no_grad()
    def against_float32():
        inputs = sides.transformers_inputs(batch, examples, vlm.config.image_token)
        logits = [y.flatten(0, 1)[batch.answer_index].float() for y in (exact(batch), vlm(batch), theirs(**inputs).logits)]
        ours, transformers = (((y - logits[0]).norm() / logits[0].norm()).item() for y in logits[1:])
        losses = [exact.loss(batch).item(), vlm.loss(batch).item(), vlm.loss(shared).item()]
        return {"error of ours": ours, "of transformers": transformers, "losses: float32, bfloat16, shared rows": losses}

    yield "bfloat16 against float32", against_float32


def speed(size, device):
    n = 8192 if device.type == "cuda" else 256
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
    rate = 2 * n**3 / min(sides.measure({"": lambda: a @ b}, device, 20, memory=False)[""]["seconds"])
    yield "matrix product", lambda: {"TFLOP/s": rate / 1e12}

    models = vlm, processor, _ = sides.random_models(sides.raw_config(size), device, torch.bfloat16)
    for images, limit in ((8, 1), (2, None), (8, None)):
        steps = [varying_rows(size, images, limit, seed) for seed in range(2 if size == "tiny" else 6)]
        yield f"steps of {images} images, {limit or 'all'} expression(s) each", partial(step_line, models, steps, rate)
    questions = [replace(e, answer=None) for e in steps[0]]
    answers = partial(sides.answers, vlm, processor, questions, rounds=5)
    yield "answers", answers
    yield "profile", partial(profile_line, sides.step_sides(models, steps[0])[0]["image-lora"], device)

    weights = dict(vlm.named_parameters())
    use_nf4(vlm)
    for name, layer in nf4_layers(vlm).items():
        layer.keep(weights[name])
    yield "steps under NF4, all others but ours in bfloat16", partial(step_line, models, steps, rate)
    yield "answers under NF4", answers


def step_line(models, steps, rate):
    """Two passes over the steps: in the first one every length is new. A side that does not fit into memory is left out."""
    device, prepared = models[0].device, [sides.step_sides(models, examples) for examples in steps]
    seconds = {name: [] for name in prepared[0][0]}
    for runs, _ in prepared * 2:
        for name in list(seconds):
            try:
                seconds[name].append(sides.seconds_of(runs[name], device))
            except torch.OutOfMemoryError:
                del seconds[name]

    P = sum(p.numel() for p in models[2].base_model.model.model.language_model.layers.parameters() if not p.requires_grad)
    line = {"reserved bytes": torch.cuda.memory_reserved()}
    for name, times in seconds.items():
        first, again, N = times[: len(steps)], times[len(steps) :], sum(tokens[name] for _, tokens in prepared)
        line[name] = {
            "first step ms": 1000 * first[0],
            "ms, new lengths": 1000 * sum(first[1:]) / len(first[1:]),
            "ms": 1000 * sum(again) / len(again),
            "tokens/s": N / sum(again),
            "share": 4 * P * N / sum(again) / rate,
            "share, first steps included": 4 * P * N / sum(first) / rate,
            "image-lora / this": sum(seconds["image-lora"][len(steps) :]) / sum(again),
            "bytes": sides.peak_above(prepared[0][0][name], device),
        }
    return line


def profile_line(step, device):
    kind, activity = ("device", ProfilerActivity.CUDA) if device.type == "cuda" else ("cpu", ProfilerActivity.CPU)
    ms = 1000 * min(sides.seconds_of(step, device) for _ in range(3))
    with torch.profiler.profile(activities=[activity]) as profiler:
        sides.seconds_of(step, device)
    kernels = [[e.key[:120], getattr(e, f"self_{kind}_time_total") / 1000, e.count] for e in profiler.key_averages()]
    kernels.sort(key=lambda kernel: -kernel[1])
    gaps = ms - sum(kernel[1] for kernel in kernels)
    return {"ms": ms, "ms without a kernel": gaps, "kernel, ms, calls": kernels[:10]}


PARTS = {  # a generator of (what a line is about, what makes it), on which model, for how many seconds at most
    "tests": (tests, "tiny", 110),
    "numbers": (numbers, "3b", 50),
    "3b": (speed, "3b", 140),
    "7b": (speed, "7b", 170),
}


def add(file, part, line):
    """Put a line into the report, and onto the screen."""
    report = json.loads(file.read_text())
    report.setdefault(part, []).append(line)
    file.write_text(json.dumps(report, indent=1) + "\n")
    print(part, json.dumps(line), flush=True)


def run_part(part, size, device, file):
    """All lines of a part, in a process of its own."""
    choose_device(device, "bfloat16")
    for what, run in PARTS[part][0](size, torch.device(device)):
        try:
            line = run()
        except Exception as error:  # noqa: BLE001 (whatever fails is written down, and the next line follows)
            line = {"failed": f"{type(error).__name__}: {' '.join(str(error).split()):.300}"}
        add(Path(file), part, {"what": what} | line)


def run_all(device, file, tiny):
    for part, (_, size, seconds) in PARTS.items():
        command = [sys.executable, "-m", "experiments.bench_gpu", part, "tiny" if tiny else size, device, file]
        try:
            subprocess.run(command, cwd=sides.ROOT, timeout=seconds, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            add(file, part, {"failed": str(error)})


if __name__ == "__main__":
    run_part(*sys.argv[1:])

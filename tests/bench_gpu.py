"""On a GPU, at the full 3B and 7B of Qwen2.5-VL with random weights: `python tests/bench.py gpu [--size 3b]`

For 256, 1,024 and 4,096 visual tokens, and one and seven expressions about the image:

    step        forward and backward with Image-LoRA: time, tokens a second, memory above the weights; and against LoRA, the
                frozen floor (a zero that requires grad, added to V of the lowest adapted layer) and transformers + peft
    share       of the rate of one large matrix product, measured on the same GPU. A step counts as 4 P N: P parameters of the
                decoder's layers (without embedding and head), N tokens of the row, a multiply-add as two, forward and
                backward with respect to the input. The vision encoder's work is in the time and not in the count.
    prefill     of the same image with the questions, and decoding of a token: against LoRA merged into the weights

All sides of a line run in turn, in every round. Several expressions share one row; transformers has a row for each. A side
that does not fit into the memory is left out. Writes results/bench-gpu.json after each line.
"""

import gc
import json
import platform
import sys
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from conftest import REAL_PREPROCESSOR, ROOT
from sides import (
    DEPTH,
    NEW_TOKENS,
    Floor,
    answering,
    image_lora,
    our_step,
    raw_config,
    rows,
    their_step,
    transformers_inputs,
    with_peft,
    with_updates,
)
from timing import against, measure
from torch import nn

from data import Processor
from imagelora import LoRA
from model import VLM
from parts.backbones.checkpoint import read_preprocessor, read_tokenizer
from parts.backbones.qwen2_5_vl import Config

IMAGES = {448: 256, 896: 1024, 1792: 4096}  # side in pixels: visual tokens
COLUMNS = ["model", "visual tokens", "expressions", "step", "tokens a second", "memory beyond weights", "share"]
COLUMNS += ["of the floor", "of our LoRA", "of transformers + peft", "prefill, of merged", "decoding, of merged"]
GOALS = {"model": "goal", "share": ">= 45 % with seven", "of the floor": "<= 1.02", "of transformers + peft": "<= 0.5"}
PEFT, MERGED = "transformers + peft lora", "lora, merged"


def matmul_rate(device, dtype, n=8192):
    """FLOP/s of an n x n matrix product: the best of several."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = {"matrix product": lambda: a @ b}
    return 2 * n**3 / min(measure(product, device, 20, memory=False)["matrix product"]["seconds"])


def models(raw, device, dtype):
    """(vlm, processor, transformers + peft) of a parsed config.json, with random weights that both models share. They are
    made on the device: no file is written."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Config.from_dict(raw)
    with torch.device("meta"):
        vlm = VLM(config).to(dtype)
    vlm.to_empty(device=device).requires_grad_(False).eval()
    for name, p in vlm.named_parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
        else:
            nn.init.constant_(p, 0.0 if name.endswith("bias") else 1.0)
    with torch.device(device):
        other = Qwen2_5_VLForConditionalGeneration._from_config(Qwen2_5_VLConfig.from_dict(raw), dtype=dtype)
    preprocessor = read_preprocessor(ROOT / "parts/tiny") | REAL_PREPROCESSOR
    processor = Processor(config, read_tokenizer(ROOT / "parts/tiny"), preprocessor, max_pixels=max(IMAGES) ** 2)
    return vlm, processor, with_peft(other, vlm)


def fits(run):
    """Whether run() fits into the memory of the device."""
    try:
        run()
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return True


def step_line(vlm, processor, theirs, side, count, device, rounds, rate):
    """The numbers of a training step on `count` expressions about an image of side x side pixels."""
    examples = rows(side, count)
    batch, separate = processor(examples, share_images=True).to(device), processor(examples).to(device)
    inputs = transformers_inputs(separate, vlm.config.image_token)
    modules = {"image-lora": image_lora(vlm), "lora": LoRA(vlm.config), "floor": Floor()}
    sides = {name: partial(our_step, vlm, module.to(device), batch) for name, module in modules.items()}
    sides[PEFT] = partial(their_step, theirs, inputs)
    sides = {name: run for name, run in sides.items() if fits(run)}
    results = measure(sides, device, rounds, warm=False)

    P = sum(p.numel() for p in vlm.model.layers.parameters())
    line = {"visual_tokens": len(batch.visual_index), "expressions": count, "sides": results}
    for name, result in results.items():
        seconds, N = median(result["seconds"]), (separate if name == PEFT else batch).input_ids.numel()
        result |= {"ms": 1000 * seconds, "tokens": N, "tokens_per_second": N / seconds}
        result["share"] = 4 * P * N / seconds / rate
    names = {"of the floor": "floor", "of our LoRA": "lora", "of transformers + peft": PEFT}
    compared = {what: name for what, name in names.items() if {"image-lora", name} <= results.keys()}
    return line | {"ratios": {what: against(results, "image-lora", name) for what, name in compared.items()}}


@torch.no_grad()
def inference_line(vlm, processor, side, count, device, rounds):
    """Prefill of the image with its questions, and decoding, with Image-LoRA and with LoRA merged into the weights: the
    frozen network with other numbers in it."""
    questions = [replace(e, answer=None) for e in rows(side, count)]
    reading, writing = answering(vlm, processor(questions, share_images=True).to(device), NEW_TOKENS)
    updates = {"image-lora": image_lora(vlm).to(device).updates, MERGED: {}}
    line = {"inference": {}, "ratios": {}}
    for name, phase, parts in (("prefill", reading, 1), ("decoding", writing, NEW_TOKENS)):
        sides = {who: partial(with_updates, vlm, u, phase) for who, u in updates.items()}
        found = measure(sides, device, rounds)
        line["inference"][name] = found
        line["ratios"][f"{name}, of merged"] = against(found, "image-lora", MERGED)
        for result in found.values():
            result["ms"] = 1000 * median(result["seconds"]) / parts  # of the prefill, of a token
    return line


def table_row(line):
    """A line of the report in the words of the table in docs/speed.md."""
    cells = {"model": line["size"], "visual tokens": line["visual_tokens"], "expressions": line["expressions"]}
    if ours := line["sides"].get("image-lora"):
        cells |= {"step": f"{ours['ms']:,.0f} ms", "tokens a second": f"{ours['tokens_per_second']:,.0f}"}
        cells |= {"memory beyond weights": f"{ours['bytes'] / 2**20:,.0f} MiB", "share": f"{ours['share']:.1%}"}
    cells |= {name: f"{ratio['time']:.2f}" for name, ratio in line["ratios"].items()}
    return joined(cells.get(name, "does not fit") for name in COLUMNS)


def joined(cells):
    return f"| {' | '.join(map(str, cells))} |"


def measured(size, raw, device, dtype, rounds, rate, images=IMAGES):
    """Yields a line for each image and number of expressions. raw: the parsed config.json of `size`."""
    vlm, processor, theirs = models(raw, device, dtype)
    for side in images:
        for count in (1, 7):
            line = step_line(vlm, processor, theirs, side, count, device, rounds, rate)
            answers = inference_line(vlm, processor, side, count, device, rounds)
            yield {"size": size} | line | answers | {"ratios": line["ratios"] | answers["ratios"]}


def main(sizes, device, rounds):
    """Print the table, write the report. Ends the program with code 2 where there is no GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        print("error: bench.py gpu: torch sees no GPU here; nothing was measured", file=sys.stderr)
        sys.exit(2)
    dtype, rates, lines = torch.bfloat16, {}, []
    about = {"command": "python tests/bench.py gpu", "device": torch.cuda.get_device_name(device), "dtype": str(dtype)}
    about |= {"rounds": rounds, "torch": torch.__version__, "python": platform.python_version(), "goals": GOALS}
    print(joined(COLUMNS), f"|{'---|' * len(COLUMNS)}", joined(GOALS.get(name, "") for name in COLUMNS), sep="\n")
    for size in sizes:
        rates[size] = matmul_rate(device, dtype)
        raw = raw_config(size, *DEPTH[size])
        for line in measured(size, raw, device, dtype, rounds, rates[size]):
            lines.append(line)
            table = [table_row(line) for line in lines]
            print(table[-1], flush=True)
            report = about | {"matmul_flops_per_second": rates, "lines": lines, "table": table}
            (ROOT / "experiments/results/bench-gpu.json").write_text(json.dumps(report, indent=1) + "\n")

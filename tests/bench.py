"""Time and memory of training steps and of evaluation, ours against transformers + peft on the same weights and rows.
Run by hand, alone on the machine: `python tests/bench.py SUITE ...`

    steps       a training step: one expression a row, the same with encoded pictures, seven expressions about a picture
    evaluation  24 new tokens for seven expressions about a picture
    depth       the ratios at fewer layers, carried on to the depth of the real model
    growth      our step as pictures and the number of expressions grow
    start       from an empty process to the end of the first step
    inference   reading a picture, and a token of the answer: Image-LoRA against LoRA merged into the weights
    gpu         steps and inference at the full 3B and 7B, on a GPU alone: see bench_gpu.py

Times are medians over rounds; in each round all sides run in turn, and a ratio is the median over the rounds of the
round's ratio, so that a machine whose speed drifts does not favour one side. A step is forward and backward; memory is
the highest level during a step above the level before it (weights, which both sides share, are there before).
The checkpoint is random, of the 3B's (or 7B's) width and vocabulary; on a CPU its depth is reduced to 12 decoder layers
and 10 vision blocks. Each suite writes results/bench-SUITE.json.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median

warnings.filterwarnings("ignore", "Failed to initialize NumPy")

import bench_gpu
import torch
from conftest import ROOT
from sides import (
    DEPTH,
    SHAPES,
    Floor,
    answering,
    build_checkpoint,
    image_lora,
    our_step,
    rows,
    their_step,
    transformers_inputs,
    transformers_side,
    with_updates,
)
from timing import against, measure, peak_above, wait
from torch.utils.flop_counter import FlopCounterMode

from data import Processor
from harness.encodings import encode_images
from imagelora import LoRA
from model import VLM

NEW_TOKENS = 24


# ------------------------------------------------------------------------------------------------------- measuring


def matmul_rate(args):
    """FLOP/s of a large matrix product in the dtype and on the device of the run."""
    n = 8192 if args.device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=args.device, dtype=args.dtype) for _ in range(2))
    times = measure({"matrix product": lambda: a @ b}, args.device, 10, memory=False)["matrix product"]["seconds"]
    return 2 * n**3 / median(times)


def flops_of(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# --------------------------------------------------------------------------------------------------------- the suites


def steps(args, vlm, processor, theirs):
    examples = rows(448, 7)
    one = processor(examples[:1]).to(args.device)
    encode_images(vlm, processor, examples[:1], gib=1)
    encoded, processor.encoded = processor(examples[:1]).to(args.device), {}
    seven, shared = processor(examples).to(args.device), processor(examples, share_images=True).to(args.device)
    adapter, lora, floor = (module.to(args.device) for module in (image_lora(vlm), LoRA(vlm.config), Floor()))
    token = vlm.config.image_token
    single, whole = (transformers_inputs(b, token) for b in (one, seven))

    first = measure(
        {
            "image-lora": lambda: our_step(vlm, adapter, one),
            "image-lora, picture encoded": lambda: our_step(vlm, adapter, encoded),
            "lora": lambda: our_step(vlm, lora, one),
            "floor": lambda: our_step(vlm, floor, one),
            "transformers + peft lora": lambda: their_step(theirs, single),
        },
        args.device,
        args.rounds,
    )
    second = measure(
        {
            "image-lora": lambda: our_step(vlm, adapter, shared),
            "transformers + peft lora": lambda: their_step(theirs, whole),
        },
        args.device,
        args.rounds,
    )
    rate, flops = matmul_rate(args), flops_of(lambda: our_step(vlm, adapter, one))
    return {
        "tokens": {"one": list(one.input_ids.shape), "seven": list(seven.input_ids.shape), "shared": list(shared.input_ids.shape)},
        "one expression a row": first,
        "seven expressions a picture": second,
        "ratios": {
            "one expression a row": against(first, "image-lora", "transformers + peft lora"),
            "one expression a row, picture encoded": against(first, "image-lora, picture encoded", "transformers + peft lora"),
            "seven expressions a picture": against(second, "image-lora", "transformers + peft lora"),
            "our LoRA, one expression a row": against(first, "lora", "transformers + peft lora"),
            "Image-LoRA against the frozen floor": against(first, "image-lora", "floor"),
            "Image-LoRA against our LoRA": against(first, "image-lora", "lora"),
        },
        "matrix product FLOP/s": rate,
        "step FLOPs": flops,
        "share of the matrix-product rate": flops / median(first["image-lora"]["seconds"]) / rate,
    }  # fmt: skip


def evaluation(args, vlm, processor, theirs):
    """Greedy text of a fixed length: no token ends it."""
    questions = [replace(e, answer=None) for e in rows(448, 7)]
    shared, alone = processor(questions, share_images=True).to(args.device), processor(questions).to(args.device)
    inputs, ends = transformers_inputs(alone, vlm.config.image_token), vlm.config
    vlm.config = replace(vlm.config, end_tokens=())
    how = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    theirs.eval()
    with torch.no_grad():
        results = measure(
            {
                "image-lora": lambda: vlm.generate(shared, NEW_TOKENS),
                "transformers": lambda: theirs.base_model.model.generate(**inputs, **how),
            },
            args.device,
            args.rounds,
        )
    theirs.train()
    vlm.config = ends
    name = "evaluation, seven expressions a picture"
    return {name: results, "ratios": {name: against(results, "image-lora", "transformers")}}


def depth(args, vlm, processor, theirs):
    """The parts of a step grow with the depth of decoder and encoder by a straight line each; three depths give it. All
    depths take turns in every round. Seven expressions are measured once only: they take minutes."""
    model = theirs.base_model.model.model
    stacks = [(vlm.model, "layers"), (vlm.visual, "blocks"), (model.language_model, "layers"), (model.visual, "blocks")]
    whole = [getattr(module, name) for module, name in stacks]
    config, depths = vlm.config, {"whole": (1, 1), "half the layers": (2, 1), "half the blocks": (1, 2)}
    examples = rows(448, 7)
    one, seven = processor(examples[:1]).to(args.device), processor(examples).to(args.device)
    shared = processor(examples, share_images=True).to(args.device)
    single, copies = (transformers_inputs(b, config.image_token) for b in (one, seven))

    def at(depth, step):
        """step(), with the models cut to a depth."""
        for (module, name), layers, share in zip(stacks, whole, depths[depth] * 2):
            setattr(module, name, layers[: len(layers) // share])
        vlm.config = replace(config, layers=len(vlm.model.layers))
        step()
        for (module, name), layers in zip(stacks, whole):
            setattr(module, name, layers)
        vlm.config = config

    def ours(batch):
        our_step(vlm, image_lora(vlm).to(args.device), batch)

    steps = {
        "one expression a row": (lambda: ours(one), lambda: their_step(theirs, single), args.rounds),
        "seven expressions a picture": (lambda: ours(shared), lambda: their_step(theirs, copies), 1),
    }
    report = {"seconds": {}, "estimated seconds at full depth": {}, "ratios": {}}
    for name, (mine, other, rounds) in steps.items():
        sides = {
            (d, side): (lambda d=d, f=f: at(d, f)) for d in depths for side, f in (("ours", mine), ("theirs", other))
        }
        results = measure(sides, args.device, rounds, memory=False, warm=rounds > 1)
        seconds = {key: median(result["seconds"]) for key, result in results.items()}
        report["seconds"][name] = {f"{d}, {side}": s for (d, side), s in seconds.items()}
        full = {}
        for side in ("ours", "theirs"):
            t = seconds["whole", side]
            a_layer = (t - seconds["half the layers", side]) / (args.layers - args.layers // 2)
            a_block = (t - seconds["half the blocks", side]) / (args.blocks - args.blocks // 2)
            layers, blocks = DEPTH[args.size]
            full[side] = t + (layers - args.layers) * a_layer + (blocks - args.blocks) * a_block
        report["estimated seconds at full depth"][name] = full
        report["ratios"][name] = {"time": full["ours"] / full["theirs"]}
    return report


def growth(args, vlm, processor, theirs):
    """Our step as the picture's side grows (one expression) and as expressions are added (448 pixels), once each."""
    adapter = image_lora(vlm).to(args.device)
    table = []
    for side, count in [(224, 1)] + [(s, 1) for s in (224, 448, 896, 1792)] + [(448, n) for n in (2, 4, 8, 16)]:
        batch = processor(rows(side, count), share_images=True).to(args.device)
        start = time.perf_counter()
        extra = peak_above(lambda b=batch: our_step(vlm, adapter, b), args.device)
        wait(args.device)
        seconds, visual = time.perf_counter() - start, len(batch.visual_index)
        table.append({"side": side, "expressions": count, "tokens": batch.input_ids.shape[1], "visual_tokens": visual})
        flops = adapter.flops(batch.input_ids.numel(), visual)
        table[-1] |= {"seconds": seconds, "bytes": extra, "adapter_flops": flops}
    del table[0]  # it brought the weights into memory
    return {"rows": table}


OURS = """
import time; start = time.perf_counter()
import sys; sys.path[:0] = ["tests", "."]
import torch; torch.set_num_threads(int(sys.argv[2]))
import bench
from model import VLM; from data import Processor
vlm = VLM.from_pretrained(sys.argv[1]); loaded = time.perf_counter()
batch = Processor.from_pretrained(sys.argv[1])(bench.rows(448, 1))
bench.our_step(vlm, bench.image_lora(vlm), batch)
print(loaded - start, time.perf_counter() - start)
"""
THEIRS = """
import time; start = time.perf_counter()
import sys; sys.path[:0] = ["tests", "."]
import torch; torch.set_num_threads(int(sys.argv[2]))
from peft import LoraConfig, get_peft_model
from transformers import Qwen2_5_VLForConditionalGeneration
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(sys.argv[1]); loaded = time.perf_counter()
targets = r"model\\.language_model\\..*\\.(q|k|v|o)_proj"
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets)).train()
import bench
from data import Processor
batch = Processor.from_pretrained(sys.argv[1])(bench.rows(448, 1))
bench.their_step(model, bench.transformers_inputs(batch, model.config.image_token_id))
print(loaded - start, time.perf_counter() - start)
"""


def start(args, folder):
    """Two empty processes in turn, float32 on the CPU; the file is in the system's cache for both."""
    seconds = {"image-lora": [], "transformers + peft lora": []}
    for counted in range(args.rounds + 1):
        for name, code in zip(seconds, (OURS, THEIRS)):
            command = [sys.executable, "-W", "ignore", "-c", code, str(folder), str(args.threads)]
            said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            if counted:
                seconds[name].append([float(s) for s in said.split()])
    ratios = {
        name: {"time": median(a[i] / b[i] for a, b in zip(*seconds.values()))}
        for i, name in enumerate(("until the model is loaded", "until the first step is done"))
    }
    return {"checkpoint_bytes": (folder / "model.safetensors").stat().st_size, "seconds": seconds, "ratios": ratios}


@torch.no_grad()
def inference(args, vlm, processor, theirs):
    """LoRA merged into the weights is the frozen network with other numbers in it: that is the side "LoRA, merged"."""
    batch = processor([replace(rows(448, 1)[0], answer=None)]).to(args.device)
    reading, writing = answering(vlm, batch, NEW_TOKENS)
    adapter, lora = image_lora(vlm).to(args.device), LoRA(vlm.config).to(args.device)
    updates = {"image-lora": adapter.updates, "lora, merged": {}, "lora, not merged": lora.updates}
    report = {"ratios": {}}
    for name, phase in {"reading": reading, f"writing {NEW_TOKENS} tokens": writing}.items():
        sides = {side: lambda u=u, phase=phase: with_updates(vlm, u, phase) for side, u in updates.items()}
        report[name] = measure(sides, args.device, 3 * args.rounds, memory=False)
        for side in ("image-lora", "lora, not merged"):
            report["ratios"][f"{name}, {side} against merged"] = against(report[name], side, "lora, merged")
    return report


SUITES = {
    "steps": steps,
    "evaluation": evaluation,
    "depth": depth,
    "growth": growth,
    "start": start,
    "inference": inference,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=[*SUITES, "gpu"])
    parser.add_argument("--size", choices=SHAPES, help="of the model (default: 3b; gpu: both)")
    parser.add_argument("--layers", type=int, help="decoder layers (12 on a CPU, else all)")
    parser.add_argument("--blocks", type=int, help="vision blocks (10 on a CPU, else all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the random checkpoint is kept (default: a temporary folder)")
    args = parser.parse_args()
    if "gpu" in args.suites:
        return bench_gpu.main([args.size] if args.size else list(SHAPES), args.device, 3 * args.rounds)
    args.size = args.size or "3b"
    on_gpu = args.device.type == "cuda"
    args.layers = args.layers or (DEPTH[args.size][0] if on_gpu else 12)
    args.blocks = args.blocks or (DEPTH[args.size][1] if on_gpu else 10)
    args.dtype = torch.bfloat16 if on_gpu else torch.float32
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory() as temporary:
        folder = build_checkpoint(args.folder or Path(temporary), args)
        vlm = processor = theirs = None
        for suite in args.suites:
            if suite == "start":
                report = start(args, folder)
            else:
                if vlm is None:
                    vlm, processor = (
                        VLM.from_pretrained(folder, args.dtype, args.device),
                        Processor.from_pretrained(folder),
                    )
                    processor.max_pixels = 1792**2
                if theirs is None and suite not in ("growth", "inference"):
                    theirs = transformers_side(folder, vlm, args)
                report = SUITES[suite](args, vlm, processor, theirs)
            about = {"size": args.size, "layers": args.layers, "blocks": args.blocks, "device": args.device.type}
            about |= {"dtype": str(args.dtype), "threads": args.threads, "rounds": args.rounds}
            about |= {"torch": torch.__version__, "python": platform.python_version()}
            about |= {"command": f"python tests/bench.py {suite}"}
            place = f"-{args.size}" if on_gpu else ""
            file = ROOT / f"experiments/results/bench-{suite}{place}.json"
            file.write_text(json.dumps(about | report, indent=1) + "\n")
            for name, ratio in report.get("ratios", {}).items():
                print(f"{suite:12}{name:48}" + "".join(f"{what} {value:.3f}   " for what, value in ratio.items()))
            for row in report.get("rows", []):
                print(row)


if __name__ == "__main__":
    main()

"""What the benchmarks compare, and how: our steps and those of transformers + peft, on the same weights and rows, in turn."""

import ctypes
import gc
import json
import random
import re
import time
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch import nn

from data import Example, Processor
from imagelora import ImageLoRA, LoRA
from model import VLM
from parts.backbones.checkpoint import read_preprocessor, read_tokenizer
from parts.backbones.qwen2_5_vl import Config
from parts.tasks.rows import GROUNDING_PROMPT

ROOT = Path(__file__).parent.parent
NEW_TOKENS = 24  # of an answer
PEFT = "transformers + peft lora"
SHAPES = {  # of the published models, and a tiny one: width, MLP, query heads, value heads, layers, vision blocks
    "3b": (2048, 11008, 16, 2, 36, 32),
    "7b": (3584, 18944, 28, 4, 28, 32),
    "tiny": (128, 352, 8, 4, 6, 4),
}


def raw_config(size, layers=None, blocks=None):
    """The parsed config.json of this shape; its tokens are those of the tiny model. None: all layers, all blocks."""
    width, mlp, heads, value_heads, all_layers, all_blocks = SHAPES[size]
    raw, blocks = json.loads((ROOT / "parts/tiny/config.json").read_text()), blocks or all_blocks
    raw |= {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers or all_layers}
    raw |= {"num_attention_heads": heads, "num_key_value_heads": value_heads, "tie_word_embeddings": size != "7b"}
    vision = {"depth": blocks, "out_hidden_size": width}
    vision["fullatt_block_indexes"] = [b for b in (7, 15, 23, 31) if b < blocks] or [blocks - 1]
    if size != "tiny":
        raw |= {"vocab_size": 151936, "max_position_embeddings": 128000}
        raw["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
        vision |= {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    raw["vision_config"] |= vision
    return raw


def random_models(raw, device, dtype):
    """(vlm, processor, transformers + peft) of a parsed config.json, made on the device. Random weights, which both models
    share: transformers' own are dropped."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config, tiny = replace(Config.from_dict(raw), end_tokens=()), ROOT / "parts/tiny"  # no token ends an answer
    with torch.device("meta"):
        vlm = VLM(config).to(dtype)
    vlm.to_empty(device=device).requires_grad_(False).eval()
    torch.manual_seed(0)
    for name, p in vlm.named_parameters():
        nn.init.normal_(p, std=p[0].numel() ** -0.5) if p.dim() > 1 else p.fill_(not name.endswith("bias"))
    with device:
        model = Qwen2_5_VLForConditionalGeneration._from_config(Qwen2_5_VLConfig.from_dict(raw), dtype=dtype)
    ours = dict(vlm.named_parameters())
    for name, p in model.named_parameters():
        p.data = ours[name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")].data
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=r"model\.language_model\..*\.(q|k|v|o)_proj")
    processor = Processor(config, read_tokenizer(tiny), read_preprocessor(tiny), max_pixels=1792**2)
    return vlm, processor, get_peft_model(model, lora).eval()  # nothing is dropped: LoRA's dropout is 0


def expressions(width, height, lengths, seed=0):
    """Examples about one image of random colours: an expression of each length, in words of one token."""
    cells = Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(8 * 8 * 3))
    image, box = cells.resize((width, height)), (width // 8, height // 4, width // 2, height - 9)
    return [Example([image], GROUNDING_PROMPT.format(" ".join(["the"] * n)), box) for n in lengths]


def transformers_inputs(batch, examples, image_token):
    """The rows of a Batch, one example each, as transformers takes them: every row brings its own copy of its image."""
    keys = [example.visuals[0].key for example in examples]
    images = batch.patches.split(batch.grids.prod(dim=1).tolist())  # each image of the batch once, in order
    order = [list(dict.fromkeys(keys)).index(key) for key in keys]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    inputs["pixel_values"] = torch.cat([images[i] for i in order])
    inputs["image_grid_thw"] = batch.grids[order].to(batch.input_ids.device)
    inputs["mm_token_type_ids"] = (batch.input_ids == image_token).int()
    return inputs | ({"labels": batch.labels} if len(batch.answer_ids) else {})


def image_lora(vlm):
    """A quarter of the heads, one in every second layer from the first: the backward pass runs through all layers."""
    return ImageLoRA(vlm.config, {layer: [layer // 2 % 2] for layer in range(0, vlm.config.layers, 2)}).to(vlm.device)


def floor():
    """A zero that requires grad, added to V of the lowest adapted layer: the frozen model's share of a step."""
    module = nn.ParameterList([torch.zeros(())])
    module.updates = {(0, "v"): lambda v, x, visual_index: v + module[0].to(v.dtype)}
    return module


def with_updates(vlm, updates, run):
    """run() with the updates {(layer, projection): module} attached for its duration."""
    for (layer, projection), update in updates.items():
        vlm.model.layers[layer].self_attn.updates[projection].append(update)
    try:
        return run()
    finally:
        for layer, projection in updates:
            vlm.model.layers[layer].self_attn.updates[projection].clear()


def our_step(vlm, adapter, batch):
    """One forward and backward pass with the updates of `adapter`."""
    with_updates(vlm, adapter.updates, lambda: vlm.loss(batch).backward())
    adapter.zero_grad(set_to_none=True)


def their_step(model, inputs):
    model(**inputs, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


def step_sides(models, examples):
    """({name: a step on the examples}, {name: its tokens without padding}). Ours share a row where they share an image."""
    (vlm, processor, theirs), device = models, models[0].device
    ours, apart = processor(examples, share_images=True).to(device), processor(examples).to(device)
    inputs = transformers_inputs(apart, examples, vlm.config.image_token)
    modules = {"image-lora": image_lora(vlm), "lora": LoRA(vlm.config), "floor": floor()}
    runs = {name: partial(our_step, vlm, module.to(device), ours) for name, module in modules.items()}
    tokens = dict.fromkeys(runs, int(ours.attention_mask.sum())) | {PEFT: int(apart.attention_mask.sum())}
    return runs | {PEFT: partial(their_step, theirs, inputs)}, tokens


@torch.no_grad()
def answers(vlm, processor, questions, rounds):
    """Prefill and decoding. LoRA merged into the weights is the frozen network with other numbers in it."""
    batch = processor(questions, share_images=True).to(vlm.device)
    prefill = partial(vlm.prefill, batch, NEW_TOKENS)
    decoding = partial(decode_again, vlm, prefill())
    updates, report = {"image-lora": image_lora(vlm).updates, "merged": {}}, {"questions": len(questions), "ratios": {}}
    for name, run in (("prefill", prefill), (f"decoding {NEW_TOKENS} tokens", decoding)):
        sides = {side: partial(with_updates, vlm, u, run) for side, u in updates.items()}
        report[name] = measure(sides, vlm.device, rounds, memory=False)
        report["ratios"][f"{name}, image-lora against merged"] = against(report[name], *updates)
    return report


def decode_again(vlm, state):
    """Decode from what prefill returned, which stays as it was."""
    *others, cache = state
    vlm.decode(*others, copy(cache), NEW_TOKENS)


def seconds_of(run, device):
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def peak_above(run, device):
    """Bytes by which memory rises during run()."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed goes back to the system
    process = Path("/proc/self")
    (process / "clear_refs").write_text("5")  # the highest level starts again from here
    before = re.search(r"VmRSS:\s+(\d+)", (process / "status").read_text())[1]
    run()
    return 1024 * (int(re.search(r"VmHWM:\s+(\d+)", (process / "status").read_text())[1]) - int(before))


def measure(sides, device, rounds, memory=True):
    """{name: run} -> {name: {"seconds": [one a round], "median": ..., "bytes": ...}}. Each side first runs once uncounted
    and, if asked, once for its memory. In every round all sides run in turn."""
    results = {name: {"seconds": []} for name in sides}
    for name, run in sides.items():
        run()
        results[name] |= {"bytes": peak_above(run, device)} if memory else {}
    for _ in range(rounds):
        for name, run in sides.items():
            results[name]["seconds"].append(seconds_of(run, device))
    return {name: result | {"median": median(result["seconds"])} for name, result in results.items()}


def against(results, ours, theirs):
    """Median over the rounds of ours / theirs, and the ratio of memory."""
    ratio = {"time": median(a / b for a, b in zip(results[ours]["seconds"], results[theirs]["seconds"]))}
    if "bytes" in results[ours]:
        ratio["memory"] = results[ours]["bytes"] / results[theirs]["bytes"]
    return ratio

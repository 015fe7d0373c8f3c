"""The two sides of the benchmark: our steps, and those of transformers + peft on the same weights and rows."""

import json

import torch
from conftest import REAL_PATCHES, REAL_PREPROCESSOR, ROOT, picture
from torch import nn

from data import Example
from imagelora import ImageLoRA
from model import VLM
from parts.backbones.qwen2_5_vl import Config
from parts.tasks.rows import GROUNDING_PROMPT

SHAPES = {  # of the published models; the tokens are those of the tiny model, in the full vocabulary
    "3b": {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4},
}
DEPTH = {"3b": (36, 32), "7b": (28, 32)}  # decoder layers, vision blocks
VISION = {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
EXPRESSIONS = (
    "the large ring", "the red star", "the square left of the circle", "the small blue cross", "the triangle",
    "the ring above the yellow star", "the black thing",
)  # fmt: skip
NEW_TOKENS = 24


def raw_config(size, layers, blocks):
    """The parsed config.json of this shape."""
    raw = json.loads((ROOT / "parts/tiny/config.json").read_text()) | SHAPES[size] | {"vocab_size": 151936}
    raw |= {"num_hidden_layers": layers, "tie_word_embeddings": size == "3b", "max_position_embeddings": 128000}
    raw["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
    full = [b for b in (7, 15, 23, 31) if b < blocks] or [blocks - 1]
    raw["vision_config"] |= VISION | REAL_PATCHES | {"depth": blocks, "fullatt_block_indexes": full}
    raw["vision_config"]["out_hidden_size"] = raw["hidden_size"]
    return raw


def build_checkpoint(folder, args):
    """Random weights of the asked shape, written once, and a processor for them."""
    if not (folder / "model.safetensors").exists():
        raw = raw_config(args.size, args.layers, args.blocks)
        VLM.from_scratch(Config.from_dict(raw), dtype=args.dtype).save(folder)
    (folder / "tokenizer.json").write_bytes((ROOT / "parts/tiny/tokenizer.json").read_bytes())
    preprocessor = json.loads((ROOT / "parts/tiny/preprocessor_config.json").read_text()) | REAL_PREPROCESSOR
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def rows(side, count):
    """`count` examples about one picture of side x side pixels."""
    shown = picture(side, side)
    box = (side // 8, side // 4, side // 2, side - 9)
    return [
        Example([shown], GROUNDING_PROMPT.format(EXPRESSIONS[i % len(EXPRESSIONS)]), box, source=str(i))
        for i in range(count)
    ]


def image_lora(vlm):
    """A quarter of the heads, one in every second layer from the first: the backward pass runs through all layers."""
    return ImageLoRA(vlm.config, {layer: [layer // 2 % 2] for layer in range(0, vlm.config.layers, 2)})


class Floor(nn.Module):
    """A zero that requires grad, added to V of the lowest adapted layer: the frozen model's share of a step."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
        self.updates = {(0, "v"): self}

    def forward(self, v, x, visual_index):
        return v + self.zero.to(v.dtype)


def with_updates(vlm, updates, run):
    """run() with the updates {(layer, path): module} in their places for its duration."""
    for (layer, path), update in updates.items():
        vlm.model.layers[layer].self_attn.adapters[path].append(update)
    try:
        run()
    finally:
        for layer, path in updates:
            vlm.model.layers[layer].self_attn.adapters[path].clear()


def our_step(vlm, adapter, batch):
    """One forward and backward pass with the updates of `adapter`."""
    with_updates(vlm, adapter.updates, lambda: vlm.loss(batch).backward())
    for p in adapter.parameters():
        p.grad = None


def answering(vlm, batch, count):
    """(reading, writing) of a batch of questions: the prefill, and the decoding of `count` tokens after it."""
    _, position, visible, cache = vlm.prefill(batch, count)
    token = batch.input_ids.flatten()[batch.answer_index]  # the last of each question

    def writing():
        for _ in range(count):
            vlm.decode_one_token(token, position + 1, visible, cache)
            cache.length -= 1

    return lambda: vlm.prefill(batch, count), writing


def transformers_side(folder, vlm, args):
    """transformers' model of a checkpoint on our tensors, with peft's LoRA on q, k, v, o."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    return with_peft(Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=args.dtype), vlm)


def with_peft(model, vlm):
    """transformers' model, of whatever weights, on our tensors (its own are dropped), with peft's LoRA on q, k, v, o."""
    from peft import LoraConfig, get_peft_model

    ours = dict(vlm.named_parameters())
    for name, p in model.named_parameters():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        p.data = ours[name].data
    model.to(vlm.device)
    targets = r"model\.language_model\..*\.(q|k|v|o)_proj"
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets)).train()


def transformers_inputs(batch, image_token):
    """The same rows as transformers takes them: every row brings its own copy of the picture."""
    each = len(batch.input_ids) // len(batch.grids)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "pixel_values": batch.patches.repeat(each, 1),
        "image_grid_thw": batch.grids.repeat(each, 1).to(batch.input_ids.device),
        "mm_token_type_ids": (batch.input_ids == image_token).int(),
    }
    return inputs | ({"labels": batch.labels} if len(batch.answer_ids) else {})


def their_step(model, inputs):
    model(**inputs, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)

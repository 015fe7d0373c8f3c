"""The frozen model and its processor, as the flags ask for them."""

import json
from pathlib import Path

import torch

from data import Processor
from harness import report
from harness.arguments import MAX_PIXELS
from harness.processes import choose_device
from model import VLM
from parts.backbones.layers import compute_twice
from parts.files import InputError, read_metadata, reading

TINY = Path(__file__).parent.parent / "parts/tiny"


def load_model(args):
    """(vlm, processor) of --model: a checkpoint folder, a hub id, or "tiny". The model is frozen. Images are as large as
    the flags say, or as the adapter of --adapter was trained with."""
    folder, trained_with = TINY if args.model == "tiny" else args.model, notes(args.adapter)
    min_pixels = args.min_pixels or trained_with.get("min_pixels")
    max_pixels = args.max_pixels or trained_with.get("max_pixels", MAX_PIXELS)
    processor = Processor.from_pretrained(folder, min_pixels, max_pixels)
    device, dtype = choose_device(args.device, args.dtype)
    if args.method == "full":
        dtype = torch.float32  # the weights themselves are trained, and bfloat16 would round small steps away
    vlm = VLM.from_pretrained(folder, dtype, device, args.quantize)
    if args.checkpointing:
        compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
    if dtype == torch.float16:
        refuse_infinite(vlm)
    report.show_model(args.model, vlm)
    return vlm, processor


def notes(adapter):
    """What train.py wrote into an adapter file: the model, and how large the images were. {} without one."""
    if adapter is None:
        return {}
    with reading(adapter, "an adapter"):
        content = json.loads(read_metadata(adapter).get("notes", "{}"))
        if any(not 1 <= content[name] < 2**40 for name in content.keys() & {"min_pixels", "max_pixels"}):
            raise ValueError("its limits of image sizes make no sense")
        return content


def base_of(adapter):
    """The model that an adapter file names as its base. Raises InputError if it names none."""
    model = notes(adapter).get("model")
    if not model:
        raise InputError(f"{adapter or 'which model?'}: add --model, a checkpoint folder, a hub id or tiny")
    return model


def refuse_infinite(vlm):
    """In float16, whose largest number is 65,504, every layer's output is checked: an infinite one ends the run with the
    name of the layer. bfloat16 and float32 reach 3e38 and need no check."""

    def check(layer, inputs, output):
        if not output.isfinite().all():
            raise InputError(f"{names[layer]}: a value is too large for float16; use --dtype bfloat16 or float32")

    names = {module: name for name, module in vlm.named_modules()}
    for layer in [*vlm.visual.blocks, *vlm.model.layers]:
        layer.register_forward_hook(check)

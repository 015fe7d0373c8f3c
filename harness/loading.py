"""The device, the frozen model and its processor, as the flags ask for them."""

import os
from pathlib import Path

import torch

from data import Processor
from harness import report
from harness.arguments import MAX_PIXELS
from model import VLM
from parts.backbones.layers import compute_twice
from parts.files import InputError, parse_json, read_metadata, reading

TINY = Path(__file__).parent.parent / "parts/tiny"


def load_processor(args):
    """The processor of --model: a checkpoint folder, a hub id, or "tiny". Without --model, --adapter names it."""
    notes = adapter_notes(args.adapter) if args.adapter else {}
    if args.adapter and "model" not in args.given:
        args.model = notes["model"]
        if not args.model:
            raise InputError(f"{args.adapter}: does not name its base; add --model, a checkpoint folder, a hub id or tiny")
    min_pixels = args.min_pixels or notes.get("min_pixels")
    max_pixels = args.max_pixels or notes.get("max_pixels", MAX_PIXELS)
    return Processor.from_pretrained(folder_of(args.model), min_pixels, max_pixels)


def load_model(args):
    """The frozen model of --model, after load_processor."""
    device, dtype = choose_device(args.device, args.dtype)
    if args.method == "full":
        dtype = torch.float32  # the weights themselves are trained, and bfloat16 would round small steps away
    vlm = VLM.from_pretrained(folder_of(args.model), dtype, device, args.quantize)
    vlm.source = args.model  # an adapter's file names it
    if args.checkpointing:
        compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
    report.show_model(args.model, vlm)
    return vlm


def folder_of(model):
    return TINY if model == "tiny" else model


def choose_device(name, dtype):
    """--device and --dtype -> (device, dtype). By default bfloat16 on a GPU that computes in it, float32 elsewhere.
    Raises InputError for a device that this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index)
            torch.cuda.set_device(device)  # before anything else, or every process takes memory of the first GPU too
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, AttributeError, ImportError):  # torch's words for "no such device here"
        raise InputError(f"--device {name}: there is no such device here; use --device cpu") from None
    if dtype == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if native else "float32"
    return device, getattr(torch, dtype)


def adapter_notes(file):
    """What an adapter's file notes: model (its base, or None), min_pixels and max_pixels (of its training), if it does."""
    with reading(file, "an adapter"):
        metadata = read_metadata(file)
        notes = parse_json(metadata.get("notes", "{}").encode())
        limits = {name: int(notes[name]) for name in notes.keys() & {"min_pixels", "max_pixels"}}
        return limits | {"model": metadata.get("model")}

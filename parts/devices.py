"""The device that a run computes on, the data type, and how much memory it took."""

import os
import sys
from contextlib import suppress

import torch

from parts.files import InputError


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


def peak_memory(device):
    """The largest number of bytes in use so far: of the GPU's allocator, or of this process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

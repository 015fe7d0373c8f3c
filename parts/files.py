"""Files, read completely and written completely: JSON, text, safetensors."""

import ctypes
import json
import math
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import safe_open


class InputError(ValueError):
    """Something the user gave is wrong: one line that names it and says what to do. train.py exits with code 2."""


@contextmanager
def reading(source, what):
    """Turns any error in a user's file into one line, an InputError "SOURCE: not WHAT (why)".
    source: the file, and the line in it; what: the content that is expected."""
    try:
        yield
    except InputError:  # it has its line
        raise
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except Exception as error:  # a file may hold anything, and each library has its own errors
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise InputError(f"{source}: not {what} ({kind}{' '.join(str(error).split()):.200})") from error


@contextmanager
def writing(file, *also):
    """Yields FILE.part to write to. It becomes `file` when it is complete: whatever stops the program, the old file or the
    new one is there. The folder is made. A full disk is an InputError; `also`: other kinds of errors that mean it."""
    part = Path(f"{file}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, file)
    except (OSError, *also) as error:
        raise InputError(f"{file}: cannot be written ({error}); what was there before is unchanged") from None
    finally:
        with suppress(OSError):
            part.unlink()


def parse_json(content, pairs=dict):
    """JSON in bytes -> plain data. Raises ValueError, also for NaN and 1e999 (that of int): a run would end later."""
    finite = {"parse_constant": int, "parse_float": lambda text: (float if math.isfinite(float(text)) else int)(text)}
    return json.loads(content.decode("utf-8-sig"), object_pairs_hook=pairs, **finite)


def read_json(file):
    with reading(file, "JSON"):
        return parse_json(Path(file).read_bytes())


def write_text(file, text):
    with writing(file) as part:
        part.write_text(text, encoding="utf-8")


def read_safetensors(file, device="cpu"):
    """Yields (name, tensor) of a safetensors file of finite numbers; on the CPU they are views of the mapped file."""
    with reading(file, "a complete safetensors file; copy it again"), safe_open(str(file), "pt", str(device)) as f:
        for name, tensor in ((name, f.get_tensor(name)) for name in f.offset_keys()):  # in the order of the file
            if tensor.itemsize > 1 and tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):  # NaN too
                raise ValueError(f"{name} holds NaN or infinity")
            yield name, tensor


def read_metadata(file):
    """The {key: text} that a safetensors file carries together with its tensors."""
    with reading(file, "a complete safetensors file"), safe_open(str(file), framework="pt") as f:
        return f.metadata() or {}


def write_safetensors(file, tensors, metadata):
    """Writes {name: tensor} and {key: text}: size of the header, header in JSON, tensors. (safetensors' own needs numpy.)"""
    tensors = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # large items first: aligned
    header, end = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name, t in tensors:
        dtype = str(t.dtype).removeprefix("torch.").replace("float", "F").replace("int", "I").upper()  # BF16, F32, I64
        header[name] = {"dtype": dtype, "shape": list(t.shape), "data_offsets": [end, end := end + t.nbytes]}
    text = (text := json.dumps(header).encode()) + b" " * (-len(text) % 8)
    with writing(file) as part, open(part, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for t in (t.detach().cpu().contiguous() for _, t in tensors):  # one after another
            f.write((ctypes.c_char * t.nbytes).from_address(t.data_ptr()))  # its memory as it is

"""The ground floor: files, read completely and written completely. JSON, text, safetensors.

Everything may use this file. A file that is being written has the ending ".part"; it gets its name when it is complete,
so whatever stops a program, the old file or the new one is there.
"""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file

# What a terminal obeys instead of showing it: all control characters but the new line and the tab, and those that turn
# the direction of writing. Shown, an escape is the four characters \x1b.
OBEYED = [*range(9), *range(11, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
SHOWN = {code: repr(chr(code))[1:-1] for code in OBEYED}


class InputError(ValueError):
    """Something the user gave is wrong: one line that names it and says what to do. train.py exits with code 2."""

    def __str__(self):  # names of files and values of rows are in it, which may be anything
        line = super().__str__().translate(SHOWN).replace("\n", " ")
        return line if len(line) < 2000 else f"{line[:1500]} ... {line[-400:]}"


def read_json(file):
    """Parse a JSON file. Raises InputError, naming it, if it is missing or broken."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8-sig"))  # with or without a byte-order mark
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None


def write_text(file, text):
    """Write a text file; the old one stays until the new one is complete."""
    part = Path(f"{file}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def open_safetensors(file, device="cpu"):
    """Raises InputError, naming the file, if it is missing or broken."""
    try:
        return safe_open(str(file), framework="pt", device=str(device))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except SafetensorError as error:
        raise InputError(f"{file}: not a complete safetensors file ({error}); copy or download it again") from None


def read_safetensors(file, device="cpu"):
    """Yield (name, tensor) of a safetensors file; on the CPU the tensors are views of the mapped file."""
    with open_safetensors(file, device) as f:
        for name in f.offset_keys():  # in the order of the file
            yield name, f.get_tensor(name)


def read_metadata(file):
    """The {key: text} that a safetensors file carries together with its tensors."""
    with open_safetensors(file) as f:
        return f.metadata() or {}


def write_safetensors(file, tensors, metadata):
    """Write {name: tensor} and {key: text}; the old file stays until the new one is complete.

    `safetensors.torch.save_file` would do, but imports numpy, which this project does without.
    """
    kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}  # alive until written
    specs = {
        name: TensorSpec(
            dtype=str(t.dtype).removeprefix("torch."),
            shape=list(t.shape),
            data_ptr=t.data_ptr(),
            data_len=t.numel() * t.element_size(),
        )
        for name, t in kept.items()
    }
    part = Path(f"{file}.part")
    serialize_file(specs, str(part), metadata)
    sort_metadata(part)
    part.chmod(0o644)  # it is written readable to its owner only
    os.replace(part, file)


def sort_metadata(file):
    """The library writes the metadata in an order that changes from process to process. Sorted, and as long as before,
    they make equal contents equal files, byte for byte."""
    with open(file, "r+b") as f:
        size = int.from_bytes(f.read(8), "little")  # the layout: size of the header, header in JSON, tensors
        header = json.loads(f.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, f"{file}: a header of {len(text)} bytes does not fit in {size}"
        f.seek(8)
        f.write(text.ljust(size))

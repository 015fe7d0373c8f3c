"""The ground floor: files, read completely and written completely. JSON, text, safetensors.

Everything may use this file. A file that is being written has the ending ".part"; it gets its name when it is complete,
so whatever stops a program, the old file or the new one is there. What is read may be anything: `reading` makes one line
of whatever is wrong with it.
"""

import ctypes
import json
import os
import zlib
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from boundary import InputError, parse_json, reading, writing

MB = 2**20
SETTINGS, ROWS = 64 * MB, 2048 * MB  # the largest file that is read: of settings, of a data set's rows


def read_bytes(file, most=SETTINGS):
    """The content of a file. Raises InputError, naming it, if it is missing or larger than `most` bytes."""
    with reading(file, f"a file of at most {most // MB} MB"):
        if not Path(file).is_file():  # nor a folder, nor a device without end
            raise InputError(f"{file}: no such file")
        if (size := os.path.getsize(file)) > most:
            raise ValueError(f"it has {size // MB} MB")
        return Path(file).read_bytes()


def read_json(file, most=SETTINGS):
    """Parse a JSON file. Raises InputError, naming it, if it is missing, too large or broken."""
    with reading(file, "JSON"):
        return parse_json(read_bytes(file, most))


def write_text(file, text):
    """Write a text file; the old one stays until the new one is complete."""
    with writing(file) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def open_safetensors(file, device="cpu"):
    """Raises InputError, naming the file, if it is missing or broken, now or while it is read."""
    with reading(file, "a complete safetensors file; copy or download it again", SafetensorError):
        if not os.path.isfile(file):
            raise InputError(f"{file}: no such file")
        with open(file, "rb") as f:
            if (size := int.from_bytes(f.read(8), "little")) > 16 * MB:
                raise ValueError(f"its header is said to have {size} bytes")
        with safe_open(str(file), framework="pt", device=str(device)) as f:
            yield f


def read_safetensors(file, device="cpu"):
    """Yield (name, tensor) of a safetensors file; on the CPU the tensors are views of the mapped file. Raises InputError
    for a tensor that holds NaN or infinity."""
    with open_safetensors(file, device) as f:
        for name in f.offset_keys():  # in the order of the file
            tensor = f.get_tensor(name)
            if tensor.is_floating_point() and tensor.itemsize > 1 and tensor.numel():
                low, high = tensor.aminmax()  # NaN if there is one
                if not (low.isfinite() and high.isfinite()):
                    raise InputError(f"{file}: {name} holds NaN or infinity; copy or train it again")
            yield name, tensor


def read_metadata(file):
    """The {key: text} that a safetensors file carries together with its tensors. Raises InputError if the file is not as
    this program wrote it."""
    with open_safetensors(file) as f:
        metadata = f.metadata() or {}
        said = metadata.pop("checksum", None)  # other programs write none
        if said and said != checksum({name: f.get_tensor(name) for name in f.offset_keys()}, metadata):
            raise ValueError("its checksum does not fit: it was damaged or changed")
        return metadata


def checksum(tensors, metadata):
    """Of names, shapes, numbers and metadata: eight digits. tensors: on the CPU, contiguous."""
    crc = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name, t in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {t.dtype} {list(t.shape)}".encode(), crc)
        crc = zlib.crc32(memory(t), crc)
    return f"{crc:08x}"


def memory(tensor):
    """The bytes of a tensor, as they are (without numpy, which this project does without)."""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


def write_safetensors(file, tensors, metadata):
    """Write {name: tensor} and {key: text}, with a checksum: equal contents make equal files, byte for byte."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))  # large items first: they are aligned
    metadata = metadata | {"checksum": checksum(tensors, metadata)}

    # The layout: size of the header, header in JSON, tensors.
    header, end = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name, t in tensors.items():
        dtype = str(t.dtype).removeprefix("torch.").replace("float", "F").replace("int", "I").upper()  # BF16, F32, I64
        header[name] = {"dtype": dtype, "shape": list(t.shape), "data_offsets": [end, end := end + t.nbytes]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(file) as part, open(part, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            f.write(memory(t))

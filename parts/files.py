"""The ground floor: files, read completely and written completely. JSON, text, safetensors.

Everything may use this file. What is read may be anything: `reading` makes one line of whatever is wrong with it. What is
written has the ending ".part" until it is complete, so whatever stops a program, the old file or the new one is there.
"""

import ctypes
import json
import os
import zlib
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

BROKEN = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, SafetensorError)  # all that is raised
BROKEN += (ArithmeticError, RecursionError, MemoryError, StopIteration)  # where a file is not what it should be


class InputError(ValueError):
    """Something the user gave is wrong: one line that names it and says what to do. train.py exits with code 2."""


@contextmanager
def reading(source, what, *also):
    """Around all that reads a user's file. Whatever goes wrong becomes an InputError, "SOURCE: not WHAT (why)".
    source: the file, and the place in it; what: what should be there; also: further kinds of errors."""
    try:
        yield
    except InputError:  # says it already
        raise
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except (*BROKEN, *also) as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise InputError(f"{source}: not {what} ({kind}{' '.join(str(error).split()):.200})") from None


@contextmanager
def writing(file, *also):
    """Yield FILE.part to write to; it becomes `file` when it is complete, and is gone if that fails: what a full or
    read-only disk refuses (`also`: other kinds of errors that mean it) is an InputError. The folder is made."""
    part = Path(f"{file}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, file)
    except (OSError, *also) as error:
        raise InputError(f"{file}: cannot be written ({error}); what was there before is unchanged") from None
    finally:
        part.unlink(missing_ok=True)


def parse_json(content):
    """JSON in bytes -> plain data. Raises ValueError, also for what would end a run later: NaN, half a surrogate pair."""
    value = json.loads(content.decode("utf-8-sig"), parse_constant=int)  # ValueError for "NaN", "Infinity"
    if b"\\ud" in content.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json(file, most=2**26):
    """Parse a JSON file. Raises InputError, naming it, if it is missing, broken or larger than `most` bytes."""
    with reading(file, f"JSON of at most {most >> 20} MB"), open(file, "rb") as f:
        if len(content := f.read(most + 1)) > most:
            raise ValueError("it is larger")
        return parse_json(content)


def write_text(file, text):
    """Write a text file; the old one stays until the new one is complete."""
    with writing(file) as part:
        part.write_text(text, encoding="utf-8")


def read_safetensors(file, device="cpu"):
    """Yield (name, tensor) of a safetensors file; on the CPU the tensors are views of the mapped file."""
    what = "a complete safetensors file; copy or download it again"
    with reading(file, what), safe_open(str(file), framework="pt", device=str(device)) as f:
        for name in f.offset_keys():  # in the order of the file
            yield name, f.get_tensor(name)


def read_metadata(file):
    """The {key: text} that a safetensors file carries together with its tensors, once its checksum is checked."""
    with reading(file, "a complete safetensors file"), safe_open(str(file), framework="pt") as f:
        metadata, tensors = f.metadata() or {}, {name: f.get_tensor(name) for name in f.offset_keys()}
        if metadata.pop("checksum", None) not in (None, checksum(metadata, tensors)):  # other programs write none
            raise ValueError("its checksum does not fit: it was damaged or changed")
        return metadata


def checksum(metadata, tensors):
    """Eight digits of metadata, names, shapes and numbers."""
    crc = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name, t in sorted(tensors.items()):
        crc = zlib.crc32(memory(t), zlib.crc32(f"{name} {t.dtype} {list(t.shape)}".encode(), crc))
    return f"{crc:08x}"


def memory(tensor):
    """The bytes of a contiguous tensor on the CPU, as they are (without numpy, which this project does without)."""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


def write_safetensors(file, tensors, metadata):
    """Write {name: tensor} and {key: text}, with a checksum: equal contents make equal files, byte for byte."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))  # large items first: they are aligned
    metadata = dict(sorted(metadata.items())) | {"checksum": checksum(metadata, tensors)}
    header, end = {"__metadata__": metadata}, 0
    for name, t in tensors.items():
        dtype = str(t.dtype).removeprefix("torch.").replace("float", "F").replace("int", "I").upper()  # BF16, F32, I64
        header[name] = {"dtype": dtype, "shape": list(t.shape), "data_offsets": [end, end := end + t.nbytes]}
    text = json.dumps(header).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    with writing(file) as part, open(part, "wb") as f:  # the layout: size of the header, header in JSON, tensors
        f.write(len(text).to_bytes(8, "little") + text)
        f.writelines(memory(t) for t in tensors.values())

"""Under the ground floor: what comes in. Whatever is wrong with a user's file, and whatever the disk refuses, becomes one line
that names it; what is read is plain data."""

import json
import math
import os
import re
import zlib
from contextlib import contextmanager
from pathlib import Path

BROKEN = (  # all that reading a file that is not what it should be is known to raise
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError, StopIteration),
)


# What a terminal obeys instead of showing it: all control characters but the new line and the tab, and those that turn
# the direction of writing. Shown, an escape is the four characters \x1b.
OBEYED = [*range(9), *range(11, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
SHOWN = {code: repr(chr(code))[1:-1] for code in OBEYED}


class InputError(ValueError):
    """Something the user gave is wrong: one line that names it and says what to do. train.py exits with code 2."""

    def __str__(self):  # names of files and values of rows are in it, which may be anything
        line = super().__str__().translate(SHOWN).replace("\n", " ")
        return line if len(line) < 2000 else f"{line[:1500]} ... {line[-400:]}"


@contextmanager
def reading(source, what, *also):
    """Around all that reads a user's file. Whatever goes wrong becomes an InputError, "SOURCE: not WHAT (why)".

    source: the file, and the place in it; what: what should be there; also: further kinds of errors."""
    try:
        yield
    except InputError:  # says it already
        raise
    except (*BROKEN, *also) as error:
        raise InputError(f"{source}: not {what} ({in_short(error)})") from None


@contextmanager
def changing(file, *also):
    """Around all that changes a file or folder. What a full or read-only disk refuses becomes an InputError."""
    try:
        yield
    except (OSError, *also) as error:
        raise InputError(f"{file}: cannot be written ({in_short(error)}); what was there before is unchanged") from None


@contextmanager
def writing(file, *also):
    """Yield FILE.part to write to. It becomes `file` when it is complete, and is gone if that fails. The folder is made."""
    part = Path(f"{file}.part")
    with changing(file, *also):
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with open(part, "r+b") as written:
                os.fsync(written.fileno())  # on the disk, before the name changes: the power may fail
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)


def in_short(error):
    """Kind and reason of an error in one short line."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return f"{kind}{reason:.200}"


# -- plain data


def parse_json(content):
    """JSON in bytes, with or without a byte-order mark -> plain data. Raises ValueError, also for what would end a run
    later: a number that is not finite, half a surrogate pair (no file can hold it), nesting."""
    large = re.search(rb"[eE]\+?\d{3}|\d{300}", content)  # only then are numbers looked at: that takes time
    numbers = dict.fromkeys(("parse_int", "parse_float"), finite) if large else {}
    value = json.loads(content.decode("utf-8-sig"), parse_constant=finite, **numbers)
    if re.search(rb"\\u[dD][89a-fA-F]", content):
        json.dumps(value, ensure_ascii=False).encode()
    return shallow(value)


def finite(digits):
    number = int(digits) if digits.lstrip("-").isdigit() else float(digits)
    if not math.isfinite(number):  # OverflowError for an integer that no float can hold
        raise ValueError(f"{digits:.20} is not a finite number")
    return number


def shallow(value):
    """The same value. Raises ValueError if lists and dicts are nested deeper than 100, or hold themselves."""
    level = [[value]]
    for _ in range(101):
        inside = (v.values() if isinstance(v, dict) else v for v in level)
        level = {id(v): v for values in inside for v in values if isinstance(v, (dict, list))}.values()
        if not level:
            return value
    raise ValueError("nested deeper than 100")


def sealed(value):
    """A dict of plain data with the checksum of what is in it, to be written as JSON."""
    return value | {"checksum": f"{zlib.crc32(json.dumps(value).encode()):08x}"}


def unsealed(value):
    """The dict that was sealed; one without a checksum, made by hand, as it is. Raises ValueError if it was changed."""
    content = {key: value[key] for key in value if key != "checksum"}
    if "checksum" in value and value != sealed(content):
        raise ValueError(
            "its checksum does not fit: it was damaged or changed; without its checksum it is taken as it is"
        )
    return content


def check_number(name, value, kind, least, most):
    """Raises ValueError unless `value` is a number of this kind (a float may be an integer) within these limits."""
    if type(value) not in (int, kind) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.60}, not a number ({kind.__name__}) from {least:g} to {most:g}")

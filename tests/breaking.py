"""Ways to break a file, seeded, and the attack with them: what the tests of broken files share."""

import copy
import json
import os
import random
import time

from parts.files import InputError

TIMES = 10 if os.environ.get("IMAGELORA_ATTACKS") else 1
SECONDS = 2  # of the processor, for one input; the usual one takes some milliseconds
HOSTILE = (None, True, -1, 0, 1.5, 10**400, 1e308, float("nan"), "", "x", "\ud800", "a" * 10**5, "../../etc/passwd")
HOSTILE += ([], {}, [[]], ["x"], {"a": 1}, [-1] * 4, [1e308] * 4, "\0")


def broken_bytes(content, draw):
    """The content with one to three places changed."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        a, b = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        b = min(b, a + draw.choice((1, 2, 8, 100, len(content))))
        way = draw.randrange(8)
        if way == 0:
            del content[a:]
        elif way == 1:
            del content[a:b]
        elif way == 2 and a < len(content):
            content[a] ^= 1 << draw.randrange(8)
        elif way == 3:
            content[a:b] = draw.randbytes(b - a)
        elif way == 4:
            content[a:a] = content[a:b]
        elif way == 5:
            content[a:a] = draw.choice(
                (b"[" * 10**5, b'{"a":' * 10**4, b"9" * 400, b"1e999", b"NaN", b"\xff\xfe", b"\0", b'"')
            )
        elif way == 6:
            content[a : a + 8] = (2 ** draw.choice((31, 40, 63)) - 1).to_bytes(8, "little")
        else:
            content[a:b] = b"\xf0\x9f\x98" + b"\\ud800"
    return bytes(content)


def broken_json(value, draw):
    """The plain data with one value replaced, or one key or item taken away, doubled or renamed."""
    value = copy.deepcopy(value)
    places, left = [], [value]
    while left:
        inside = left.pop()
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        places += [(inside, key) for key in keys]
        left += [inside[key] for key in keys if isinstance(inside[key], (dict, list)) and inside[key]]
    inside, key = draw.choice(places)
    way = draw.randrange(8)
    if way == 0:
        del inside[key]
    elif way == 1 and isinstance(inside, dict):
        inside[draw.choice(("", "x", "0", "\ud800"))] = inside.pop(key)
    elif way == 2:
        inside[key] = [inside[key]]
    else:
        inside[key] = copy.deepcopy(draw.choice(HOSTILE))
    return value


def broken_text(content, draw):
    """A file of JSON, or of lines of JSON, in one of the two ways."""
    if draw.random() < 0.4:
        return broken_bytes(content, draw)
    try:
        return json.dumps(broken_json(json.loads(content), draw)).encode()
    except ValueError:  # lines
        lines = content.splitlines()
        i = draw.randrange(len(lines))
        lines[i] = json.dumps(broken_json(json.loads(lines[i]), draw)).encode()
        return b"\n".join(lines)


def attack(file, use, breaks, count, named=None):
    """Break the file `count` times, use it each time, and print how often it was refused. Whatever is not an InputError
    with one short line ends the test, and is kept beside the file. named: what the line must hold; the file's name."""
    whole, refused, draw, named = file.read_bytes(), 0, random.Random(file.name), named or file.name.partition(".")[0]
    for i in range(count * TIMES):
        content = breaks(whole, draw)
        file.write_bytes(content)
        begun = time.process_time()
        try:
            use()
        except InputError as error:
            refused += 1
            assert named in str(error), f"{i}: {error}"
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000, f"{i}: {error}"
        except BaseException:
            file.with_name("attack").write_bytes(content)
            raise
        assert time.process_time() - begun < SECONDS, f"{i}"
    file.write_bytes(whole)
    use()
    print(f"{file.name}: {count * TIMES} inputs, {refused} refused")

"""Rows: read from JSON files, checked, their images found."""

import json
import re
import zlib
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from files import InputError, read_json
from tasks.boxes import check_box

PLACE = "<image>"  # where an image stands in a prompt that says so
IMAGE_FOLDERS = ("", "images", "train2014", "images/train2014", "images/mscoco/images/train2014", "train_images")
IMAGE_FOLDERS += ("screenspotv2_image",)
REFCOCO_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}. Answer in JSON."


def json_rows(file):
    """Yield (row, "file:line") of a .jsonl file, or (row, "file, row i") of a .json list."""
    if file.suffix == ".json":
        rows = read_json(file)
        if not isinstance(rows, list):
            raise InputError(f"{file}: expected a JSON list of rows")
        yield from ((row, f"{file}, row {i}") for i, row in enumerate(rows, start=1))
        return
    with open(file, "rb") as lines:
        for i, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line.decode("utf-8")), f"{file}:{i}"
                except ValueError as error:
                    raise InputError(f"{file}:{i}: not JSON ({error})") from None


@contextmanager
def reading(source, what):
    """What a row lacks or holds wrongly becomes an InputError that names it."""
    try:
        yield
    except InputError:  # says it already
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{source}: not a row of {what} as known here ({error!r})") from None


def file_of(root, split, pattern, hint):
    """The file root/pattern with the split's name for its star. Raises InputError that says what to put there, or which
    splits are present."""
    file = root / pattern.replace("*", split)
    if not file.exists():
        before, behind = pattern.split("*")
        present = sorted(f.name.removeprefix(before).removesuffix(behind) for f in root.glob(pattern))
        reason = f"no such split; present: {', '.join(present)}" if present else f"no such file; {hint}"
        raise InputError(f"{file}: {reason}")
    return file


def placed(prompt, row, source):
    """A prompt with its "<image>" places checked against the row's images; those at its very start go, since there the
    images stand anyway."""
    images = len(row["images"]) if isinstance(row.get("images"), list) else int(bool(row.get("image")))
    if prompt.count(PLACE) not in (0, images):
        raise InputError(f"{source}: {prompt.count(PLACE)} x {PLACE} in the prompt, but {images} images in the row")
    rest = re.sub(rf"^({PLACE}\s*)+", "", prompt)
    return prompt if PLACE in rest else rest


def ours(key):
    """Benchmarks without a training split: "train" is four fifths of their pictures and "val" the rest, by a checksum of
    the name `key`; "test" is all of it, which only a model that was not trained on it may be scored on."""
    return "val" if zlib.crc32(str(key).encode()) % 5 == 0 else "train"


def checked(row, source, root):
    """Check one row -> what an Example is made of; every complaint names the row."""
    if not isinstance(row, dict):
        raise InputError(f"{source}: expected an object, got {row!r:.60}")
    images = row["images"] if "images" in row else [row["image"]] if row.get("image") else []
    if not isinstance(images, list):
        raise InputError(f'{source}: "images" must be a list of paths, got {images!r:.60}')
    images = [i if isinstance(i, Image.Image) else find_image(i, source, root) for i in images]
    if isinstance(row.get("sent"), str):
        prompt = REFCOCO_PROMPT.format(row["sent"].strip().removesuffix("."))
    else:
        prompt = row.get("prompt")
    if not isinstance(prompt, str):
        raise InputError(f'{source}: needs a text "prompt" or "sent"')
    if "bbox" in row:
        answer = check_box(row, source, images)
    elif isinstance(row.get("answer"), str):
        answer = row["answer"]
    else:
        raise InputError(f'{source}: needs a text "answer" or a "bbox"')
    further = ("kind", "group", "metric", "reference", "videos", "fps", "history")
    found = {"images": images, "prompt": prompt, "answer": answer, "source": source}
    return found | {key: row[key] for key in further if key in row}


def find_image(name, source, root):
    if isinstance(name, str):
        for folder in IMAGE_FOLDERS:
            for path in (root / folder / name, root / folder / Path(name).name):  # some lists name other folders
                if path.is_file():
                    return path
    raise InputError(f"{source}: its image {name} is not in {root} (nor in {', '.join(IMAGE_FOLDERS[1:])} there)")


NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""

NUMBERS = {word: str(n) for n, word in enumerate(NUMBER_WORDS.split())}


def score_exact(text, reference, *_):
    """Right if the text equals the reference but for white space at its ends."""
    return text.strip(), float(text.strip() == reference.strip())

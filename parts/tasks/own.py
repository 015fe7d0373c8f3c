"""Your own data: `jsonl`, one question a row; `llava`, conversations.

    {"image": "photo.jpg", "sent": "the red cup", "bbox": [x1, y1, x2, y2]}
    {"images": ["a.png", "b.png"], "prompt": "Is <image> or <image> sharper?", "answer": "the second"}
    {"video": "clips/7", "prompt": "What happens?", "answer": "a cup falls"}
    {"prompt": "17 + 25 =", "answer": "42", "metric": "number"}

    {"image": "photo.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                             {"from": "gpt", "value": "a cup"}, ...]}
    {"images": ["photo.jpg"], "messages": [{"role": "user", "content": "What is it?"},
                                           {"role": "assistant", "content": "a cup"}, ...]}

files    jsonl: <split>.jsonl; llava: <split>.json or .jsonl; or one FILE instead of their folder. Names of images and
         videos are relative to the folder. parts/tasks/rows.py lists all keys of a row (ROW)
videos   a folder of frames or an animated image; 8 frames, evenly spread
prompt   yours; "sent" is put into GROUNDING_PROMPT. Images, then videos come before it, or where it says "<image>" and
         "<video>"
splits   the names of your files. Without any but "train", a tenth of its rows is "val": some of the images, with all
         that is asked about them, by a checksum of their names. Of one FILE likewise, and "test" is all of it
limit    an even sample: your file may be in order of something
metric   exact match; for boxes, in pixels of the image as it is on disk, accuracy@0.5; or one of METRICS
"""

import posixpath
import re
import unicodedata
import zlib
from contextlib import suppress

from parts.files import InputError
from parts.tasks.boxes import ask_about_units, is_box
from parts.tasks.images import image_size
from parts.tasks.rows import PLACE, entries, names_of, parsed, rows_of

CONVERSATIONS = ("conversations", "messages")  # as LLaVA has them, and as TRL, ms-swift and OpenAI
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
NOTES = re.compile(r"id|.*_id|source|dataset|split|category|quality|licen[cs]e|comment")  # keys of facts about a row: not read
METRICS = {  # what "metric" may be in a row of your own, and its reference; without one, the answer is the reference
    "exact": "a text",
    "contains": "a text",
    "number": "a text",
    "iou": "a box of one image",
    "vqa": "a list of at least four people's answers",
}


def rows(name, root, split):
    suffixes = (".jsonl",) if name == "jsonl" else (".json", ".jsonl")
    yield from rows_of(split_entries(root, split, suffixes), own_rows, "a row of your own")


def own_rows(row):
    """The rows of a row: itself, or one for every answer of its conversation, with the turns before it as history."""
    row = {key: value for key, value in row.items() if value is not None and not NOTES.fullmatch(key)}
    if not (talk := [row.pop(key) for key in CONVERSATIONS if key in row]):
        yield checked_metric(row)
        return
    images, texts = [], []
    roles = ["user", "assistant"] * len(talk[0])
    for turn, role in zip(talk[0], roles):
        said_by, content = (turn["from"], turn["value"]) if "from" in turn else (turn["role"], turn["content"])
        if ROLES.get(said_by) != role:
            raise ValueError(f"turns must alternate user, assistant; {said_by!r:.40} in place of {role}")
        texts.append(text_of(content, images))
    if len(texts) % 2:
        raise ValueError("the last turn has no answer")
    if images:
        row["images"] = images
    turns = list(zip(texts[::2], texts[1::2]))
    for i, (prompt, answer) in enumerate(turns):
        yield checked_metric(row | {"prompt": prompt, "answer": answer, "history": turns[:i]})


def text_of(content, images):
    """What a turn says: a text, or a list of parts, whose images go into `images`."""
    if isinstance(content, str):
        return content
    text = ""
    for part in content:
        if part["type"] == "text":
            text += part["text"]
        elif part["type"] in ("image", "image_url"):
            text += PLACE
            image = part.get(part["type"])
            images += [] if image is None else [image["url"] if isinstance(image, dict) else image]
        else:
            raise ValueError(f"a part of type {part['type']!r:.40}; text, image and image_url are read")
    return text


def checked_metric(row):
    """The row. Raises ValueError for an unknown metric, and a reference that it cannot compare with."""
    metric = row.get("metric", "iou" if "bbox" in row else "exact")
    if metric not in METRICS:
        raise ValueError(f'"metric" is {metric!r:.60}; it may be {", ".join(METRICS)}')
    reference = row.get("reference", row.get("bbox", row.get("answer", "")))
    fits = isinstance(reference, str)
    if metric == "vqa":
        fits = isinstance(reference, list) and len(reference) >= 4 and all(isinstance(r, str) for r in reference)
    elif metric == "iou":
        fits = is_box(reference) and len(names_of(row, "image", "images")) == 1
    if not fits and not ("bbox" in row and "reference" not in row):  # a wrong "bbox" is named by `checked`
        raise ValueError(f'metric {metric} needs a "reference" that is {METRICS[metric]}, got {reference!r:.60}')
    return row


def check_habits(examples):
    """What no single row shows. Raises InputError if the boxes seem to be in other units than pixels; warns of a phrase
    that has several boxes in one image, which no model can learn."""
    boxed = [e for e in examples if not isinstance(e["answer"], str)]
    if question := ask_about_units([(e["answer"], image_size(e["images"][0])) for e in boxed]):
        raise InputError(f"{boxed[0]['source']} and others: {question}")
    boxes = {}
    for e in boxed:
        boxes.setdefault((str(e["images"][0]), e["prompt"]), {})[e["answer"]] = e["source"]
    several = [list(sources.values()) for sources in boxes.values() if len(sources) > 1]
    if several:
        first = ", ".join(several[0][:3])
        print(f"warning  {len(several)} phrases have several boxes in one image ({first}): only one can be learnt")


# -- splits


def split_entries(root, split, suffixes):
    """The entries of a split: those of its file, or a part of the only file. root: a folder or a file."""
    if root.is_file():
        return part_of(root, split, ("train", "val", "test"))
    files = {}
    for suffix in suffixes:
        for file in sorted(root.glob(f"*{suffix}")):
            files.setdefault(file.stem, file)
    if list(files) == ["train"]:
        return part_of(files["train"], split, ("train", "val"))
    if split in files:
        return entries(files[split])
    reason = f"no such split; present: {', '.join(files)}" if files else "no such file, nor one of another split"
    raise InputError(f"{root / split}{suffixes[0]}: {reason}")


def part_of(file, split, splits):
    """The entries of the part `split` of a file. A tenth of its images, with all rows about them, is "val"; the others are
    "train"; "test" is everything. Which image is where depends on the names alone, not on their order."""
    if split not in splits:
        raise InputError(f"{file}: no split {split!r} of a single file; present: {', '.join(splits)}")
    rows = list(entries(file))
    groups = connected([names_in(entry) for entry, _ in rows])
    order = sorted(set(groups), key=lambda name: (zlib.crc32(name.encode(errors="replace")), name))
    held_out = set(order[: max(1, len(order) // 10)])
    if split == "val" and len(order) == 1:
        raise InputError(f"{file}: all rows are about one image, so none can be held out; put a val file beside it")
    if split == "test" or len(order) == 1:
        return rows
    kept = [pair for pair, group in zip(rows, groups) if (group in held_out) == (split == "val")]
    why = "without a val file, a tenth of the images (or texts) is held out, by a checksum of their names"
    print(f"split    {file}: {split} is {len(kept)} of its {len(rows)} rows; {why}")
    return kept


def names_in(entry):
    """The names of an entry's images and videos, however they are spelled; of text alone, the entry itself."""
    spelled = []
    with suppress(Exception):  # of a bad row: `checked` says what is wrong with it
        row = next(own_rows(parsed(entry)))
        names = names_of(row, "image", "images") + names_of(row, "video", "videos")
        spelled += [unicodedata.normalize("NFC", name.replace("\\", "/")) for name in names]
    return [posixpath.normpath(name) for name in spelled] or [str(entry)]


def connected(names):
    """A group for each row, named by the first of its images: rows that share an image, or are connected by others that
    do, are in one group, so that no image is on both sides of a split. names: those of each row."""
    parent = {}

    def group(name):
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]  # a shorter way for the next time
            name = parent[name]
        return name

    for those in names:
        first, *others = sorted(group(name) for name in those)
        parent |= dict.fromkeys(others, first)
    return [group(those[0]) for those in names]

"""Your own data: `jsonl`, one question a row; `llava`, conversations. Both are read in either form.

    {"image": "photo.jpg", "sent": "the red cup", "bbox": [x1, y1, x2, y2]}
    {"images": ["a.png", "b.png"], "prompt": "Is <image> or <image> sharper?", "answer": "the second"}
    {"video": "clips/7", "prompt": "What happens?", "answer": "a cup falls", "metric": "contains"}
    {"image": "photo.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                             {"from": "gpt", "value": "a cup"}, ...]}
    {"images": ["photo.jpg"], "messages": [{"role": "user", "content": "What is it?"},
                                           {"role": "assistant", "content": "a cup"}, ...]}

files    jsonl: <split>.jsonl; llava: <split>.json or .jsonl; or one FILE instead of their folder. Names of images and
         videos are relative to the folder. parts/tasks/rows.py lists all keys of a row (ROW)
prompt   yours; "sent" is put into GROUNDING_PROMPT. Images, then videos come before it, or at "<image>" and "<video>"
splits   the names of your files. Without any but "train", and of one FILE, "val" is a tenth of its images with all that is
         asked about them, by a checksum of their names; "test" is all of a FILE
metric   exact match; for boxes, in pixels of the image as it is on disk, accuracy@0.5; or one of METRICS
"""

import posixpath
import re
import unicodedata
import zlib
from contextlib import suppress

from parts.files import InputError
from parts.tasks import rows as reader
from parts.tasks.boxes import is_box

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
NOTES = re.compile(r"id|.*_id|source|dataset|split|category|quality|licen[cs]e|comment")  # facts about a row: not read
METRICS = ("exact", "contains", "number", "vqa", "iou")


def rows(name, root, split):
    patterns = ("*.jsonl",) if name == "jsonl" else ("*.json", "*.jsonl")
    files = reader.split_files(root, *patterns)
    if root.is_file():
        pairs = part_of(root, split, reader.SPLITS)
    elif files.keys() == {"train"}:
        pairs = part_of(files["train"], split, ("train", "val"))
    else:
        pairs = reader.entries(reader.file_of(root, split, f"write {split}.jsonl", *patterns))
    return reader.rows_of(pairs, own_rows, "a row of your own")


def own_rows(row):
    """The rows of a row: itself, or one for every answer of its conversation, with the turns before it as history."""
    row = {key: value for key, value in row.items() if value is not None and not NOTES.fullmatch(key)}
    made = [row]
    if key := next((key for key in ("conversations", "messages") if key in row), None):
        images, texts = [], []
        turns = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in row.pop(key)]
        if turns[0][0] == "system":
            row["system"] = text_of(turns.pop(0)[1], images)
        for (speaker, content), role in zip(turns, ["user", "assistant"] * len(turns)):
            if ROLES.get(speaker) != role:
                raise ValueError(f"turns must alternate user, assistant; {speaker!r:.40} in place of {role}")
            texts.append(text_of(content, images))
        if len(texts) % 2:
            raise ValueError("the last turn has no answer")
        row |= {"images": images} if images else {}
        turns = list(zip(texts[::2], texts[1::2]))
        made = [dict(**row, prompt=q, answer=a, history=turns[:i]) for i, (q, a) in enumerate(turns)]
    for row in made:
        check_metric(row)
        yield row


def text_of(content, images):
    """What a turn says: a text, or a list of parts, whose images go into `images`."""
    text = ""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        value = part.get(part["type"])
        if part["type"] in ("image", "image_url"):
            text += reader.PLACE
            images += [] if value is None else [value["url"] if isinstance(value, dict) else value]
        elif part["type"] == "text":
            text += value
        else:
            raise ValueError(f"a part of type {part['type']!r:.40}; text, image and image_url are read")
    return text


def check_metric(row):
    """Raises ValueError for a metric that is not read in rows of your own, and a reference that it cannot compare with."""
    metric = row.get("metric", "iou" if "bbox" in row else "exact")
    reference = row.get("reference", row.get("bbox", row.get("answer", "")))
    fits = isinstance(reference, str)
    if metric == "iou":
        fits = is_box(reference) or "reference" not in row
    elif metric == "vqa":
        fits = isinstance(reference, list) and len(reference) >= 4 and all(isinstance(r, str) for r in reference)
    if metric not in METRICS or not fits:
        several = "vqa with a list of at least four people's answers, iou with a box"
        raise ValueError(f"metric {metric!r:.40} of {reference!r:.40}; exact, contains, number compare with a text, {several}")


def part_of(file, split, splits):
    """The entries of the part `split` of a file. A tenth of its images, with all rows about them, is "val"; the others are
    "train"; "test" is everything. Which image is where depends on the names alone, not on their order."""
    if split not in splits:
        raise InputError(f"{file}: no split {split!r} of a single file; present: {', '.join(splits)}")
    rows = list(reader.entries(file))
    groups = connected([names_in(entry) for entry, _ in rows])
    order = sorted(set(groups), key=lambda name: (zlib.crc32(name.encode(errors="replace")), name))
    if split == "val" and len(order) == 1:
        raise InputError(f"{file}: all rows are about one image, so none can be held out; put a val file beside it")
    if split == "test" or len(order) == 1:
        return rows
    held_out = set(order[: max(1, len(order) // 10)])
    part = [pair for pair, group in zip(rows, groups) if (group in held_out) == (split == "val")]
    why = "without a val file, a tenth of the images (or texts) is held out, by a checksum of their names"
    print(f"split    {file}: {split} is {len(part)} of its {len(rows)} rows; {why}")
    return part


def names_in(entry):
    """The names of an entry's images and videos, however they are spelled; of text alone, the entry itself."""
    names = []
    with suppress(Exception):  # of a bad row: `checked` says what is wrong with it
        row = next(own_rows(reader.parsed(entry)))
        shown = reader.names_of(row, "image", "images") + reader.names_of(row, "video", "videos")
        names = [posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/"))) for name in shown]
    return names or [str(entry)]


def connected(names):
    """A group for each row, named by the first of its images: rows that share an image, or are connected by others that
    do, are in one group, so that no image is on both sides of a split. names: those of each row."""
    groups = {}  # name -> the names in its group
    for those in names:
        largest, *others = sorted((groups.setdefault(name, {name}) for name in those), key=len, reverse=True)
        for other in others:
            if other is not largest:
                largest |= other
                groups |= dict.fromkeys(other, largest)
    first = {id(group): min(group) for group in {id(group): group for group in groups.values()}.values()}
    return [first[id(groups[those[0]])] for those in names]

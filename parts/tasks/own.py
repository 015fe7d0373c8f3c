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

import re
import unicodedata
import zlib
from contextlib import suppress

from parts.files import InputError
from parts.tasks import rows as reader
from parts.tasks.boxes import is_box
from parts.tasks.gsm8k import parse
from parts.tasks.images import FILMS, within

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
NOTES = re.compile(r"id|.*_id|source|dataset|split|category|quality|licen[cs]e|comment")  # facts about a row: not read
METRICS = ("exact", "contains", "number", "vqa", "iou")


def rows(name, root, split):
    patterns = ("*.jsonl",) if name == "jsonl" else ("*.json", "*.jsonl")
    files = reader.split_files(root, *patterns)
    if not root.exists():
        raise InputError(f"{root}: no such file or folder")
    if root.is_file():
        pairs = part_of(root, split, reader.SPLITS)
    elif files.keys() == {"train"}:
        pairs = part_of(files["train"], split, ("train", "val"))
    else:
        pairs = reader.entries(reader.file_of(root, split, f"write {split}.jsonl; {reader.RECIPES}", *patterns))
    return reader.rows_of(pairs, own_rows, "a row of your own")


def own_rows(row):
    """The rows of a row: itself, or one for every answer of its conversation, with the turns before it as history."""
    row = without_notes(row)
    key = next((key for key in ("conversations", "messages") if key in row), None)
    talks = conversation(row.pop(key), key) if key else [{}]
    if both := row.keys() & talks[0].keys():
        raise ValueError(f'has both "{key}" and "{min(both)}"; one of them would be lost')
    for talk in talks:
        check_metric(row | talk)
        yield row | talk


def without_notes(values):
    """What is read of a row, a turn or a part of one: null is like no key."""
    return {key: value for key, value in values.items() if value is not None and not NOTES.fullmatch(key)}


def conversation(turns, key):
    """[{"prompt", "answer", "history", and of all "system", "images"}] for every answer of a conversation."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f'"{key}" must be a list of turns, each with "role" and "content", got {turns!r:.60}')
    talk, images, texts = {}, [], []
    turns = [turn_of(without_notes(turn)) for turn in turns]
    if turns and turns[0][0] == "system":
        talk["system"] = text_of(turns.pop(0)[1], images)
    for (speaker, content), role in zip(turns, ["user", "assistant"] * len(turns)):
        if ROLES.get(speaker) != role:
            raise ValueError(f"turns must alternate user, assistant; {speaker!r:.40} in place of {role}")
        texts.append(text_of(content, images))
    if not texts or len(texts) % 2:
        raise ValueError("the last turn has no answer")
    talk |= {"images": images} if images else {}
    turns = list(zip(texts[::2], texts[1::2]))
    return [talk | {"prompt": q, "answer": a, "history": turns[:i]} for i, (q, a) in enumerate(turns)]


def turn_of(turn):
    """(speaker, content) of a turn. Raises ValueError for one that holds anything else, such as the weight of its loss."""
    for speaker, content in (("from", "value"), ("role", "content")):
        if turn.keys() == {speaker, content}:
            return turn[speaker], turn[content]
    raise ValueError(f'a turn is "from" and "value" or "role" and "content", nothing else; got {", ".join(turn)}')


def text_of(content, images):
    """What a turn says: a text, or a list of parts, whose images go into `images`."""
    text = ""
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        part = without_notes(part)
        kind, value = part["type"], part.get(part["type"])
        value = value["url"] if isinstance(value, dict) and value.keys() == {"url"} else value
        alone = part.keys() <= {"type", kind} and isinstance(value, str | None)
        if alone and kind in ("image", "image_url"):
            text += reader.IMAGE_MARK
            images += [] if value is None else [value]
        elif alone and kind == "text" and value is not None:
            text += value
        else:
            raise ValueError(f"a turn's part {part!r:.90}; text, image and image_url are read, and nothing else in it")
    return text


def check_metric(row):
    """Raises ValueError for a metric that is not read in rows of your own, and a reference that it cannot compare with."""
    metric = row.get("metric", "iou" if "bbox" in row else "exact")
    reference = row.get("reference", row.get("bbox", str(row.get("answer") or 0)))  # 0: `checked` asks for an answer
    fits = isinstance(reference, str) and (parse(reference) if metric == "number" else reference.strip())
    if metric == "iou":
        fits = is_box(reference) or reference is row.get("bbox")
    elif metric == "vqa":
        fits = isinstance(reference, list) and len(reference) >= 4 and all(isinstance(r, str) for r in reference)
    if metric not in METRICS or not fits:
        others = "number with one that holds a number, vqa with a list of at least four people's answers, iou with a box"
        raise ValueError(f"metric {metric!r:.40} of {reference!r:.40}; exact and contains compare with a text, {others}")


def part_of(file, split, splits):
    """The entries of the part `split` of a file. "val": a tenth of its images, with the rows about them; "train": the rows
    about others; "test": everything. Which image is where depends on the names alone, not on their order."""
    if split not in splits:
        raise InputError(f"{file}: no split {split!r} of a single file; present: {', '.join(splits)}")
    rows = list(reader.entries(file))
    names = [names_in(entry, file.parent) for entry, _ in rows]
    firsts = sorted({those[0] for those in names}, key=lambda name: (zlib.crc32(name.encode(errors="replace")), name))
    tenth = set(firsts[: max(1, len(firsts) // 10)])
    held_out = {name for those in names if those[0] in tenth for name in those}
    train = [pair for pair, those in zip(rows, names) if held_out.isdisjoint(those)]
    val = [pair for pair, those in zip(rows, names) if held_out.issuperset(those)]
    if split == "val" and not train:
        raise InputError(f"{file}: its rows share their images, so none can be held out; put a val file beside it")
    if split == "test" or not train:
        return rows
    part, left_out = train if split == "train" else val, len(rows) - len(train) - len(val)
    why = "without a val file, a tenth of the images (or texts) is held out, by a checksum of their names"
    print(f"split    {file}: {split} is {len(part)} of its {len(rows)} rows; {why}; {left_out} have images of both parts")
    return part


def names_in(entry, root):
    """The names of an entry's images and videos, however they are spelled; of text alone, the entry itself."""
    names = []
    with suppress(Exception):  # of a bad row: `checked` says what is wrong with it
        row = next(own_rows(reader.parsed(entry)))
        names = [within(name, "", root) for name in reader.names_of(row, "image", "images")]
        videos = [within(name, "", root) for name in reader.names_of(row, "video", "videos")]
        names += [video.with_suffix("") if video.suffix.lower() in FILMS else video for video in videos]
    return [unicodedata.normalize("NFC", str(name)) for name in names] or [str(entry)]

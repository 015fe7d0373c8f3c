"""Your own data: `jsonl`, rows with images, videos, boxes or text only; `llava`, conversations as LLaVA has them.

    {"image": "photo.jpg", "sent": "the red cup", "bbox": [x1, y1, x2, y2]}
    {"images": ["a.png", "b.png"], "prompt": "Is <image> or <image> sharper?", "answer": "the second"}
    {"video": "clips/7", "prompt": "What happens?", "answer": "a cup falls"}
    {"prompt": "17 + 25 =", "answer": "42"}

    [{"image": "photo.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                              {"from": "gpt", "value": "a cup"}, ...]}, ...]

files    jsonl: <split>.jsonl; llava: <split>.json or .jsonl; or one FILE instead of their folder. Names of images and
         videos are relative to the folder
videos   a folder of frames or an animated image; 8 frames, evenly spread. "fps": frames a second of a folder (2)
prompt   yours; "sent" is put into GROUNDING_PROMPT. Images, then videos come before it, or where it says "<image>" and
         "<video>"
splits   the names of your files. Without any but "train", a tenth of its rows is "val": some of the images, with all
         that is asked about them, by a checksum of their names. Of one FILE likewise, and "test" is all of it
limit    an even sample: your file may be in order of something
metric   exact match; for boxes, in pixels of the image as it is on disk, accuracy@0.5
"""

import re
import zlib
from pathlib import Path

from parts.files import InputError, reading
from parts.tasks.rows import PLACE, json_rows

FILM = "<video>"  # where a video is in a prompt that says so
VISUALS = ("image", "images", "video", "videos")  # the keys under which images and videos are read
KEYS = ("prompt", "answer", "bbox", "width", "height", "kind")  # what else is read, and "sent", "fps"

# What is under another key and looks like an image or a video is lost: by the words of the key or by the value.
WORDS = {"image", "img", "picture", "pic", "photo", "screenshot", "video", "film", "movie", "clip", "frame"}
FACTS = {"id", "size", "width", "height", "count", "fps", "type", "format", "source", "license", "licence"}  # image_id
FACTS |= {"caption", "description", "title", "text", "category", "label", "class"}
MEDIA_FILE = r"(?i)(?!https?:)\S+\.(jpe?g|png|webp|gif|bmp|tiff?|mp4|mkv|webm|avi|mov)"


def jsonl(name, root, split):
    for row, source in split_rows(root, split, ".jsonl"):
        if not isinstance(row, dict):
            yield row, source  # `checked` complains
            continue
        if "conversations" in row:
            raise InputError(f"{source}: a conversation; --data llava=... reads these")
        with reading(source, "a row as known here"):
            found = visuals(row, source) | {key: row[key] for key in KEYS if key in row}
            if "sent" in row:
                found["caption"] = row["sent"]
            if isinstance(row.get("prompt"), str):
                found["prompt"] = place(row["prompt"], found, source)
        yield found, source


def llava(name, root, split):
    """Every answer of a conversation is a row of its own, with the turns before it as its history."""
    for row, source in split_rows(root, split, ".json", ".jsonl"):
        with reading(source, "a row of conversations as known here"):
            who, said = zip(*((turn["from"], turn["value"]) for turn in row["conversations"]))
            if list(who) != ["human", "gpt"] * (len(who) // 2):
                raise InputError(f"{source}: turns must alternate human, gpt; they are {list(who)!r:.100}")
            if not all(isinstance(text, str) for text in said):
                raise InputError(f"{source}: what a turn says must be a text")
            for place_holder in (PLACE, FILM):
                if any(place_holder in text for text in said[1:]):
                    raise InputError(
                        f"{source}: {place_holder} in a later turn; images are taken in the first one only"
                    )
            shown = visuals(row, source)
            said = place(said[0], shown, source), *said[1:]
            turns = list(zip(said[::2], said[1::2]))
        for i, (prompt, answer) in enumerate(turns):
            yield shown | {"prompt": prompt, "answer": answer, "history": tuple(turns[:i])}, source


# -- images and videos of a row


def visuals(row, source):
    """{"images": names, "clips": names of videos, perhaps "rate"} of a row. Raises InputError if something that looks
    like an image or a video is under a key that is not read."""
    found = {}
    for ours, one, several in (("images", "image", "images"), ("clips", "video", "videos")):
        if row.get(one) and row.get(several):
            raise InputError(f'{source}: has both "{one}" and "{several}"; put all into "{several}"')
        if row.get(several) and not isinstance(row[several], list):
            raise InputError(f'{source}: "{several}" must be a list of paths, got {row[several]!r:.60}')
        names = row.get(several) or row.get(one) or []
        found[ours] = names if isinstance(names, list) else [names]
    read = {Path(name).name for name in found["images"] + found["clips"] if isinstance(name, str)}
    for key, value in row.items():
        if key not in (*VISUALS, *KEYS, "sent", "conversations") and looks_visual(key, value, read):
            known = ", ".join(f'"{name}"' for name in VISUALS)
            lost = "looks like an image or a video, but is not read"
            raise InputError(f'{source}: "{key}" {lost}; rename it to one of {known}, or leave it out')
    return found | ({"rate": row["fps"]} if "fps" in row else {})


def looks_visual(key, value, read):
    """Whether a value seems to be an image or a video: by the words of its key, unless they name a mere fact about one;
    or as the name of a file, unless it is among those that are read."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", key)}
    words |= {word.removesuffix("s") for word in words}
    if words & WORDS and not words & FACTS:
        return bool(value) and isinstance(value, (str, list, dict))
    values = value if isinstance(value, list) else [value]
    files = [v for v in values if isinstance(v, str) and re.fullmatch(MEDIA_FILE, v)]
    return "id" not in words and any(Path(file).name not in read for file in files)


def place(prompt, shown, source):
    """A prompt with its places checked against the row's images and videos, each as "<image>". Those at its very start
    are dropped, since images are there anyway."""
    wanted = [PLACE] * len(shown["images"]) + [FILM] * len(shown["clips"])
    places = re.findall(f"{PLACE}|{FILM}", prompt)
    if len(places) not in (0, len(wanted)):
        present = f"{len(shown['images'])} images" + (f" and {len(shown['clips'])} videos" if shown["clips"] else "")
        said = " or ".join(sorted(set(places)))
        raise InputError(f"{source}: {len(places)} x {said} in the prompt, but {present} in the row")
    if FILM in places and places != wanted:
        raise InputError(f"{source}: {' '.join(places)} in the prompt; it must be {' '.join(wanted)}, images first")
    prompt = prompt.replace(FILM, PLACE)
    rest = re.sub(rf"^({PLACE}\s*)+", "", prompt)
    return prompt if PLACE in rest else rest


# -- splits


def split_rows(root, split, *suffixes):
    """The (row, source) pairs of a split: those of its file, or a part of the only file. root: a folder or a file."""
    if root.is_file():
        return part_of(root, split, ("train", "val", "test"))
    files = {}
    for suffix in suffixes:
        for file in sorted(root.glob(f"*{suffix}")):
            files.setdefault(file.stem, file)
    if list(files) == ["train"]:
        return part_of(files["train"], split, ("train", "val"))
    if split in files:
        return json_rows(files[split])
    reason = f"no such split; present: {', '.join(files)}" if files else "no such file, nor one of another split"
    raise InputError(f"{root / split}{suffixes[0]}: {reason}")


def part_of(file, split, splits):
    """The rows of the part `split` of a file. A tenth of its images, with all rows about them, is "val"; the others are
    "train"; "test" is everything. Which image is where depends on the names alone, not on their order."""
    if split not in splits:
        raise InputError(f"{file}: no split {split!r} of a single file; present: {', '.join(splits)}")
    rows = list(json_rows(file))
    names = [about(row) for row, _ in rows]
    order = sorted(set(names), key=lambda name: (zlib.crc32(name.encode()), name))
    held_out = set(order[: max(1, len(order) // 10)])
    if split == "val" and len(order) == 1:
        raise InputError(f"{file}: all rows are about one image, so none can be held out; put a val file beside it")
    if split == "test" or len(order) == 1:
        return rows
    kept = [pair for pair, name in zip(rows, names) if (name in held_out) == (split == "val")]
    why = "without a val file, a tenth of the images (or texts) is held out, by a checksum of their names"
    print(f"split    {file}: {split} is {len(kept)} of its {len(rows)} rows; {why}")
    return kept


def about(row):
    """What a row is about, as a text: the names of its images and videos, or the row itself."""
    shown = [row[key] for key in VISUALS if row.get(key)] if isinstance(row, dict) else []
    names = [name for names in shown for name in (names if isinstance(names, list) else [names])]
    return str(names or row)

"""Rows: read from files, checked, their images and videos looked up. A loader yields (row, source) pairs: a dict with the
keys of ROW, of which `checked` makes what an Example takes; and where it is from ("val.jsonl:17"), for complaints."""

import json
import re
import zlib
from collections import Counter
from pathlib import Path, PurePath

from PIL import Image

from parts.files import InputError, parse_json, read_json, reading
from parts.tasks.boxes import TURNED, OutsideImage, ask_about_units, check_box
from parts.tasks.images import FRAMES, find_frames, find_image, image_size, sample

GROUNDING_PROMPT = "Locate {} in this image and output the bbox coordinates in JSON format."  # Qwen's, for these sets
BOX_ANSWER = '{{\n"bbox_2d": {}\n}}'  # and how Qwen's fine-tuning data answers it
IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"  # where an image and a video are in a prompt that says so
RECIPES = "docs/datasets.md has recipes for other forms"
SPLITS = ("train", "val", "test")  # where a data set has none of its own
WORDS = read_json(Path(__file__).parent / "words.json")  # what the official evaluators take for the same word

ROW = {  # key: the types of its value, and what they are in words. A row may hold nothing else; null is like no key
    "image": ((str, list, Image.Image), "a file's name or a list of names"),  # or a PIL image
    "images": (list, "a list of files' names"),  # none: text only
    "video": ((str, list), "the name of a folder of frames"),
    "videos": (list, "a list of such names"),
    **dict.fromkeys(("fps", "seconds"), ((int, float), "a number")),  # frames a second of a folder (2), or its time
    **dict.fromkeys(("prompt", "sent"), (str, "a text")),  # what to ask; or to find, put into GROUNDING_PROMPT
    "answer": (str, "a text"),  # the text to learn
    "bbox": ((list, tuple), "four numbers"),  # or a box (x1, y1, x2, y2) in pixels of the only image
    **dict.fromkeys(("width", "height"), ((int, float), "a number")),  # of that image: if given, it must be true
    "metric": (str, "a text"),  # by default exact or, for a box, iou
    "reference": ((str, list, tuple), "a text or a list"),  # what the metric compares with; by default the answer
    **dict.fromkeys(("kind", "group"), (str, "a text")),  # accuracy is also counted by these
    "history": ((list, tuple), "a list of [prompt, answer] pairs"),  # earlier turns of the conversation
    "system": (str, "a text"),  # in place of the model's own system line
}


def entries(file):
    """Yields (line, "file:line") of a .jsonl file, as bytes, or (row, "file, row i") of a .json list."""
    if file.suffix == ".json":
        rows = read_json(file)
        if not isinstance(rows, list):
            raise InputError(f"{file}: expected a JSON list of rows; {RECIPES}")
        yield from ((row, f"{file}, row {i}") for i, row in enumerate(rows, start=1))
        return
    with reading(file, "lines of JSON"), open(file, "rb") as lines:
        for i, line in enumerate(lines, start=1):
            if line.strip():
                yield line, f"{file}:{i}"


def parsed(entry):
    return parse_json(entry, once) if isinstance(entry, bytes) else entry


def once(pairs):
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice in one object")
    return dict(pairs)


def json_rows(file):
    """Yields (row, source) of a file of JSON lines or of a JSON list."""
    for entry, source in entries(file):
        with reading(source, "JSON"):
            yield parsed(entry), source


def rows_of(pairs, convert, what):
    """Yields (row, source) for each row that `convert` yields for an entry of a file. A bad entry comes as its InputError
    in place of a row, so that the rows after it can be read; what: the word for a good one."""
    for entry, source in pairs:
        try:
            with reading(source, what):
                if not isinstance(value := parsed(entry), dict):
                    raise InputError(f"{source}: expected an object, got {value!r:.60}")
                yield from ((row, source) for row in convert(value))
        except InputError as error:
            yield error, source


def split_files(root, *patterns):
    """{split: file} of the files root/pattern, whose star is the split; the first pattern that has a split counts."""
    files = {}
    for pattern in patterns:
        before, after = PurePath(pattern).name.split("*")
        for file in sorted(root.glob(pattern)):
            files.setdefault(file.name.removeprefix(before).removesuffix(after), file)
    return files


def file_of(root, split, hint, *patterns):
    """The file of a split. Raises InputError that lists the present ones, or says what to put into the folder `root`."""
    files = split_files(root, *patterns)
    if split in files:
        return files[split]
    present = f"present: {', '.join(sorted(files))}; --train-split and --eval-split name another"
    reason = f"no split {split!r}; {present}" if files else f"no {patterns[0]} here; {hint}"
    raise InputError(f"{root}: {reason}")


def in_split(split, key):
    """Whether a row of a benchmark without a training split is in one of ours. "train" and "val" are four fifths and a
    fifth of its images, by a checksum of the name `key`; "test" is all of it: for models that were not trained on it."""
    if split not in SPLITS:
        raise InputError(f"no split {split!r}; present: {', '.join(SPLITS)}")
    return split in ("test", "val" if zlib.crc32(str(key).encode(errors="replace")) % 5 == 0 else "train")


def all_checked(rows, task, root, look=lambda example: None):
    """(examples, errors) of the (row, source) pairs of a loader: each row is good or has an InputError that names it. look:
    what else is done with an example. Task.skip_outside: a row whose box reaches over the edge of its image is left out,
    with a line that names it, unless that is more than a tenth."""
    examples, errors = [], []
    for row, source in rows:
        try:
            example = checked(row, source, task, root)
            look(example)
            examples.append(example)
        except InputError as error:
            errors.append(error if str(error).startswith(source) else InputError(f"{source}: {error}"))

    # all boxes together: a few over the edge are left out; or is their unit not the pixel?
    outside = [error for error in errors if isinstance(error, OutsideImage)]
    boxed = [e for e in examples if not isinstance(e["answer"], str)]
    if outside and examples and task.skip_outside and len(outside) <= max(1, len(rows) // 10):
        print(f"skipped  {len(outside)} of {len(rows)} rows: {'; '.join(map(str, outside[:3]))}")
        errors = [error for error in errors if error not in outside]
    elif outside or task.own:
        boxes = [(error.box, error.size) for error in outside]
        boxes += [(e["answer"], image_size(e["images"][0])) for e in boxed]
        if question := ask_about_units(boxes):
            errors.insert(0, InputError(f"{rows[0][1]} and on: {question}"))

    # a phrase with several boxes in one image contradicts itself
    if task.own:
        boxes = dict.fromkeys((f"{e['images'][0]}: {e['prompt']}", e["answer"]) for e in boxed)
        several = [asked for asked, count in Counter(asked for asked, _ in boxes).items() if count > 1]
        if several:
            print(f"warning  {len(several)} phrases have several boxes in one image; only one can be learnt: {several[0]}")
    return examples, errors


def checked(row, source, task, root):
    """A row of a loader -> all that an Example is made of. Raises InputError, naming the row, for what is wrong."""
    if isinstance(row, InputError):
        raise row
    row = {key: value for key, value in row.items() if value is not None}
    for key, value in row.items():
        if key not in ROW:
            hint = f"leave it out, or rename it to one of {', '.join(ROW)}"
            raise InputError(f'{source}: "{key:.60}" is not read; {hint}; {RECIPES}')
        if not isinstance(value, ROW[key][0]) or isinstance(value, bool):
            raise InputError(f'{source}: "{key}" must be {ROW[key][1]}, got {value!r:.60}')
    for one, other in (("image", "images"), ("video", "videos"), ("prompt", "sent"), ("answer", "bbox"), ("fps", "seconds")):
        if one in row and other in row:
            raise InputError(f'{source}: has both "{one}" and "{other}"; one of them would be lost')
    with reading(source, "texts that can be written"):  # half a surrogate pair cannot
        json.dumps(row, ensure_ascii=False, default=str).encode()

    images, videos = names_of(row, "image", "images"), names_of(row, "video", "videos")
    for key, used_by in (("width", images), ("height", images), ("fps", videos), ("seconds", videos)):
        if key in row and (not used_by or row[key] <= 0):
            raise InputError(f'{source}: "{key}" must be positive, and of an image or video of the row; got {row[key]!r:.60}')
    images = [image if isinstance(image, Image.Image) else find_image(image, source, root, task) for image in images]
    for image in images:
        width, height = image_size(image)  # the file's header is read
        written = row.get("width", width), row.get("height", height)
        if written != (width, height):
            turned = TURNED if written == (height, width) else "; the box would be off"
            says = f"says {written[0]:g} x {written[1]:g} pixels, but {image} has {width} x {height}"
            raise InputError(f"{source}: {says}{turned}")
    example = {key: row[key] for key in ("kind", "group", "metric", "reference", "system") if key in row} | {"source": source}
    example |= {"images": images} | videos_of(row, source, root)
    example |= turns_of(row, source, len(images), len(example.get("videos", [])))
    if "bbox" not in row and not row.get("answer"):
        raise InputError(f'{source}: needs a text "answer" or a "bbox"')
    if row.get("metric") in ("iou", "point") and len(images) != 1:
        raise InputError(f"{source}: the metric {row['metric']} needs exactly one image, got {len(images)}")
    example["answer"] = check_box(row, source, images) if "bbox" in row else row["answer"]
    return example


def names_of(row, one, several):
    names = row.get(several, row.get(one, []))
    return names if isinstance(names, list) else [names]


def videos_of(row, source, root):
    """{"videos": the frames of each of the row's videos, "fps": by the clock of the first}; {} without videos."""
    fps = row.get("fps", 2)
    complete = [find_frames(name, source, root) for name in names_of(row, "video", "videos")]
    if not complete:
        return {}
    videos = [sample(frames, FRAMES) for frames in complete]
    return {"videos": videos, "fps": len(videos[0]) / row.get("seconds", len(complete[0]) / fps)}


def turns_of(row, source, images, videos):
    """{"prompt", "caption", "history"} of a row, every place of an image or video as "<image>", in the first of all prompts
    alone. images, videos: their numbers."""
    caption = row.get("sent", "").strip().removesuffix(".")
    prompt = GROUNDING_PROMPT.format(caption) if caption else row.get("prompt")
    texts = [text for turn in row.get("history", ()) for text in turn] + [prompt]
    if not all(isinstance(text, str) for text in texts) or len(texts) % 2 == 0:
        raise InputError(f'{source}: needs a text "prompt" or "sent", and a "history" of [prompt, answer] pairs')
    if any(mark in text for text in texts[1:] for mark in (IMAGE_MARK, VIDEO_MARK)):
        raise InputError(f"{source}: {IMAGE_MARK} or {VIDEO_MARK} in a later turn; images and videos belong into the first one")
    wanted, written = [IMAGE_MARK] * images + [VIDEO_MARK] * videos, re.findall(f"{IMAGE_MARK}|{VIDEO_MARK}", texts[0])
    if len(written) not in (0, len(wanted)) or VIDEO_MARK in written and written != wanted:
        row = f"but {images} images and {videos} videos in the row, in this order"
        raise InputError(f"{source}: {' '.join(written)[:100]} in the prompt, {row}")
    # images and videos come first anyway, so marks at the very start are dropped
    first = texts[0].replace(VIDEO_MARK, IMAGE_MARK)
    rest = re.sub(rf"^({IMAGE_MARK}\s*)+", "", first)
    texts[0] = first if IMAGE_MARK in rest else rest
    return {"prompt": texts[-1], "caption": caption, "history": tuple(zip(texts[:-1:2], texts[1::2]))}


def score_exact(text, reference, *_):
    """Right if the text equals the reference but for white space at its ends."""
    return text.strip(), float(text.strip() == reference.strip())


def score_contains(text, reference, *_):
    """Right if the reference is in the text as complete words, in small letters or capitals."""
    words = rf"(?<!\w){re.escape(reference.strip())}(?!\w)"
    return text.strip(), float(re.search(words, text, re.IGNORECASE) is not None)

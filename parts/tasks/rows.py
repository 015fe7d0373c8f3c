"""Rows: read from JSON files, checked, their images found.

A loader yields (row, source) pairs. A row is a dict with these keys, from which `checked` makes what an Example takes;
source says where it is from ("val.jsonl:17"), so that every complaint can name it.

    image or images     names of files, or PIL images; none: text only
    videos, fps         lists of frames, and their frames a second
    clips, rate         or names of videos, and the frames a second of those that are folders of frames
    prompt              the text to ask; or caption: what to find, which is put into GROUNDING_PROMPT
    answer              the text to learn; or bbox: a box (x1, y1, x2, y2) in pixels of the only image
    width, height       of that image, if the file says so: then it must be true
    metric, reference   a metric by name, and what it compares with (by default exact or iou, and the answer)
    kind, group         accuracy is also counted by these
    history             earlier turns of the conversation, (prompt, answer) each
"""

import itertools
import os
import zlib
from contextlib import suppress
from functools import partial

from PIL import Image

from parts.files import InputError, parse_json, read_json, reading
from parts.tasks.boxes import OutsideImage, ask_for_sizes, check_box
from parts.tasks.images import FRAMES, find_video, image_size, video_frames, within

GROUNDING_PROMPT = "Locate {} in this image and output the bbox coordinates in JSON format."  # Qwen's, for these sets
BOX_ANSWER = '{{\n"bbox_2d": {}\n}}'  # and how Qwen's fine-tuning data answers it
MB = 2**20
LINE, MOST = 16 * MB, 2048 * MB  # the longest line of a .jsonl file, and the largest file, that is read
FILLER = "Ada has four red books and two bags of nuts. Ben gives away three pens and finds one coin."
PLACE = "<image>"  # where an image is in a prompt that says so
IMAGE_FOLDERS = (
    "",
    "images",
    "train2014",
    "images/train2014",
    "images/mscoco/images/train2014",
    "coco/train2014",
    "coco2014/train2014",
    "../train2014",  # COCO's images are often beside the folder of the annotations
    "../coco/train2014",
    "../coco2014/train2014",
    "../images/mscoco/images/train2014",
    "train_images",
    "screenspotv2_image",
)
AS_THEY_ARE = ("kind", "group", "metric", "reference", "videos", "fps", "history")  # keys that are taken as they are
NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
DIGITS = {word: str(n) for n, word in enumerate(NUMBER_WORDS.split())}  # "seven" -> "7"


# -- files


def json_rows(file):
    """Yield (row, "file:line") of a .jsonl file, or (row, "file, row i") of a .json list."""
    if file.suffix == ".json":
        rows = read_json(file)
        if not isinstance(rows, list):
            raise InputError(f"{file}: expected a JSON list of rows")
        for i, row in enumerate(rows, start=1):
            yield row, f"{file}, row {i}"
        return
    with reading(file, "lines of JSON"), open(file, "rb") as lines:
        for i, line in enumerate(iter(partial(lines.readline, LINE + 1), b""), start=1):
            with reading(f"{file}:{i}", "JSON"):
                if len(line) > LINE:
                    raise ValueError(f"a line of more than {LINE // MB} MB")
                if line.strip():
                    yield parse_json(line), f"{file}:{i}"


def file_of(root, split, pattern, hint):
    """The file root/pattern with the split's name for its star. Raises InputError that says what to put there, or which
    splits are present."""
    file = root / pattern.replace("*", split)
    if file.exists():
        return file
    before, after = pattern.split("*")
    present = sorted(f.name.removeprefix(before).removesuffix(after) for f in root.glob(pattern))
    reason = f"no such split; present: {', '.join(present)}" if present else f"no such file; {hint}"
    raise InputError(f"{file}: {reason}")


def own_split(key):
    """The split, "train" or "val", of a row of a benchmark that has no training split: four fifths and a fifth of its
    images, by a checksum of the name `key`. "test" is all of it: a score for models that were not trained on it."""
    return "val" if zlib.crc32(str(key).encode(errors="replace")) % 5 == 0 else "train"


# -- rows, checked


def all_checked(rows, root, skip_outside=False):
    """The (row, source) pairs of a loader, checked. Raises InputError for what is wrong. skip_outside: but a row whose
    box reaches over the edge of its image is left out, with a line that names it, unless that is more than a tenth."""
    kept, outside = [], []
    for row, source in rows:
        try:
            with reading(source, "a row as it can be read here"):
                kept.append(checked(row, source, root))
        except OutsideImage as error:
            outside.append(source)
            if not skip_outside or len(outside) > max(1, len(rows) // 10) or len(rows) == 1:
                raise InputError(f"{error}{ask_for_sizes(boxes_of(rows, root))}") from None
    if outside:
        print(f"skipped  {len(outside)} of {len(rows)} rows, box over the edge of the image: {', '.join(outside[:5])}")
    return kept


def boxes_of(rows, root):
    """(box, size of its image) of all rows that have a box of four numbers and an image that is there."""
    found = []
    for row, source in rows:
        with suppress(Exception):
            x1, y1, x2, y2 = map(float, row["bbox"])
            (image,) = found_images(row, source, root)
            found.append(((x1, y1, x2, y2), image_size(image)))
    return found


def checked(row, source, root):
    """A row of a loader -> all that an Example is made of. Raises InputError, naming the row, for what is wrong."""
    if not isinstance(row, dict):
        raise InputError(f"{source}: expected an object, got {row!r:.60}")
    images = found_images(row, source, root)
    prompt, caption = question(row, source)
    # the answer: a box that fits its image, or a text
    if "bbox" in row:
        answer = check_box(row, source, images)
    elif isinstance(row.get("answer"), str):
        answer = row["answer"]
    else:
        raise InputError(f'{source}: needs a text "answer" or a "bbox"')
    complete = {"images": images, "prompt": prompt, "caption": caption, "answer": answer, "source": source}
    complete |= found_clips(row, source, root) | {key: row[key] for key in AS_THEY_ARE if key in row}
    # texts that this program can count and write
    for key in ("kind", "group"):
        if not isinstance(row.get(key) or "", str):
            raise InputError(f'{source}: "{key}" must be a text, got {row[key]!r:.60}')
    f"{prompt} {answer} {row.get('kind')} {row.get('group')}".encode()
    return complete


def with_preamble(prompt, words):
    """The prompt after `words` words of text that has nothing to do with it."""
    filler = itertools.islice(itertools.cycle(FILLER.split()), words)
    return " ".join([*filler, prompt])


def question(row, source):
    """(prompt, caption): a caption, without the full stop at its end, is put into the prompt for boxes."""
    if isinstance(row.get("caption"), str):
        caption = row["caption"].strip().removesuffix(".")
        return GROUNDING_PROMPT.format(caption), caption
    if isinstance(row.get("prompt"), str):
        return row["prompt"], ""
    raise InputError(f'{source}: needs a text "prompt" or "sent"')


def found_images(row, source, root):
    """The row's images: paths of files that are there, or PIL images."""
    one = [row["image"]] if row.get("image") else []
    images = row.get("images", one)
    if not isinstance(images, list):
        raise InputError(f'{source}: "images" must be a list of paths, got {images!r:.60}')
    return [image if isinstance(image, Image.Image) else find_image(image, source, root) for image in images]


def find_image(name, source, root):
    """The path of an image, in one of the folders where data sets keep them."""
    path = within(name, source, root)
    for folder in IMAGE_FOLDERS:
        for found in (root / folder / path, root / folder / path.name):  # some lists name other folders
            if os.path.isfile(found):  # False for what cannot be a name; Path.is_file raises
                return found
    raise InputError(f"{source}: its image {name:.200} is not in {root} (nor in {', '.join(IMAGE_FOLDERS[1:])} there)")


def found_clips(row, source, root):
    """{"videos": the frames of each of the row's clips, "fps": by the clock of the first}; {} without clips."""
    if not row.get("clips"):
        return {}
    rate = row.get("rate", 2)
    if type(rate) not in (int, float) or not 0 < rate < 1e6:
        raise InputError(f'{source}: "fps" must be a positive number, got {rate!r:.60}')
    paths = [find_video([name], source, root, root / "videos") for name in row["clips"]]
    videos = [video_frames(path, FRAMES, rate) for path in paths]
    frames, seconds = videos[0]
    return {"videos": [frames for frames, _ in videos], "fps": len(frames) / seconds}


# -- a metric that several data sets share


def score_exact(text, reference, *_):
    """Right if the text equals the reference but for white space at its ends."""
    return text.strip(), float(text.strip() == reference.strip())

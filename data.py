"""Data: files on disk -> Example -> Batch, and generated text -> box -> score.

    load("refcoco", root, "train")       -> [Example, ...]
    Processor.from_pretrained(model)     -> processor
    processor(examples)                  -> Batch, what VLM.loss and VLM.generate take

A row of a batch is Qwen's chat template, rendered by hand:

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    <|vision_start|><|image_pad|>...<|vision_end|>the prompt<|im_end|>
    <|im_start|>assistant
    the answer<|im_end|>

with one <|image_pad|> for every visual token, and only the last line supervised. Prompt and answer are tokenised
apart and concatenated, so the labels are right by construction.

Shapes: B batch, T sequence length, P image patches, N visual tokens in the batch.
"""

import json
import math
import pickle
import re
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from tokenizers import Tokenizer

from model import Config, InputError, checkpoint_folder, read_json, write_text
from tiny import scenes

SYSTEM = "You are a helpful assistant."
REFCOCO_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}. Answer in JSON."
MAX_RATIO = 200  # of an image's sides: a longer strip cannot be resized to whole patches in a useful way


@dataclass
class Example:
    """One question about any number of images.

    images: paths or PIL images; prompt: text; answer: text, or a box (x1, y1, x2, y2) in pixels of the only image as
    it is on disk (the processor writes it in pixels of the resized image), or None = to generate; source: where it
    comes from ("val.jsonl:17"), for messages; kind: "grounding", "attribute", ...: accuracy is also counted by kind.
    """

    images: list
    prompt: str
    answer: str | tuple | None = None
    source: str = ""
    kind: str = ""

    @property
    def name(self):
        return self.source or f"the example {self.prompt[:40]!r}"


@dataclass
class Batch:
    """What the model takes. All tensors but `grids` (the encoder plans its windows on the CPU) move with `.to`."""

    input_ids: torch.Tensor  # [B, T] long
    attention_mask: torch.Tensor  # [B, T] long, 0 on padding
    position_ids: torch.Tensor  # [3, B, T] long: time, height, width
    segments: torch.Tensor  # [B, T] long, -1 on padding
    labels: torch.Tensor  # [B, T] long, the token's own id where it is supervised, else -100
    visual_mask: torch.Tensor  # [B, T] bool: the paper's I_v, the positions of visual tokens
    visual_index: torch.Tensor  # [N] long: the same as flat positions, row * T + column
    visual_source: torch.Tensor  # [N] long: which row of the encoder's output stands there
    patches: torch.Tensor  # [P, 1176] float32, every image of the batch once
    grids: torch.Tensor  # [images, 3] long: slices, rows, columns in patches
    examples: list = field(default_factory=list)  # (row, segment) of each Example
    known: torch.Tensor | None = None  # [M, D] embeddings of further images, behind the encoder's in visual_source

    # What follows from the tensors above. It is worked out on the CPU (`to` sees to that), because every question that
    # the CPU asks of a tensor on a GPU ("is anything supervised?") stops the GPU's queue until it is answered.

    @cached_property
    def follows(self):
        """[B, T] long: what each position is to predict, -100 for nothing."""
        return F.pad(self.labels[:, 1:], (0, 1), value=-100)

    @cached_property
    def supervised(self):
        """The number of tokens that the loss is a mean of."""
        return int((self.follows != -100).sum())

    @cached_property
    def reads(self):
        """[B, S] long: the columns whose output is read. To train, those that predict a supervised token; to generate,
        the last of each question. Rows with fewer are filled up with other columns."""
        wanted = self.follows != -100
        if not self.supervised:
            ends = self.segments != F.pad(self.segments[:, 1:], (0, 1), value=-1)
            shared = (self.segments > 0).any(dim=1, keepdim=True)  # segment 0 of a shared row is no question
            wanted = ends & (self.segments >= shared.long())
        most = int(wanted.sum(dim=1).max())
        return wanted.int().argsort(dim=1, descending=True, stable=True)[:, :most]

    @cached_property
    def targets(self):
        """[B, S] long: what the columns `reads` predict; -100 where they fill up."""
        return self.follows.gather(1, self.reads)

    @cached_property
    def causal(self):
        """No padding and no segments: plain causal attention, without a mask."""
        return bool((self.segments == 0).all())

    def to(self, device):
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self):
        """The same in pinned memory, from which a GPU copies while it computes; DataLoader calls this."""
        return self.each(torch.Tensor.pin_memory)

    def each(self, f):
        """The same with f applied to every tensor that moves."""
        moved = copy(self)
        derived = {name: getattr(self, name) for name in ("supervised", "reads", "targets", "causal")}
        for name, value in (vars(self) | derived).items():
            moves = isinstance(value, torch.Tensor) and name not in ("grids", "follows")
            setattr(moved, name, f(value) if moves else value)
        return moved


# ----------------------------------------------------------------------------------------------------------- images


def resized_size(width, height, factor, min_pixels, max_pixels):
    """The size (width, height) at which the model sees an image: sides in multiples of `factor` (28 pixels, one visual
    token), area within min_pixels and max_pixels, shape kept as well as that allows."""
    w, h = round(width / factor) * factor, round(height / factor) * factor
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif w * h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return w, h


@contextmanager
def opened(path):
    """An image file, opened by Pillow; whatever shows that it is not a whole image becomes an InputError naming it."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:  # Pillow's, all of them
        raise InputError(f"{path}: not a whole image ({error})") from None


def open_image(image):
    """A path or PIL image -> PIL image in RGB, turned as its EXIF tag says, transparency on white."""
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    with opened(image) as file:
        return to_rgb(ImageOps.exif_transpose(file))


def to_rgb(image):
    if image.mode.startswith("I;16"):
        image = image.point(lambda v: v / 256).convert("L")  # 16 bits a pixel: keep the upper 8
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@lru_cache(maxsize=65536)
def file_size(path):
    """(width, height) of an image file as `open_image` will give it; reads the header only."""
    with opened(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation: on its side
        return image.size[::-1] if turned else image.size


def image_key(image):
    """Equal for the same path and for the same PIL object: one picture."""
    return id(image) if isinstance(image, Image.Image) else str(image)


def image_size(image):
    """(width, height) of a path or PIL image."""
    return ImageOps.exif_transpose(image).size if isinstance(image, Image.Image) else file_size(str(image))


# ------------------------------------------------------------------------------------------------------------ boxes


def box_to_model(box, size, resized):
    """A box in pixels of the original image -> whole pixels of the resized one, which is what Qwen2.5-VL writes."""
    sx, sy = resized[0] / size[0], resized[1] / size[1]
    return [round(box[0] * sx), round(box[1] * sy), round(box[2] * sx), round(box[3] * sy)]


def box_from_model(box, size, resized):
    """A box in pixels of the resized image -> pixels of the original."""
    sx, sy = size[0] / resized[0], size[1] / resized[1]
    return [box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy]


def parse_box(text):
    """The first bracket in generated text that holds exactly four numbers, as [x1, y1, x2, y2], or None.
    Qwen's own {"bbox_2d": [...]} is read too."""
    for inside in re.findall(r"\[([^\[\]]*)\]", text):
        numbers = inside.split(",")
        if len(numbers) == 4 and all(re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)\s*", n) for n in numbers):
            return [float(n) for n in numbers]
    return None


def iou(a, b):
    """Intersection over union of two boxes (x1, y1, x2, y2). 0 for a box whose corners are swapped."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


# -------------------------------------------------------------------------------------------------------- processor


class Processor:
    """Examples -> Batch: resizing, patches, chat template, visual mask, labels.

    Made by `from_pretrained` from the tokenizer.json, preprocessor_config.json and config.json of a checkpoint.
    """

    def __init__(self, config, tokenizer, preprocessor, min_pixels=None, max_pixels=None):
        size = preprocessor.get("size", {})
        self.config, self.preprocessor = config, preprocessor
        self.min_pixels = min_pixels or preprocessor.get("min_pixels") or size.get("shortest_edge") or 56 * 56
        self.max_pixels = max_pixels or preprocessor.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
        self.mean = torch.tensor(preprocessor["image_mean"])
        self.std = torch.tensor(preprocessor["image_std"])
        self.factor = config.vision.patch_size * config.vision.merge  # pixels a side of one visual token
        if self.min_pixels > self.max_pixels:
            raise InputError(f"max_pixels {self.max_pixels} is below min_pixels {self.min_pixels}")
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "<|im_end|>" typed by a user is text, not a special token
        self.special = {
            name: tokenizer.token_to_id(f"<|{name}|>")
            for name in ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "endoftext")
        }
        if None in self.special.values() or self.special["image_pad"] != config.image_token:
            raise InputError(f"the tokenizer's special tokens {self.special} are not those of config.json")

    @classmethod
    def from_pretrained(cls, path_or_hub_id, min_pixels=None, max_pixels=None):
        """min_pixels, max_pixels: area limits of a resized image; by default those of preprocessor_config.json.
        784 pixels (28 x 28) are one visual token in the published models."""
        folder = checkpoint_folder(path_or_hub_id)
        if (folder / "preprocessor_config.json").exists():
            preprocessor = read_json(folder / "preprocessor_config.json")
        else:  # newer transformers writes one file for all processors
            preprocessor = read_json(folder / "processor_config.json").get("image_processor", {})
        if not {"image_mean", "image_std"} <= preprocessor.keys():
            raise InputError(f"{folder}/preprocessor_config.json: no image_mean and image_std")
        file = folder / "tokenizer.json"
        read_json(file)  # absent or broken: one clear line
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001 (tokenizers raises nothing narrower)
            raise InputError(f"{file}: not a tokenizer ({error})") from None
        return cls(Config.from_pretrained(folder), tokenizer, preprocessor, min_pixels, max_pixels)

    def save(self, path):
        """Write tokenizer.json and preprocessor_config.json beside a saved model."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        write_text(folder / "preprocessor_config.json", json.dumps(self.preprocessor | limits, indent=2) + "\n")
        write_text(folder / "tokenizer.json", self.tokenizer.to_str(pretty=False))

    # -- images

    def resized(self, image, name=""):
        """(width, height) at which the model sees an image. Raises InputError if its sides differ over 200 times."""
        width, height = image_size(image)
        if max(width, height) > MAX_RATIO * min(width, height):
            raise InputError(
                f"{name or image}: {width} x {height} pixels; the sides may differ {MAX_RATIO} times at most"
            )
        return resized_size(width, height, self.factor, self.min_pixels, self.max_pixels)

    def grid(self, image):
        """(slices, rows, columns) in patches at which the model sees an image; reads no pixels."""
        width, height = self.resized(image)
        return 1, height // self.config.vision.patch_size, width // self.config.vision.patch_size

    def cut(self, image):
        """An image -> patches [h * w, 1176] and grid (1, h, w), as the vision encoder reads them.

        Bicubic resize, then (x / 255 - mean) / std. Patches run through merge x merge blocks, the blocks row by row;
        within a patch: channel, frame (a still picture is two equal frames), row, column.
        """
        c = self.config.vision
        width, height = self.resized(image)
        image = open_image(image).resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)
        pixels = ((pixels / 255 - self.mean) / self.std).permute(2, 0, 1)  # [3, height, width]
        grid = _, h, w = self.grid(image)
        blocks = pixels.reshape(3, h // c.merge, c.merge, c.patch_size, w // c.merge, c.merge, c.patch_size)
        blocks = blocks.permute(1, 4, 2, 5, 0, 3, 6)  # [h/2, w/2, 2, 2, 3, 14, 14]
        frames = blocks.unsqueeze(5).expand(-1, -1, -1, -1, -1, c.temporal_patch_size, -1, -1)
        return frames.reshape(h * w, c.patch_values), grid

    # -- text

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        """Token ids -> text, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def answer_text(self, example):
        """The text to learn: the answer, or a box in pixels of the resized image."""
        if example.answer is None or isinstance(example.answer, str):
            return example.answer
        (image,) = example.images
        return str(box_to_model(example.answer, image_size(image), self.resized(image, example.name)))

    def tokens(self, example):
        """(ids, first supervised position) of one example; the images' tokens are there, the images not yet opened.
        Raises InputError for an answer without tokens."""
        s = self.special
        ids = [s["im_start"], *self.encode(f"system\n{SYSTEM}"), s["im_end"], *self.encode("\n"), s["im_start"]]
        if example.images:
            ids += self.encode("user\n")
            for image in example.images:
                width, height = self.resized(image, example.name)
                count = (width // self.factor) * (height // self.factor)
                ids += [s["vision_start"], *[s["image_pad"]] * count, s["vision_end"]]
            ids += self.encode(example.prompt)
        else:  # one piece, as the reference does it: newlines at the prompt's start merge with the one before
            ids += self.encode(f"user\n{example.prompt}")
        ids += [s["im_end"], *self.encode("\n"), s["im_start"], *self.encode("assistant\n")]
        answer = self.answer_text(example)
        if answer is None:
            return ids, len(ids)
        answer_ids = self.encode(answer)
        if not answer_ids:
            raise InputError(f"{example.name}: the answer has no tokens")
        return [*ids, *answer_ids, s["im_end"]], len(ids)

    def count(self, example):
        """(all tokens, visual tokens) of one example; reads no pixels."""
        ids, _ = self.tokens(example)
        return len(ids), ids.count(self.special["image_pad"])

    def positions(self, ids, grids):
        """Multimodal positions of one row, [T][3]. Text counts on in all three; the tokens of an image share a time
        and count their rows and columns from there; text goes on behind the largest of the three."""
        merge, image = self.config.vision.merge, iter(grids)
        positions, start, i = [], 0, 0
        while i < len(ids):
            if ids[i] == self.special["image_pad"]:
                _, h, w = next(image)
                h, w = h // merge, w // merge
                positions += [(start, start + y, start + x) for y in range(h) for x in range(w)]
                start, i = start + max(h, w), i + h * w
            else:
                positions.append((start,) * 3)
                start, i = start + 1, i + 1
        return positions

    def __call__(self, examples, share_images=False, known=None):
        """Examples -> Batch. All with answers: padded on the right, to train; none: on the left, to generate.

        share_images: consecutive examples about the same images (same paths or same objects) share one row, which
        shows the images once, in segment 0, and then each question with its answer in a segment of its own, at the
        positions that it would have alone. The mask keeps the segments apart, so loss and gradients are those of
        separate rows. Examples without images never share.
        known: {image_key: visual embeddings [m, D]} of pictures that have been encoded before; these are neither opened
        nor cut, nor encoded again.

        Raises ValueError for a mixture and InputError for a bad image, an empty answer or an example longer than the
        model's positions.
        """
        answered = {e.answer is not None for e in examples}
        if len(answered) != 1:
            raise ValueError("a batch needs examples, all with answers (to train) or all without (to generate)")
        known, tokens = known or {}, [self.tokens(example) for example in examples]
        for example, (ids, _) in zip(examples, tokens):
            if len(ids) > self.config.max_positions:
                raise InputError(
                    f"{example.name}: {len(ids)} tokens, the model has {self.config.max_positions} positions"
                )

        # each picture of the batch once: first those that the encoder has to see, then the known ones
        pictures = {image_key(image): image for example in examples for image in example.images}
        grids = {key: self.grid(image) for key, image in pictures.items()}
        new, old = [k for k in pictures if k not in known], [k for k in pictures if k in known]
        source, count = {}, 0  # of each picture: its rows in the encoder's output and the known embeddings behind it
        for key in new + old:
            source[key] = range(count, count := count + math.prod(grids[key]) // self.config.vision.merge**2)

        rows, places, shown = [], [], None
        for example, (ids, supervised) in zip(examples, tokens):
            keys = [image_key(image) for image in example.images]
            start = 0
            if share_images and keys and keys == shown:
                start = len(ids) - ids[::-1].index(self.special["vision_end"])  # behind the last image
                row, segment = places[-1]
                if segment == 0:  # an ordinary row until now: its question becomes segment 1
                    places[-1] = row, 1
                    rows[row]["segments"][start:] = [1] * (len(rows[row]["segments"]) - start)
                places.append((row, places[-1][1] + 1))
            else:
                rows.append({name: [] for name in ("ids", "labels", "segments", "positions", "source")})
                places.append((len(rows) - 1, 0))
                rows[-1]["source"] += [i for key in keys for i in source[key]]
            row, segment = rows[places[-1][0]], places[-1][1]
            row["ids"] += ids[start:]
            row["labels"] += ([-100] * supervised + ids[supervised:])[start:]
            row["segments"] += [segment] * (len(ids) - start)
            row["positions"] += self.positions(ids, [grids[key] for key in keys])[start:]
            shown = keys

        B, T = len(rows), max(len(row["ids"]) for row in rows)
        input_ids = torch.full((B, T), self.special["endoftext"])
        segments, labels = torch.full((B, T), -1), torch.full((B, T), -100)
        position_ids = torch.zeros(3, B, T, dtype=torch.long)
        for b, row in enumerate(rows):
            start = 0 if True in answered else T - len(row["ids"])
            here = slice(start, start + len(row["ids"]))
            input_ids[b, here] = torch.tensor(row["ids"])
            labels[b, here] = torch.tensor(row["labels"])
            segments[b, here] = torch.tensor(row["segments"])
            position_ids[:, b, here] = torch.tensor(row["positions"]).T
        real = segments >= 0
        visual_mask = (input_ids == self.special["image_pad"]) & real
        empty = torch.empty(0, self.config.vision.patch_values)
        return Batch(
            input_ids=input_ids,
            attention_mask=real.long(),
            position_ids=position_ids,
            segments=segments,
            labels=labels,
            visual_mask=visual_mask,
            visual_index=visual_mask.flatten().nonzero()[:, 0],
            visual_source=torch.tensor([i for row in rows for i in row["source"]], dtype=torch.long),
            patches=torch.cat([self.cut(pictures[key])[0] for key in new]) if new else empty,
            grids=torch.tensor([grids[key] for key in new], dtype=torch.long).view(-1, 3),
            examples=places,
            known=torch.cat([known[key] for key in old]) if old else None,
        )


# -------------------------------------------------------------------------------------------------------- data sets
# A loader yields plain rows {"image" or "images", "prompt" or "sent", "answer" or "bbox", "width", "height"} with
# their source; `to_example` checks each one and turns it into an Example. Every loader hands on boxes as
# (x1, y1, x2, y2) in pixels of the original image: COCO's (x, y, w, h) is converted by `corners`, nowhere else.

REFCOCO_FILES = {  # data set -> its REFER pickle, and what its JSON files are called
    "refcoco": ("refs(unc).p", ("refcoco",)),
    "refcoco+": ("refs(unc).p", ("refcoco+", "refcocop")),
    "refcocog": ("refs(umd).p", ("refcocog",)),
}
IMAGE_FOLDERS = ("", "images", "train2014", "images/train2014", "images/mscoco/images/train2014")


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers and strings. A pickle can name any function to be called while it is read; this one
    refuses every name, so that a data file cannot run code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks to run {module}.{name}")


def read_pickle(file):
    try:
        with open(file, "rb") as f:
            return PlainUnpickler(f, encoding="utf-8", errors="replace").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise InputError(f"{file}: not a pickle of plain data ({error}); refused") from None


def corners(box):
    """(x, y, width, height) -> (x1, y1, x2, y2)."""
    x, y, w, h = box
    return (x, y, x + w, y + h)


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


def refer_rows(folder, pickle_name, split):
    """The original REFER layout: refs(unc).p has the expressions, instances.json (COCO style) the boxes."""
    refs, instances = read_pickle(folder / pickle_name), read_json(folder / "instances.json")
    present = sorted({ref["split"] for ref in refs})
    if split not in present:
        raise InputError(f"{folder / pickle_name}: no split {split!r}; present: {', '.join(present)}")
    boxes = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
    images = {image["id"]: image for image in instances["images"]}
    for ref in refs:
        if ref["split"] == split:
            source = f"{folder / pickle_name}, ref {ref['ref_id']}"
            if ref["ann_id"] not in boxes or ref["image_id"] not in images:
                raise InputError(f"{source}: annotation {ref['ann_id']} is not in instances.json")
            image = images[ref["image_id"]]
            for sentence in ref["sentences"]:
                # the file_name of a ref carries a suffix that its image's name lacks, so the id names the image
                row = {"image": f"COCO_train2014_{ref['image_id']:012d}.jpg", "sent": sentence["sent"]}
                row |= {"bbox": corners(boxes[ref["ann_id"]]), "width": image["width"], "height": image["height"]}
                yield row, source


def refcoco_row(row, source):
    """The JSON forms of the RefCOCO family -> one. Qwen-VL's evaluation: {"image", "sent", "bbox" x1 y1 x2 y2};
    VLM-R1's: {"image", "problem", "solution" x1 y1 x2 y2} and {"image", "conversations"}; and the annotations
    {"img_id", "sents", "bbox" x y w h}."""
    try:
        if "conversations" in row:
            question, answer = (turn["value"] for turn in row["conversations"])
            return {"image": row["image"], "sent": described(question), "bbox": parse_box(answer)}
        if "problem" in row:
            return {"image": row["image"], "sent": described(row["problem"]), "bbox": row["solution"]}
        if "img_id" in row:
            image = re.sub(r"_\d+$", "", row["img_id"]) + ".jpg"
            return row | {"image": image, "sent": row["sents"], "bbox": corners(row["bbox"])}
        return {key: row[key] for key in ("image", "sent", "bbox")} | {
            k: row[k] for k in ("width", "height") if k in row
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: not a RefCOCO row as known here ({type(error).__name__}: {error})") from None


def described(question):
    """VLM-R1 wraps each expression in its own prompt: take what stands behind "describes:"."""
    return re.sub(r".*describes:\s*", "", question.replace("<image>", ""), flags=re.DOTALL).strip()


def refcoco(name, root, split):
    """RefCOCO, RefCOCO+, RefCOCOg: REFER's folder (root/refcoco/refs(unc).p, instances.json) or the JSON files
    root/refcoco_<split>.json or .jsonl of VLM-R1 and Qwen-VL; images in root/images/train2014 or root/train2014."""
    pickle_name, prefixes = REFCOCO_FILES[name]
    if (root / name / pickle_name).exists():
        yield from refer_rows(root / name, pickle_name, split)
        return
    found = {
        file.stem.removeprefix(f"{prefix}_"): file
        for prefix in prefixes
        for suffix in ("json", "jsonl")
        for file in sorted(root.glob(f"{prefix}_*.{suffix}"))
    }
    if not found:
        raise InputError(
            f"{root}: no {name} here; put {name}/{pickle_name} and {name}/instances.json of REFER "
            f"(github.com/lichengunc/refer), or {prefixes[-1]}_<split>.json of VLM-R1 (hub data set omlab/VLM-R1, "
            f"rec_jsons_processed.zip), into this folder and COCO's train2014 images into {root}/images/train2014"
        )
    if split not in found:
        raise InputError(f"{root}: no split {split!r} of {name}; present: {', '.join(sorted(found))}")
    for row, source in json_rows(found[split]):
        yield refcoco_row(row, source), source


def jsonl(name, root, split):
    """Your own rows in root/<split>.jsonl: "image" or "images" (paths relative to root; none: text only), "prompt" or
    "sent" (put into the RefCOCO prompt), "answer" (text) or "bbox" (x1, y1, x2, y2 in pixels of the image)."""
    file = root / f"{split}.jsonl"
    if not file.exists():
        present = sorted(path.stem for path in root.glob("*.jsonl"))
        raise InputError(f"{file}: no such split; present: {', '.join(present) or 'no .jsonl file at all'}")
    return json_rows(file)


DRAWN = {  # the tiny world of tiny/scenes.py: name -> look, kinds of question
    "scenes": (scenes.DEMO_LOOK, ("grounding",)),
    **{f"scenes-{look}": (look, ("grounding", "attribute")) for look in scenes.LOOKS},
    "scenes-prior": ("prior", ("attribute",)),
    "sums": ("day", ("text",)),
    "scenes-pretraining": ("day", ("grounding", "attribute", "listing", "text")),
}


def drawn(name, root, split):
    """Pictures and questions without end, drawn on the fly; the tiny model was pretrained on "scenes-pretraining"."""
    look, kinds = DRAWN[name]
    if split not in scenes.SPLIT_SEEDS:
        raise InputError(f"{name}: no split {split!r}; present: {', '.join(scenes.SPLIT_SEEDS)}")
    for number, row in enumerate(scenes.rows(look, split)):
        if row["kind"] in kinds:
            yield row, f"{name} {split} {number}"


DATASETS = dict.fromkeys(REFCOCO_FILES, refcoco) | {"jsonl": jsonl} | dict.fromkeys(DRAWN, drawn)


def load(name, root, split, limit=None):
    """The first `limit` (None or 0: all) examples of a split of a data set, each with its answer.

    root: the folder that holds the data set (drawn ones need none, but a limit). Images are found and their sizes read,
    but not decoded. Raises InputError for an unknown name or split, a missing file or image, and any row that is not
    what it should be.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    if name in DRAWN and not limit:
        raise InputError(f"{name}: drawn without end; say how many examples (a limit)")
    root = Path(root or ".")
    rows = islice(DATASETS[name](name, root, split), limit or None)
    examples = [to_example(row, source, root) for row, source in rows]
    if not examples:
        raise InputError(f"{root}: split {split!r} of {name} has no rows")
    return examples


def to_example(row, source, root):
    """Check one row and make it an Example; every complaint names the row."""
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
    return Example(images, prompt, answer, source, row.get("kind", ""))


def find_image(name, source, root):
    if isinstance(name, str):
        for folder in IMAGE_FOLDERS:
            if (root / folder / name).is_file():
                return root / folder / name
    raise InputError(f"{source}: its image {name} is not in {root} (nor in {', '.join(IMAGE_FOLDERS[1:])} there)")


def check_box(row, source, images):
    """The row's box as (x1, y1, x2, y2), inside its image but for a pixel of rounding."""
    box = row["bbox"]
    if not (isinstance(box, (list, tuple)) and len(box) == 4 and all(type(n) in (int, float) for n in box)):
        raise InputError(f"{source}: a box is four numbers [x1, y1, x2, y2], got {box!r:.60}")
    if len(images) != 1:
        raise InputError(f"{source}: a box needs exactly one image, got {len(images)}")
    width, height = image_size(images[0])
    if (row.get("width", width), row.get("height", height)) != (width, height):
        said = f"{row.get('width')} x {row.get('height')}"
        raise InputError(f"{source}: says {said} pixels, but {images[0]} has {width} x {height}; the box would be off")
    x1, y1, x2, y2 = box
    if not (-1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1):
        raise InputError(
            f"{source}: box {list(box)} does not lie in its image {images[0]} of {width} x {height} pixels"
        )
    return (x1, y1, x2, y2)


# ---------------------------------------------------------------------------------------------------------- metrics


def score(example, text, processor):
    """Score one generated text against its example: {"parsed", "score", "failed"}.

    A box is right (1.0) if its IoU with the reference is at least 0.5, both in pixels of the original image
    (accuracy@0.5 of the RefCOCO family); text without four numbers in brackets is wrong and counts as failed. A text
    answer is right if it equals the reference but for white space at its ends.
    """
    if isinstance(example.answer, str):
        return {"parsed": text.strip(), "score": float(text.strip() == example.answer.strip()), "failed": False}
    box = parse_box(text)
    if box is None:
        return {"parsed": None, "score": 0.0, "failed": True}
    (image,) = example.images
    box = box_from_model(box, image_size(image), processor.resized(image))
    return {"parsed": box, "score": float(iou(box, example.answer) >= 0.5), "failed": False}

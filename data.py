"""Data: files on disk -> Example -> Batch. What generated text is worth is metrics.py.

    load("refcoco", root, "train")          -> [Example, ...]
    Processor.from_pretrained(model)        -> processor
    processor(examples)                     -> Batch, what VLM.loss and VLM.generate take
    python data.py score predictions.jsonl  computes the scores of a run's answers anew

A row of a batch is Qwen's chat template, rendered by hand:

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    <|vision_start|><|image_pad|>...<|vision_end|>the prompt<|im_end|>
    <|im_start|>assistant
    the answer<|im_end|>

with one <|image_pad|> (in a video <|video_pad|>) for every visual token, and only the last line supervised. Prompt and answer are tokenised
apart and concatenated, so the labels are right by construction.

Shapes: B batch, T sequence length, P image patches, N visual tokens in the batch.
"""

import argparse
import csv
import json
import math
import os
import pickle
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from tqdm import tqdm

from metrics import box_to_model, gsm8k_answer, parse_box, score, summary
from model import Config, InputError, checkpoint_folder, read_json, write_text
from tiny import scenes

SYSTEM = "You are a helpful assistant."
REFCOCO_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}. Answer in JSON."
PLACE = "<image>"  # where an image stands in a prompt that says so
MAX_RATIO = 200  # of an image's sides: a longer strip cannot be resized to whole patches in a useful way


@dataclass
class Example:
    """One question about any number of images and videos.

    images: paths or PIL images; videos: lists of frames (paths, PIL images or Frames), fps: their frames a second.
    prompt: text; images stand before it, then videos, unless it says "<image>" once for each of them. history: earlier
    turns of the same conversation, (prompt, answer) each. answer: text, or a box (x1, y1, x2, y2) in pixels of the only
    image as it is on disk (the processor writes it in pixels of the resized image), or None = to generate.
    metric: a name in metrics.METRICS ("": by the answer, iou or exact); reference: what it compares with (None: the
    answer); kind, group: accuracy is also counted by these; source: where it is from ("val.jsonl:17"), for messages.
    """

    images: list = field(default_factory=list)
    prompt: str = ""
    answer: str | tuple | None = None
    source: str = ""
    kind: str = ""
    group: str = ""
    metric: str = ""
    reference: str | list | tuple | None = None
    videos: list = field(default_factory=list)
    fps: float = 2.0
    history: tuple = ()

    @property
    def visuals(self):
        """What is seen, in order: images, and videos as tuples of frames."""
        return [*self.images, *(tuple(frames) for frames in self.videos)]

    @property
    def name(self):
        return self.source or f"the example {self.prompt[:40]!r}"


@dataclass(frozen=True)
class Frame:
    """One frame of an animated image file (GIF, WebP, PNG)."""

    path: str
    index: int


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


# ------------------------------------------------------------------------------------------------ images and videos


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
    """A path, Frame or PIL image -> PIL image in RGB, turned as its EXIF tag says, transparency on white."""
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    with opened(image.path if isinstance(image, Frame) else image) as file:
        file.seek(image.index if isinstance(image, Frame) else 0)
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
    """Equal for the same path and for the same PIL object, one picture; for a video of the same frames."""
    if isinstance(image, tuple):
        return tuple(image_key(frame) for frame in image)
    return id(image) if isinstance(image, Image.Image) else str(image)


def image_size(image):
    """(width, height) of a path, Frame or PIL image."""
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).size
    return file_size(str(image.path if isinstance(image, Frame) else image))


def sample(count, wanted):
    """`wanted` places spread evenly over range(count), first and last included; all of them if there are fewer."""
    wanted = min(wanted, count)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]


def video_frames(path, wanted):
    """(frames, seconds or None) of a video: a folder of images in the order of their names, or an animated image file.
    At most `wanted` frames, evenly spread. Raises InputError if there is nothing to see."""
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        if not files:
            raise InputError(f"{path}: no frames (.jpg, .png, .webp) in this folder")
        return [files[i] for i in sample(len(files), wanted)], None
    with opened(path) as file:
        count, milliseconds = getattr(file, "n_frames", 1), 0
        for i in range(count):
            file.seek(i)
            milliseconds += file.info.get("duration", 0)
    return [Frame(str(path), i) for i in sample(count, wanted)], milliseconds / 1000 or None


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
            for name in ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad", "endoftext")
        }
        pads = self.special["image_pad"], self.special["video_pad"]
        if None in self.special.values() or pads != (config.image_token, config.video_token):
            raise InputError(f"the tokenizer's special tokens {self.special} are not those of config.json")

    def __setstate__(self, state):
        """A worker process that is spawned gets a copy; the tokenizer's copy forgets this setting."""
        self.__dict__.update(state)
        self.tokenizer.encode_special_tokens = True

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
        """(width, height) at which the model sees an image, or each frame of a video. Raises InputError if its sides
        differ over 200 times."""
        image = image[0] if isinstance(image, tuple) else image
        width, height = image_size(image)
        if max(width, height) > MAX_RATIO * min(width, height):
            raise InputError(
                f"{name or image}: {width} x {height} pixels; the sides may differ {MAX_RATIO} times at most"
            )
        return resized_size(width, height, self.factor, self.min_pixels, self.max_pixels)

    def grid(self, image):
        """(slices, rows, columns) in patches at which the model sees an image or video; reads no pixels. A slice is two
        frames (temporal_patch_size)."""
        c, frames = self.config.vision, len(image) if isinstance(image, tuple) else 1
        width, height = self.resized(image)
        return math.ceil(frames / c.temporal_patch_size), height // c.patch_size, width // c.patch_size

    def visual_tokens(self, image):
        """The number of visual tokens of an image or video: merge x merge patches become one."""
        return math.prod(self.grid(image)) // self.config.vision.merge**2

    def cut(self, image):
        """An image or video -> patches [t * h * w, 1176] and grid (t, h, w), as the vision encoder reads them.

        Bicubic resize, then (x / 255 - mean) / std. Patches run slice by slice through merge x merge blocks, the blocks
        row by row; within a patch: channel, frame, row, column. The last frame is repeated until slices are full: a still
        picture is two equal frames.
        """
        c, size = self.config.vision, self.resized(image)
        pixels = [self.pixels(frame, size) for frame in (image if isinstance(image, tuple) else (image,))]
        pixels += pixels[-1:] * (-len(pixels) % c.temporal_patch_size)
        grid = t, h, w = self.grid(image)
        blocks = torch.stack(pixels).view(
            t, c.temporal_patch_size, 3, h // c.merge, c.merge, c.patch_size, w // c.merge, c.merge, c.patch_size
        )
        blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # [t, h/2, w/2, 2, 2, 3, 2, 14, 14]
        return blocks.reshape(t * h * w, c.patch_values), grid

    def pixels(self, image, size):
        """An image at (width, height) -> normalised [3, height, width]."""
        image = open_image(image).resize(size, Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3)
        return ((pixels / 255 - self.mean) / self.std).permute(2, 0, 1)

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
        s, newline = self.special, self.encode("\n")
        visuals = []
        for image in example.visuals:
            self.resized(image, example.name)  # complains by the example's name
            pad = s["video_pad"] if isinstance(image, tuple) else s["image_pad"]
            visuals.append([s["vision_start"], *[pad] * self.visual_tokens(image), s["vision_end"]])
        ids = [s["im_start"], *self.encode(f"system\n{SYSTEM}"), s["im_end"], *newline]
        for prompt, answer in example.history:
            ids += [*self.user_turn(prompt, visuals), *self.encode(answer), s["im_end"], *newline]
            visuals = []  # they stand in the first turn
        ids += self.user_turn(example.prompt, visuals)
        answer = self.answer_text(example)
        if answer is None:
            return ids, len(ids)
        answer_ids = self.encode(answer)
        if not answer_ids:
            raise InputError(f"{example.name}: the answer has no tokens")
        return [*ids, *answer_ids, s["im_end"]], len(ids)

    def user_turn(self, prompt, visuals):
        """The ids of a user's turn and of the assistant's beginning. Text is encoded in pieces that end only where
        something is seen, as the reference does it: newlines at a prompt's start merge with the one before."""
        s, pieces = self.special, prompt.split(PLACE)
        if len(pieces) != len(visuals) + 1:
            pieces = [*[""] * len(visuals), prompt]
        ids = [s["im_start"], *self.encode(f"user\n{pieces[0]}")]
        for visual, piece in zip(visuals, pieces[1:]):
            ids += [*visual, *self.encode(piece)]
        return [*ids, s["im_end"], *self.encode("\n"), s["im_start"], *self.encode("assistant\n")]

    def is_visual(self, ids):
        """[...] token ids -> bool: an image's or a video's."""
        return (ids == self.special["image_pad"]) | (ids == self.special["video_pad"])

    def count(self, example):
        """(all tokens, visual tokens) of one example; reads no pixels."""
        ids, _ = self.tokens(example)
        return len(ids), sum(self.visual_tokens(image) for image in example.visuals)

    def positions(self, ids, grids, fps=2.0):
        """Multimodal positions of one row, [T][3]. Text counts on in all three; visual tokens count time, rows and columns
        from there, and text goes on behind the largest of the three. Time runs by the clock: tokens_per_second a second,
        rounded down, so that the slices of a slow video lie further apart; the only slice of an image is at 0."""
        c, seen = self.config.vision, iter(grids)
        positions, start, i = [], 0, 0
        while i < len(ids):
            if ids[i] in (self.special["image_pad"], self.special["video_pad"]):
                t, h, w = next(seen)
                h, w = h // c.merge, w // c.merge
                times = [int(k * c.temporal_patch_size / fps * c.tokens_per_second) for k in range(t)]
                positions += [(start + k, start + y, start + x) for k in times for y in range(h) for x in range(w)]
                start, i = start + max(times[-1] + 1, h, w), i + t * h * w
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
        pictures = {image_key(image): image for example in examples for image in example.visuals}
        grids = {key: self.grid(image) for key, image in pictures.items()}
        new, old = [k for k in pictures if k not in known], [k for k in pictures if k in known]
        source, count = {}, 0  # of each picture: its rows in the encoder's output and the known embeddings behind it
        for key in new + old:
            source[key] = range(count, count := count + self.visual_tokens(pictures[key]))

        rows, places, shown = [], [], None  # shown: what stands in the row begun last up to the end of its images
        for example, (ids, supervised) in zip(examples, tokens):
            keys = [image_key(image) for image in example.visuals]
            start, seen = 0, None
            if share_images and keys:
                behind = len(ids) - ids[::-1].index(self.special["vision_end"])  # the last image
                seen = keys, example.fps, ids[:behind]
            if seen and seen == shown:
                start = behind
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
            row["positions"] += self.positions(ids, [grids[key] for key in keys], example.fps)[start:]
            shown = seen

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
        visual_mask = self.is_visual(input_ids) & real
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


# --------------------------------------------------------------------------------------------------------- fetching
# What is fetched lies in a cache folder. A file has its final name only once it is whole and checked, so whatever
# stops a run, the next one goes on; and a run that misses nothing asks neither the network nor the lock.

ANNOTATIONS = "omlab/VLM-R1/rec_jsons_processed.zip"  # of RefCOCO, RefCOCO+ and RefCOCOg: a data set on the hub, 38 MB
WEB = ("http://", "https://")
COCO_IMAGES = "http://images.cocodataset.org/train2014/"
WORKERS, TIMEOUT = 16, 30  # images fetched at once; seconds without a byte until a connection counts as lost
TRIES, PAUSE = 3, 2.0  # of one address, and seconds between them


def cache_folder():
    """Where fetched data lies: $IMAGELORA_CACHE, else image-lora in $XDG_CACHE_HOME or ~/.cache."""
    own, shared = os.environ.get("IMAGELORA_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(shared or Path.home() / ".cache") / "image-lora"


@contextmanager
def locked(folder):
    """Make the folder and keep other processes from fetching into it; waits, and says so, while one does."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting  for another run that is fetching into {folder}", flush=True)
            lock.acquire()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); IMAGELORA_CACHE names another folder") from None
    try:
        yield
    finally:
        lock.release()


def download(url, part, stop):
    """The bytes at an address -> the file `part`, going on where an earlier try or run left it. Raises InputError if
    they are not there or do not come in TRIES tries; begins no further try once the Event `stop` is set."""
    for attempt in range(TRIES):
        if stop.wait(PAUSE if attempt else 0):
            raise InputError(f"{url}: stopped")
        have = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": "image-lora"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
                have *= response.status == 206  # a server that knows no ranges says 200 and sends everything
                with open(part, "ab" if have else "wb") as file:
                    shutil.copyfileobj(response, file)
                size, announced = part.stat().st_size, have + int(response.headers["Content-Length"] or 0)
            if size >= announced:
                return
            reason = f"the connection closed after {size:,} of {announced:,} bytes"
        except HTTPError as error:
            if error.code == 404:
                raise InputError(f"{url}: not found (404)") from None
            if error.code == 416:  # `part` is no shorter than what is there: start over
                part.unlink(missing_ok=True)
            reason = error
        except (OSError, HTTPException, ValueError) as error:
            reason = error
    raise InputError(f"{url}: not to be had in {TRIES} tries ({reason}); the same command again goes on from here")


def fetch_image(url, file, stop):
    """Fetch one image; what does not decode is fetched once more, from its first byte."""
    part = file.with_name(file.name + ".part")
    for _ in range(2):
        download(url, part, stop)
        try:
            with opened(part) as image:
                image.load()
        except InputError:
            part.unlink()
        else:
            os.replace(part, file)
            return
    raise InputError(f"{url}: not a whole image, though fetched twice")


def fetch_images(names, folder, base_url=COCO_IMAGES):
    """Fetch those of the named images that folder/train2014 lacks, each from base_url + name. Raises InputError, naming
    the address, at the first that cannot be had; those fetched until then stay."""
    images = Path(folder) / "train2014"
    names = {Path(name).name for name in names}  # they come from annotations, which must not choose the folder

    def missing():
        return sorted(name for name in names if not (images / name).exists())

    if not missing():
        return
    with locked(Path(folder)):
        if not (names := missing()):  # the run that was waited for has fetched them
            return
        print(f"fetching {len(names):,} images from {base_url} into {images}", flush=True)
        images.mkdir(exist_ok=True)
        stop = Event()
        with ThreadPoolExecutor(WORKERS) as pool, tqdm(total=len(names), desc="images", leave=False) as bar:
            try:
                urls = [(base_url + quote(name), images / name) for name in names]
                for job in as_completed([pool.submit(fetch_image, url, file, stop) for url, file in urls]):
                    job.result()
                    bar.update()
            finally:  # on an error or Ctrl-C whatever is queued ends at once; the lock is held until all have
                stop.set()


def fetch_annotations(folder, source=ANNOTATIONS):
    """Unpack the JSON files of a zip archive into the folder, unless they are there from the same source.

    source: a local zip file, an http(s) address, or owner/name/file of a data set on the hub. Raises InputError if it
    cannot be had, is broken or holds no JSON file; the folder is then as it was.
    """
    folder = Path(folder)
    marker = folder / "annotations.txt"  # a line for the source, and one for each file unpacked from it
    if not source.startswith(WEB) and Path(source).is_file():
        source = str(Path(source).resolve())

    def recorded():
        return marker.read_text(encoding="utf-8").splitlines() if marker.exists() else [""]

    def there():
        known, *names = recorded()
        return known == source and all((folder / name).exists() for name in names)

    if there():
        return
    with locked(folder):
        if there():
            return
        print(f"fetching annotations from {source} into {folder}", flush=True)
        with TemporaryDirectory(dir=folder) as new:
            try:
                names = unpack(archive(source, Path(new)), Path(new), source)
            except InputError as error:
                raise InputError(f"{error}; --annotations FILE_OR_URL names another archive") from None
            for name in recorded()[1:]:  # so that no split of another source is left among the new ones
                (folder / name).unlink(missing_ok=True)
            marker.unlink(missing_ok=True)
            for name in names:
                os.replace(Path(new) / name, folder / name)
        write_text(marker, "\n".join([source, *names]) + "\n")


def archive(source, folder):
    """The zip file that a source of `fetch_annotations` names; one from an http(s) address comes into the folder."""
    if source.startswith(WEB):
        download(source, folder / "archive.zip", Event())
        return folder / "archive.zip"
    if Path(source).is_file():
        return Path(source)
    on_hub = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)/(.+)", source)
    if not on_hub:
        raise InputError(f"{source}: no such file, nor an http address, nor owner/name/file of a data set on the hub")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(on_hub[1], on_hub[2], repo_type="dataset"))
    except Exception as error:  # noqa: BLE001 (the hub's errors and those of its HTTP library share nothing narrower)
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(f"{source}: no such file, and not to be had from the hub: {reason}") from None


def unpack(file, folder, source):
    """Unpack the JSON files of a zip archive, wherever they lie in it, right into the folder -> their names.
    source: what an InputError calls it."""
    names = set()
    try:
        with zipfile.ZipFile(file) as members:
            for member in members.infolist():
                if member.filename.endswith((".json", ".jsonl")):
                    name = Path(member.filename).name  # not the path: "../x.json" would leave the folder
                    with members.open(member) as packed, open(folder / name, "wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
                    names.add(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{source}: not a whole zip archive ({error})") from None
    if not names:
        raise InputError(f"{source}: no .json or .jsonl file in this archive")
    return sorted(names)


# -------------------------------------------------------------------------------------------------------- data sets
# A loader yields plain rows with their source; `to_example` checks each one and turns it into an Example. A row holds
# "image", "images" or "videos", "prompt" or "sent" (put into the RefCOCO prompt), "answer" or "bbox", and whatever else
# an Example has. Every loader hands on boxes as (x1, y1, x2, y2) in pixels of the original image: COCO's (x, y, w, h)
# is converted by `corners`, nowhere else.

REFCOCO_FILES = {  # data set -> its REFER pickle, and what its JSON files are called
    "refcoco": ("refs(unc).p", ("refcoco",)),
    "refcoco+": ("refs(unc).p", ("refcoco+", "refcocop")),
    "refcocog": ("refs(umd).p", ("refcocog",)),
}
IMAGE_FOLDERS = ("", "images", "train2014", "images/train2014", "images/mscoco/images/train2014", "train_images")
IMAGE_FOLDERS += ("screenspotv2_image",)
# what is read of your own rows
OWN = ["image", "images", "prompt", "sent", "answer", "bbox", "width", "height", "kind"]
SCREENSPOT_PROMPT = 'In this UI screenshot, what is the position of the element corresponding to the command "{}"?'
TEXTVQA_PROMPT = "{}\nAnswer the question using a single word or phrase."
NEXTQA_PROMPT = "{}?\n{}\nAnswer with the option's letter from the given choices directly."
NEXTQA_GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}
VIDEO_FRAMES = 8
VILP_PROMPT = "Please answer with one word: {}"
GSM8K_PROMPT = '{}\nThink step by step, and write the final number behind "####" at the end.'


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


@contextmanager
def reading(source, what):
    """What a row lacks or holds wrongly becomes an InputError that names it."""
    try:
        yield
    except InputError:  # says it already
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{source}: not a row of {what} as known here ({error!r})") from None


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
    with reading(source, "RefCOCO"):
        if "conversations" in row:
            question, answer = (turn["value"] for turn in row["conversations"])
            return {"image": row["image"], "sent": described(question), "bbox": parse_box(answer)}
        if "problem" in row:
            return {"image": row["image"], "sent": described(row["problem"]), "bbox": row["solution"]}
        if "img_id" in row:
            image = re.sub(r"_\d+$", "", row["img_id"]) + ".jpg"
            return row | {"image": image, "sent": row["sents"], "bbox": corners(row["bbox"])}
        size = {key: row[key] for key in ("width", "height") if key in row}
        return size | {key: row[key] for key in ("image", "sent", "bbox")}


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


def jsonl(name, root, split):
    """Your own rows in root/<split>.jsonl: "image" or "images" (paths relative to root; none: text only), "prompt" or
    "sent" (put into the RefCOCO prompt), "answer" (text) or "bbox" (x1, y1, x2, y2 in pixels of the image). Images stand
    before the prompt, or where it says "<image>". Metric: exact match, IoU for boxes."""
    for row, source in json_rows(file_of(root, split, "*.jsonl", "no .jsonl file at all")):
        if isinstance(row, dict):
            row = {key: row[key] for key in OWN if key in row}
            if isinstance(row.get("prompt"), str):
                row["prompt"] = placed(row["prompt"], row, source)
        yield row, source


def llava(name, root, split):
    """Conversations as LLaVA has them, root/<split>.json: [{"image" or "images", "conversations": [{"from": "human" or
    "gpt", "value"}, ...]}]. Every answer is a row of its own, behind the turns before it. Metric: exact match."""
    for row, source in json_rows(file_of(root, split, "*.json", "no .json file at all")):
        with reading(source, "conversations"):
            who, said = zip(*((turn["from"], turn["value"]) for turn in row["conversations"]))
            if list(who) != ["human", "gpt"] * (len(who) // 2):
                raise InputError(f"{source}: turns must alternate human, gpt; they are {list(who)}")
            if any(PLACE in text for text in said[1:]):
                raise InputError(f"{source}: {PLACE} in a later turn; images are taken in the first one only")
            said = placed(said[0], row, source), *said[1:]
            pairs = list(zip(said[::2], said[1::2]))
        for i, (prompt, answer) in enumerate(pairs):
            seen = {key: row[key] for key in ("image", "images") if key in row}
            yield seen | {"prompt": prompt, "answer": answer, "history": tuple(pairs[:i])}, source


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


def screenspot(name, root, split):
    """ScreenSpot-Pro: root/annotations/*.json with "img_filename", "img_size", "bbox" x1 y1 x2 y2, "instruction",
    "ui_type" (text or icon), "group"; ScreenSpot-v2: root/screenspot_{desktop,mobile,web}_v2.json with "bbox" x y w h,
    "data_type", "data_source"; images in root/images (or root/screenspotv2_image). SeeClick's prompt. Metric: the point,
    or the centre of the box, lies in the target. Splits: see `ours`; counted by text and icon, and by group."""
    pro = name == "screenspot-pro"
    files = sorted((root / "annotations").glob("*.json") if pro else root.glob("screenspot_*_v2.json"))
    if not files:
        raise InputError(f"{root}: no {'annotations/*.json' if pro else 'screenspot_*_v2.json'} here; see the README")
    if split not in ("train", "val", "test"):
        raise InputError(f"{name}: no split {split!r}; present: train, val, test")
    for file in files:
        for row, source in json_rows(file):
            with reading(source, name):
                found = {"image": row["img_filename"], "prompt": SCREENSPOT_PROMPT.format(row["instruction"])}
                found |= {"bbox": row["bbox"] if pro else corners(row["bbox"]), "metric": "point"}
                found |= {"kind": row["ui_type" if pro else "data_type"]}
                found |= {"group": row["group"] if pro else file.stem.split("_")[1]}
                found |= dict(zip(("width", "height"), row["img_size"])) if pro else {}
            if split in ("test", ours(found["image"])):
                yield found, source


def textvqa(name, root, split):
    """TextVQA: root/TextVQA_0.5.1_<split>.json, {"data": [{"image_id", "question", "answers" (ten)}]}, images in
    root/train_images. The answer to learn is the most frequent one. Metric: see metrics.vqa; splits train, val (the
    answers of test are not public)."""
    file = file_of(root, split, "TextVQA_0.5.1_*.json", "see the README for where to get it")
    for i, row in enumerate(read_json(file).get("data", []), start=1):
        source = f"{file}, row {i}"
        with reading(source, "TextVQA with answers"):
            answers, prompt = row["answers"], TEXTVQA_PROMPT.format(row["question"])
            found = {"image": f"{row['image_id']}.jpg", "prompt": prompt, "answer": max(answers, key=answers.count)}
        yield found | {"metric": "vqa", "reference": answers}, source


def nextqa(name, root, split):
    """NExT-QA (VideoQA), multiple choice: root/<split>.csv with video, question, answer (0 to 4), type, a0 ... a4;
    videos in root/videos, each a folder of frames or an animated image, VIDEO or, if map_vid_vidorID.json is there, as it
    says. 8 frames, evenly spread; their rate from the file's clock, else from frame_count at 30 a second (VidOR's).
    Metric: the letter; counted by type (CW, CH, TN, TC, TP, DC, DL, DO) and by causal, temporal, descriptive."""
    file = file_of(root, split, "*.csv", "see the README for where to get it")
    places = root / "map_vid_vidorID.json"
    places = read_json(places) if places.exists() else {}
    with open(file, newline="", encoding="utf-8") as lines:
        for i, row in enumerate(csv.DictReader(lines), start=2):
            source = f"{file}:{i}"
            with reading(source, "NExT-QA"):
                options = "\n".join(f"{letter}. {row[f'a{k}']}" for k, letter in enumerate("ABCDE"))
                found = {"prompt": NEXTQA_PROMPT.format(row["question"].strip().rstrip("?"), options)}
                found |= {"answer": "ABCDE"[int(row["answer"])], "metric": "choice"}
                found |= {"kind": row["type"], "group": NEXTQA_GROUPS[row["type"][0]]}
                video, rate = row["video"], int(row["frame_count"]) / 30
            frames, seconds = video_frames(find_video(root, source, video, places.get(video, video)), VIDEO_FRAMES)
            yield found | {"videos": [frames], "fps": len(frames) / (seconds or rate or 1)}, source


def find_video(root, source, *names):
    for name in names:
        for path in (root / "videos" / f"{name}{suffix}" for suffix in ("", ".gif", ".webp", ".png")):
            if path.exists():
                return path
    hint = f"ffmpeg -i {names[0]}.mp4 -vf fps=2 {root}/videos/{names[0]}/%05d.jpg"
    raise InputError(f"{source}: no folder of frames or animated image {root}/videos/{names[0]}; make one: {hint}")


def vilp(name, root, split):
    """ViLP: root/vilp.jsonl, 300 rows with "question", "image1" ... "image3", "answer1" ... "answer3" (the hub has them
    as ViLP.parquet; the README has the conversion). Image 1 agrees with the language prior: its accuracy is the kind
    "prior"; images 2 and 3 contradict it: they are the score. Metric: one word, see metrics.word. Splits: see `ours`."""
    if split not in ("train", "val", "test"):
        raise InputError(f"{name}: no split {split!r}; present: train, val, test")
    for row, source in json_rows(file_of(root, "vilp", "*.jsonl", "convert ViLP.parquet as the README says")):
        for i in (1, 2, 3):
            with reading(source, name):
                found = {"image": row[f"image{i}"], "answer": str(row[f"answer{i}"]), "metric": "word"}
                found |= {"prompt": VILP_PROMPT.format(row["question"]), "kind": "prior" if i == 1 else "score"}
            if split in ("test", ours(row["question"])):
                yield found, source


def gsm8k(name, root, split):
    """GSM8K, text only: root/<split>.jsonl (train, test) with "question" and "answer", a solution that ends in "#### 42".
    The calculator's marks <<...>> are left out of what is learnt. Metric: exact match of the last number."""
    for row, source in json_rows(file_of(root, split, "*.jsonl", "see the README for where to get it")):
        with reading(source, "GSM8K"):
            solution = re.sub(r"<<.*?>>", "", row["answer"])
            found = {"prompt": GSM8K_PROMPT.format(row["question"]), "answer": solution}
        yield found | {"metric": "number", "reference": gsm8k_answer(solution)}, source


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


class DataSet(NamedTuple):
    rows: Callable  # the loader: (name, root, split) -> rows with their sources
    eval_split: str = "val"
    new_tokens: int = 48  # room for an answer


DATASETS = {  # a new data set is a loader and a line here
    **dict.fromkeys(REFCOCO_FILES, DataSet(refcoco)),
    **dict.fromkeys(("screenspot-pro", "screenspot-v2"), DataSet(screenspot)),
    "textvqa": DataSet(textvqa),
    "nextqa": DataSet(nextqa),
    "vilp": DataSet(vilp),
    "gsm8k": DataSet(gsm8k, "test", 400),
    "jsonl": DataSet(jsonl),
    "llava": DataSet(llava, new_tokens=200),
    **dict.fromkeys(DRAWN, DataSet(drawn)),
}


def default_root(name, root=None):
    """The folder of a data set: `root` or else data/NAME; None, fetch it, for a RefCOCO that is not there either."""
    folder = Path(root or Path("data") / name)
    return None if name in REFCOCO_FILES and not root and not folder.exists() else folder


def load(name, root, split, limit=None, annotations=ANNOTATIONS, image_url=COCO_IMAGES):
    """The first `limit` (None or 0: all) examples of a split of a data set, each with its answer.

    root: the folder that holds the data set (drawn ones need none, but a limit). None for the RefCOCO family: fetched
    into the cache folder, the annotations from `annotations`, the images of these examples from `image_url`. Images are
    found and their sizes read, but not decoded. Raises InputError for an unknown name or split, a missing file or image,
    and any row that is not what it should be.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    if name in DRAWN and not limit:
        raise InputError(f"{name}: drawn without end; say how many examples (a limit)")
    fetch = root is None and name in REFCOCO_FILES
    root = cache_folder() / "refcoco" if fetch else Path(root or ".")
    if fetch:
        fetch_annotations(root, annotations)
    rows = list(islice(DATASETS[name].rows(name, root, split), limit or None))
    if fetch:
        fetch_images({Path(row["image"]).name for row, _ in rows}, root, image_url)
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
    further = ("kind", "group", "metric", "reference", "videos", "fps", "history")
    return Example(images, prompt, answer, source, **{key: row[key] for key in further if key in row})


def find_image(name, source, root):
    if isinstance(name, str):
        for folder in IMAGE_FOLDERS:
            for path in (root / folder / name, root / folder / Path(name).name):  # some lists name other folders
                if path.is_file():
                    return path
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
    if max(box) <= 1:
        raise InputError(f"{source}: box {list(box)} looks relative (0 to 1); boxes are in pixels of the image")
    if not (-1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1):
        raise InputError(
            f"{source}: box {list(box)} does not lie in its image {images[0]} of {width} x {height} pixels"
        )
    return (x1, y1, x2, y2)


# ---------------------------------------------------------------------------------------------------------- scoring


def prediction(example, text, processor, data=""):
    """A generated text and all that its score follows from: a row of predictions.jsonl."""
    metric = example.metric or ("exact" if isinstance(example.answer, str) else "iou")
    boxed = metric in ("iou", "point")
    row = {
        "data": data,
        "source": example.source,
        "kind": example.kind,
        "group": example.group,
        "images": [str(image) if isinstance(image, (str, Path)) else "drawn" for image in example.images],
        "videos": len(example.videos),
        "prompt": example.prompt,
        "text": text,
        "metric": metric,
        "reference": example.answer if example.reference is None else example.reference,
        "size": image_size(example.images[0]) if boxed else None,
        "resized": processor.resized(example.images[0]) if boxed else None,
    }
    return row | score(metric, text, row["reference"], row["size"], row["resized"])


def rescore(file):
    """Compute every score of a predictions.jsonl anew, from its text and reference alone, and print the summaries of the
    base and the tuned model. Returns the number of rows whose score differs from the one written there."""
    rows, differ = {}, 0
    for row, source in json_rows(Path(file)):
        with reading(source, "predictions.jsonl"):
            found = score(row["metric"], row["text"], row["reference"], row["size"], row["resized"])
            differ += found["score"] != row["score"]
            rows.setdefault(row["when"], []).append(row | found)
    for when, predictions in rows.items():
        found = summary(predictions)
        for kind, value in found["by_kind"].items():
            print(f"{when:6} {kind:40} {value:7.1%}")
        print(f"{when:6} {'answers that could not be read':40} {found['parse_failures']:7}")
    print(f"{sum(map(len, rows.values()))} answers scored anew, {differ} scores differ from those in {file}")
    return differ


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Compute the scores of a run's answers anew, from its predictions.jsonl."
    )
    parser.add_argument("command", choices=["score"])
    parser.add_argument("file", type=Path, help="RUN/predictions.jsonl")
    args = parser.parse_args(argv)
    try:
        if not args.file.exists():
            raise InputError(f"{args.file}: no such file")
        rescore(args.file)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

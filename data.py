"""Data: files on disk -> Example -> Batch.

    load("refcoco", root, "train")          -> [Example, ...]
    Processor.from_pretrained(model)        -> processor
    processor(examples)                     -> Batch, what VLM.loss and VLM.generate take

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

import json
import math
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer

import tasks
from backbones.checkpoint import checkpoint_folder, read_config
from backbones.qwen2_5_vl import positions
from files import InputError, read_json, write_text
from tasks.boxes import box_to_model
from tasks.images import MAX_RATIO, image_key, image_size, open_image, resized_size
from tasks.rows import PLACE

SYSTEM = "You are a helpful assistant."


@dataclass
class Example:
    """One question about any number of images and videos.

    images: paths or PIL images; videos: lists of frames (paths, PIL images or Frames), fps: their frames a second.
    prompt: text; images stand before it, then videos, unless it says "<image>" once for each of them. history: earlier
    turns of the same conversation, (prompt, answer) each. answer: text, or a box (x1, y1, x2, y2) in pixels of the only
    image as it is on disk (the processor writes it in pixels of the resized image), or None = to generate.
    metric: a name in tasks.metrics() ("": by the answer, iou or exact); reference: what it compares with (None: the
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
    caption: str = ""

    @property
    def visuals(self):
        """What is seen, in order: images, and videos as tuples of frames."""
        return [*self.images, *(tuple(frames) for frames in self.videos)]

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
        return cls(read_config(folder), tokenizer, preprocessor, min_pixels, max_pixels)

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
            row["positions"] += positions(self.config, ids, [grids[key] for key in keys], example.fps)[start:]
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


def load(name, root, split, limit=None, **fetching):
    """The first `limit` (None or 0: all) examples of a split of a data set, each with its answer: see tasks.load."""
    return [Example(**row) for row in tasks.load(name, root, split, limit, **fetching)]

"""Lecture 3. Data: Example -> prompt -> patches -> positions -> visual mask and labels -> Batch.

You will see how a question about an image becomes what the model reads, and where the paper's mask M comes from.

    load("refcoco", root, "train")          -> [Example, ...]
    Processor.from_pretrained(model)        -> processor
    processor(examples)                     -> Batch, what VLM.loss and VLM.generate take

One row is Qwen's chat template (Qwen3-VL: no system turn), with an <|image_pad|> or <|video_pad|> for each visual token:

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    <|vision_start|><|image_pad|>...<|vision_end|>the prompt<|im_end|>
    <|im_start|>assistant
    the answer<|im_end|>

Only the last line is supervised. Prompt and answer are tokenised separately and concatenated, so the labels are right
by construction. The data sets themselves, with their prompts and metrics, are in parts/tasks/.

Letters: B batch, T sequence length, P image patches, N visual tokens in the batch.
"""

import json
import math
from array import array
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from parts import tasks
from parts.backbones import FAMILIES
from parts.backbones.checkpoint import read_config, read_preprocessor, read_tokenizer
from parts.files import InputError, write_text
from parts.tasks.boxes import box_to_model
from parts.tasks.images import Visual, open_image, resized_size
from parts.tasks.rows import BOX_ANSWER, IMAGE_MARK

IGNORED = -100  # the label of a token that is not supervised


def visual_positions(input_ids, config):
    """The paper's I_v, the diagonal of its mask M, [B, T] bool: a position is visual if its token stands for a part of
    an image or of a video. So a row may have any number of images, and every row its own."""
    return (input_ids == config.image_token) | (input_ids == config.video_token)


@dataclass
class Example:
    """One question about any number of images and videos. Do not change one that a processor has seen: it keeps its tokens."""

    images: list = field(default_factory=list)  # paths or PIL images
    prompt: str = ""  # images, then videos come before it; or write "<image>" where each belongs
    answer: str | tuple | None = None  # text; a box x1, y1, x2, y2 in pixels of its image file; None: to generate
    source: str = ""  # where it is from ("val.jsonl:17"), for messages
    caption: str = ""  # what is asked for, for pictures
    kind: str = ""  # such as "grounding": accuracy is also reported for each kind
    group: str = ""  # a second such name: accuracy is reported for each of these, too
    metric: str = ""  # a name that tasks.score knows; "": by the answer, iou or exact
    reference: str | list | tuple | None = None  # what the metric compares with; None: the answer
    videos: list = field(default_factory=list)  # lists of frames: paths, PIL images or Frames
    fps: float = 2.0  # frames a second of the videos
    history: tuple = ()  # earlier turns of the same conversation, (prompt, answer) each
    system: str = ""  # in place of the family's system line
    tokens: dict = field(default_factory=dict, init=False, repr=False, compare=False)  # see Processor.tokens

    @cached_property
    def visuals(self):
        """The images, then the videos, in order. Each carries its size and its key."""
        return [*map(Visual, self.images), *(Visual(*frames, is_video=True) for frames in self.videos)]

    @property
    def name(self):
        return self.source or f"the example {self.prompt[:40]!r}"

    def question(self):
        """The same without its answer, to generate. It shares this one's tokens and images."""
        asked = copy(self)
        asked.answer = None
        return asked


@dataclass
class Batch:
    """What the model takes. All tensors move with `.to`, except `grids`: the encoder plans its windows on the CPU."""

    input_ids: torch.Tensor  # [B, T] long
    position_ids: torch.Tensor  # [3, B, T] long: time, height, width
    segments: torch.Tensor  # [B, T] long: 0, in a shared row also 1, 2, ... for its questions; -1 on padding
    labels: torch.Tensor  # [B, T] long: the token's own id if it is supervised, else -100; the loss reads answer_ids
    visual_mask: torch.Tensor  # [B, T] bool: the paper's I_v; the model itself reads visual_index
    visual_index: torch.Tensor  # [N] long: its True positions, flat: row * T + column
    visual_source: torch.Tensor  # [N] long: the row of each in the encoder's output
    answer_index: torch.Tensor  # flat: the position before each supervised token; to generate: each question's last
    answer_ids: torch.Tensor  # the supervised tokens, which these positions predict; to generate: none
    pixels: torch.Tensor  # [P, 3, 1 or 2, 14, 14] uint8, every image of the batch once; two frames if one is a video
    grids: torch.Tensor  # [images, 3] long: slices, rows, columns in patches
    mean_std: torch.Tensor  # [2, 3, 2, 1, 1]: normalises the pixels
    encoded: torch.Tensor | None  # embeddings of images encoded earlier; their rows come after those of `patches`
    causal: bool  # no padding and no segments: plain causal attention, without a mask
    examples: list  # (row, segment) of each Example

    @property
    def patches(self):
        """[P, 3 * 2 * 14 * 14] float32, for the encoder. Pixels travel as bytes and are normalised here, on the device.
        mean and std are given for both frames of a patch, so the one frame of an image becomes two equal ones."""
        mean, std = self.mean_std
        return ((self.pixels / 255 - mean) / std).flatten(1)

    @property
    def attention_mask(self):
        """[B, T] long, 0 on padding: to count tokens (the model masks by segments)."""
        return (self.segments >= 0).long()

    def to(self, device):
        return self.moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self):  # a GPU copies from pinned memory while it computes
        return self.moved(torch.Tensor.pin_memory)

    def moved(self, move):
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, torch.Tensor) and name != "grids"}
        return replace(self, **{name: move(tensor) for name, tensor in tensors.items()})


class Tokens(NamedTuple):
    """One example as token ids. Its images have their tokens, but are not opened yet."""

    ids: array  # a quarter of a list's memory, since every example keeps its own
    answer_start: int  # the first supervised position
    prefix: int  # length of the prefix shared by questions about the same images: to the last image; 0 without one


class Processor:
    """Examples -> Batch: text to tokens, images to pixels, both to tensors. It belongs to a checkpoint."""

    def __init__(self, config, tokenizer, preprocessor, min_pixels=None, max_pixels=None):
        self.config, self.preprocessor = config, preprocessor
        self.family = FAMILIES[config.family]  # the family's file: spans, positions, box_scale, BOX_END
        self.min_pixels = min_pixels or preprocessor["min_pixels"]
        self.max_pixels = max_pixels or preprocessor["max_pixels"]
        if self.min_pixels > self.max_pixels:
            raise InputError(f"max_pixels {self.max_pixels} is below min_pixels {self.min_pixels}")
        self.factor = config.vision.patch_size * config.vision.merge  # pixels a side of one visual token
        mean_std = torch.tensor([preprocessor["image_mean"], preprocessor["image_std"]])  # [2, 3]
        self.mean_std = mean_std[:, :, None, None, None].repeat(1, 1, config.vision.temporal_patch_size, 1, 1)
        self.encoded = {}  # {Visual.key: embeddings, on the CPU} of images that `encode_images` has encoded
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "<|im_end|>" typed by a user is text, not a special token
        names = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad", "endoftext")
        self.special = {name: tokenizer.token_to_id(f"<|{name}|>") for name in names}
        pads = self.special["image_pad"], self.special["video_pad"]
        if None in self.special.values() or pads != (config.image_token, config.video_token):
            raise InputError(f"the tokenizer's special tokens {self.special} are not those of config.json")

    @classmethod
    def from_pretrained(cls, path_or_hub_id, min_pixels=None, max_pixels=None):
        """min_pixels, max_pixels: area limits of a resized image; by default those of the checkpoint. 784 pixels
        (28 x 28) are one visual token in the published Qwen2.5-VL. Raises InputError for files that do not fit."""
        config, tokenizer = read_config(path_or_hub_id), read_tokenizer(path_or_hub_id)
        return cls(config, tokenizer, read_preprocessor(path_or_hub_id), min_pixels, max_pixels)

    def save(self, folder):
        """Write preprocessor_config.json and tokenizer.json beside a saved model."""
        settings = self.preprocessor | {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        write_text(Path(folder) / "preprocessor_config.json", json.dumps(settings, indent=2) + "\n")
        write_text(Path(folder) / "tokenizer.json", self.tokenizer.to_str(pretty=False))

    def token_ids(self, text):
        """Text -> token ids."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        """Token ids -> text, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def tokens(self, example):
        """Example -> Tokens; computed once by each processor, with and without the answer, and kept with the example.
        Raises InputError for an answer without tokens or an image of a useless shape."""
        key = self, example.answer is None
        if key in example.tokens:
            return example.tokens[key]
        ids = []
        for piece in self.pieces(example):
            ids += self.token_ids(piece) if isinstance(piece, str) else piece
        prefix = len(ids) - ids[::-1].index(self.special["vision_end"]) if example.visuals else 0
        answer = [] if example.answer is None else [*self.token_ids(self.answer_text(example)), self.special["im_end"]]
        if len(answer) == 1:
            raise InputError(f"{example.name}: the answer has no tokens")
        example.tokens[key] = Tokens(array("i", ids + answer), len(ids), prefix)
        return example.tokens[key]

    def pieces(self, example):
        """The prompt as a list of pieces: a text to encode, or a list of token ids (special tokens, visual tokens)."""
        start, end, visuals = [self.special["im_start"]], [self.special["im_end"]], example.visuals
        system = example.system or self.config.system
        pieces = [start, f"system\n{system}", end, "\n"] if system else []
        for prompt, answer in (*example.history, (example.prompt, None)):
            pieces += [start, *self.user_turn(prompt, visuals, example.fps), end, "\n", start, "assistant\n"]
            pieces += [] if answer is None else [answer, end, "\n"]
            visuals = []  # all images are in the first turn
        return [*pieces, self.config.opening]  # "<think>", where the template begins a thought

    def user_turn(self, prompt, visuals, fps):
        """[text, visual tokens, text, ...]: what a user says. Images are at each "<image>" of the prompt or before it.
        All text up to an image is one piece, as in the reference: newlines at its start merge with those before."""
        texts = prompt.split(IMAGE_MARK) if visuals else [prompt]
        if len(texts) == 1:
            texts = [""] * len(visuals) + texts
        elif len(texts) != len(visuals) + 1:
            raise InputError(f"{len(texts) - 1} times {IMAGE_MARK} in the prompt, but {len(visuals)} images: {prompt:.60}")
        pieces = [f"user\n{texts[0]}"]
        for visual, text in zip(visuals, texts[1:]):
            pad = self.special["video_pad" if visual.is_video else "image_pad"]
            for before, count in self.family.spans(self.config, visual, self.grid(visual), fps):
                pieces[-1] += before
                pieces += [[self.special["vision_start"], *[pad] * count, self.special["vision_end"]], ""]
            pieces[-1] += text
        return pieces

    def answer_text(self, example):
        """The text to learn. A box goes from pixels of the file to the numbers that the model writes."""
        if isinstance(example.answer, str):
            return example.answer
        (visual,), end = example.visuals, self.family.BOX_END
        return BOX_ANSWER.format(box_to_model(example.answer, visual.size, self.box_scale(visual), end))

    def count(self, example):
        """(all tokens, visual tokens) of one example; reads no pixels."""
        return len(self.tokens(example).ids), sum(self.visual_tokens(visual) for visual in example.visuals)

    def grid(self, visual):
        """(slices, rows, columns) in patches, computed once by each processor and kept with the image. A slice is an
        image or two frames of a video (temporal_patch_size)."""
        if self not in visual.grids:
            c = self.config.vision
            width, height = resized_size(*visual.size, self.factor, self.min_pixels, self.max_pixels)
            slices = math.ceil(len(visual.frames) / c.temporal_patch_size)
            visual.grids[self] = slices, height // c.patch_size, width // c.patch_size
        return visual.grids[self]

    def resized(self, visual):
        """(width, height) at which the model sees an image, or each frame of a video."""
        _, rows, columns = self.grid(visual)
        return columns * self.config.vision.patch_size, rows * self.config.vision.patch_size

    def box_scale(self, visual):
        """(width, height) of the image in the numbers that the model writes."""
        return self.family.box_scale(self.resized(visual))

    def visual_tokens(self, visual):  # merge x merge patches become one
        return math.prod(self.grid(visual)) // self.config.vision.merge**2

    def cut(self, visual):
        """An image -> uint8 [t * h * w, 3, 1, 14, 14], a video -> [t * h * w, 3, 2, 14, 14]: slice by slice, through
        blocks of merge x merge patches, row by row. An odd last frame of a video is repeated."""
        c, (t, h, w), size = self.config.vision, self.grid(visual), self.resized(visual)
        frames = [open_image(frame).resize(size, Image.Resampling.BICUBIC).tobytes() for frame in visual.frames]
        if len(frames) > 1:
            frames += frames[-1:] * (-len(frames) % c.temporal_patch_size)
        pixels = torch.frombuffer(bytearray(b"".join(frames)), dtype=torch.uint8)
        # slice, frame in it, block row, patch row in it, pixel row in that, the same across, channel
        blocks_down, blocks_across = (h // c.merge, c.merge, c.patch_size), (w // c.merge, c.merge, c.patch_size)
        blocks = pixels.view(t, -1, *blocks_down, *blocks_across, c.channels)
        return blocks.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).flatten(0, 4)  # [t * h/2 * w/2 * 2 * 2, 3, 1 or 2, 14, 14]

    def __call__(self, examples, share_images=False):
        """Examples -> Batch. All have answers (to train: padded on the right) or none has (to generate: on the left).

        share_images: consecutive examples about the same images share one row. It has the images once, in segment 0,
        then each question with its answer in a segment of its own, at the positions that it would have alone. The mask
        separates the segments, so loss and gradients are those of separate rows. If an image is already encoded, its
        embeddings go into the batch, not its pixels. Raises ValueError if only some have answers, InputError for bad input.
        """
        answered = [example.answer is not None for example in examples]
        if not examples or any(answered) != all(answered):
            raise ValueError("a batch needs examples, all with answers (to train) or all without (to generate)")

        # One table for all: [6, B, T], padded to the longest row.
        rows, questions, visuals = self.rows(examples, share_images)
        T, padding = max(map(len, rows)), [(self.special["endoftext"], IGNORED, -1, 0, 0, 0)]
        pads = [padding * (T - len(row)) for row in rows]
        rows = [row + pad if all(answered) else pad + row for row, pad in zip(rows, pads)]
        table = torch.tensor(rows).permute(2, 0, 1).contiguous()
        input_ids, labels, segments = table[:3]  # [B, T] each

        # The visual tokens, and the row of each in the embeddings: images to encode first, encoded ones after them.
        visual_mask = visual_positions(input_ids, self.config)
        pixels, grids, encoded, source = self.images(visuals)
        visual_source = torch.cat([torch.arange(0), *(source[visual.key] for visual in visuals)])

        # A supervised token is predicted from the position before it. To generate, each question's last token counts.
        supervised = (labels.flatten() != IGNORED).nonzero()[:, 0]
        answer_index, answer_ids = supervised - 1, input_ids.flatten()[supervised]
        if not all(answered):
            answer_index = torch.stack([b * T + (segments[b] == s).nonzero().max() for b, s in questions])

        return Batch(
            input_ids=input_ids, position_ids=table[3:], segments=segments, labels=labels, visual_mask=visual_mask,
            visual_index=visual_mask.flatten().nonzero()[:, 0], visual_source=visual_source, answer_index=answer_index,
            answer_ids=answer_ids, pixels=pixels, grids=grids, mean_std=self.mean_std, encoded=encoded,
            causal=bool((segments == 0).all()), examples=questions,
        )  # fmt: skip

    def images(self, visuals):
        """(pixels, grids, encoded) of a batch, each image once, and {key: the rows of its embeddings}: first those that
        the encoder will give for the pixels, then those that are encoded already."""
        c, visuals = self.config.vision, {visual.key: visual for visual in visuals}
        new = [visual for key, visual in visuals.items() if key not in self.encoded]
        old = [visual for key, visual in visuals.items() if key in self.encoded]
        sizes = [self.visual_tokens(visual) for visual in new + old]
        source = dict(zip((visual.key for visual in new + old), torch.arange(sum(sizes)).split(sizes)))

        pixels = [torch.empty(0, c.channels, 1, c.patch_size, c.patch_size, dtype=torch.uint8), *map(self.cut, new)]
        frames = max(patches.shape[2] for patches in pixels)  # with a video among them, images have two as well
        pixels = torch.cat([patches.expand(-1, -1, frames, -1, -1) for patches in pixels])
        grids = torch.tensor([self.grid(visual) for visual in new], dtype=torch.long).view(-1, 3)
        encoded = torch.cat([self.encoded[visual.key] for visual in old]) if old else None
        return pixels, grids, encoded, source

    def rows(self, examples, share_images):
        """Rows, a list with (id, label, segment, time, height, width) of each token; (row, segment) of each example;
        the images of all rows. Raises InputError for an example longer than the model's positions."""

        def shared(i):
            """Grouping key: equal for examples that can share a row, unique otherwise."""
            example, (ids, _, prefix) = examples[i], self.tokens(examples[i])
            keys = [visual.key for visual in example.visuals]
            return (keys, example.fps, ids[:prefix]) if share_images and keys else i

        rows, questions, visuals = [], [], []
        for _, numbers in groupby(range(len(examples)), key=shared):
            row, group = [], [examples[i] for i in numbers]
            grids = [self.grid(visual) for visual in group[0].visuals]
            for number, example in enumerate(group):
                ids, answer_start, prefix = self.tokens(example)
                if len(ids) > (longest := self.config.max_positions):
                    raise InputError(f"{example.name}: {len(ids)} tokens, the model has {longest} positions")
                segment = 0 if len(group) == 1 else number + 1  # an ordinary row is all segment 0
                labels = [IGNORED] * answer_start + ids[answer_start:].tolist()
                segments = [0] * prefix + [segment] * (len(ids) - prefix)
                times, heights, widths = zip(*self.family.positions(self.config, ids, grids, example.fps))
                table = list(zip(ids, labels, segments, times, heights, widths))
                row += table if number == 0 else table[prefix:]  # the first example brings the shared prefix
                questions.append((len(rows), segment))
            rows.append(row)
            visuals += group[0].visuals
        return rows, questions, visuals


def load(name, root, split, limit=None):
    """The first `limit` (None or 0: all) examples of a split of a data set, each with its answer: see tasks.load."""
    return [Example(**row) for row in tasks.load(name, root, split, limit)]

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

Letters: B batch, T sequence length, P image patches, N visual tokens in the batch, D hidden size.
"""

import json
import math
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
from parts.tasks.images import MAX_RATIO, Visual, open_image, resized_size
from parts.tasks.rows import BOX_ANSWER, PLACE

IGNORED = -100  # the label of a token that is not supervised


@dataclass
class Example:
    """One question about any number of images and videos."""

    images: list = field(default_factory=list)  # paths or PIL images
    prompt: str = ""  # images, then videos come before it; or each at its own "<image>"
    answer: str | tuple | None = None  # text; a box x1, y1, x2, y2 in pixels of its image file; None: to generate
    source: str = ""  # where it is from ("val.jsonl:17"), for messages
    caption: str = ""  # what is asked for, for pictures
    kind: str = ""  # accuracy is also counted by kind
    group: str = ""  # and by group
    metric: str = ""  # a name that tasks.score knows; "": by the answer, iou or exact
    reference: str | list | tuple | None = None  # what the metric compares with; None: the answer
    videos: list = field(default_factory=list)  # lists of frames: paths, PIL images or Frames
    fps: float = 2.0  # frames a second of the videos
    history: tuple = ()  # earlier turns of the same conversation, (prompt, answer) each

    @cached_property
    def visuals(self):
        """The images, then the videos, in order. Each carries its size and its key."""
        images = [Visual(image) for image in self.images]
        return images + [Visual(*frames, is_video=True) for frames in self.videos]

    @property
    def name(self):
        return self.source or f"the example {self.prompt[:40]!r}"

    def question(self):
        """The same without its answer: to generate."""
        asked = copy(self)  # with the sizes and keys of its images
        asked.answer = None
        return asked


@dataclass
class Batch:
    """What the model takes. All tensors move with `.to`, except `grids`: the encoder plans its windows on the CPU."""

    input_ids: torch.Tensor  # [B, T] long
    attention_mask: torch.Tensor  # [B, T] long, 0 on padding; to count tokens (the model masks by segments)
    position_ids: torch.Tensor  # [3, B, T] long: time, height, width
    segments: torch.Tensor  # [B, T] long: 0, in a shared row also 1, 2, ... for its questions; -1 on padding
    labels: torch.Tensor  # [B, T] long: the token's own id if it is supervised, else -100; the loss reads answer_ids
    visual_mask: torch.Tensor  # [B, T] bool: the paper's I_v, the positions of visual tokens; the model reads it as
    visual_index: torch.Tensor  # [N] long: flat positions, row * T + column
    visual_source: torch.Tensor  # [N] long: which row of the encoder's output belongs there
    answer_index: torch.Tensor  # [answers], flat: before each supervised token; to generate, the last token of each
    answer_ids: torch.Tensor  # [answers]: the supervised tokens, which the output there predicts; to generate, none
    patches: torch.Tensor  # [P, values of a patch] float32, every image of the batch once
    grids: torch.Tensor  # [images, 3] long: slices, rows, columns in patches
    causal: bool  # no padding and no segments: plain causal attention, without a mask
    examples: list = field(default_factory=list)  # (row, segment) of each Example
    encoded: torch.Tensor | None = None  # embeddings of images encoded earlier; their rows come after those of `patches`

    def to(self, device):
        return self.moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self):
        """The same in pinned memory, from which a GPU copies while it computes. DataLoader calls this."""
        return self.moved(torch.Tensor.pin_memory)

    def moved(self, move):
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, torch.Tensor) and name != "grids"}
        return replace(self, **{name: move(tensor) for name, tensor in tensors.items()})


class Tokens(NamedTuple):
    """One example as token ids. The tokens of its images are there; the images are not opened yet."""

    ids: list
    answer_start: int  # the first supervised position
    prefix: int  # where the part ends that examples about the same images share: after the last image; 0 without one


class Processor:
    """Examples -> Batch. Made by `from_pretrained` from a checkpoint's tokenizer, preprocessor and configuration."""

    def __init__(self, config, tokenizer, preprocessor, min_pixels=None, max_pixels=None):
        self.config, self.preprocessor = config, preprocessor
        self.min_pixels = min_pixels or preprocessor["min_pixels"]
        self.max_pixels = max_pixels or preprocessor["max_pixels"]
        self.mean = torch.tensor(preprocessor["image_mean"])
        self.std = torch.tensor(preprocessor["image_std"])
        self.factor = config.vision.patch_size * config.vision.merge  # pixels a side of one visual token
        self.encoded = {}  # {Visual.key: embeddings, on the CPU} of images that `encode_images` has encoded
        if self.min_pixels > self.max_pixels:
            raise InputError(f"max_pixels {self.max_pixels} is below min_pixels {self.min_pixels}")

        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "<|im_end|>" typed by a user is text, not a special token
        names = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad", "endoftext")
        self.special = {name: tokenizer.token_to_id(f"<|{name}|>") for name in names}
        pads = self.special["image_pad"], self.special["video_pad"]
        if None in self.special.values() or pads != (config.image_token, config.video_token):
            raise InputError(f"the tokenizer's special tokens {self.special} are not those of config.json")

    @property
    def family(self):
        """What is the model family's own: the system line, spans, positions, the scale of boxes."""
        return FAMILIES[self.config.family]

    def __setstate__(self, state):
        """A worker process that is spawned gets a copy. The tokenizer's copy forgets this setting."""
        self.__dict__.update(state)
        self.tokenizer.encode_special_tokens = True

    @classmethod
    def from_pretrained(cls, path_or_hub_id, min_pixels=None, max_pixels=None):
        """min_pixels, max_pixels: area limits of a resized image; by default those of the checkpoint. 784 pixels
        (28 x 28) are one visual token in the published Qwen2.5-VL. Raises InputError for files that do not fit."""
        config, tokenizer = read_config(path_or_hub_id), read_tokenizer(path_or_hub_id)
        return cls(config, tokenizer, read_preprocessor(path_or_hub_id), min_pixels, max_pixels)

    def save(self, path):
        """Write tokenizer.json and preprocessor_config.json beside a saved model."""
        folder = Path(path)
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        write_text(folder / "preprocessor_config.json", json.dumps(self.preprocessor | limits, indent=2) + "\n")
        write_text(folder / "tokenizer.json", self.tokenizer.to_str(pretty=False))

    # ------------------------------------------------------------------------------------------- from image to patches

    def resized(self, visual, name=""):
        """(width, height) at which the model sees an image, or each frame of a video. Raises InputError, with the
        example's name, if one side is over 200 times the other."""
        width, height = visual.size
        if max(width, height) > MAX_RATIO * min(width, height):
            size = f"{width} x {height} pixels"
            raise InputError(f"{name or visual}: {size}; one side may be {MAX_RATIO} times the other at most")
        return resized_size(width, height, self.factor, self.min_pixels, self.max_pixels)

    def box_scale(self, visual):
        """(width, height) of the image in the numbers that the model writes."""
        return self.family.box_scale(self.resized(visual))

    def grid(self, visual):
        """(slices, rows, columns) in patches; reads no pixels. A slice is two frames (temporal_patch_size)."""
        c = self.config.vision
        width, height = self.resized(visual)
        slices = math.ceil(len(visual.frames) / c.temporal_patch_size)
        return slices, height // c.patch_size, width // c.patch_size

    def visual_tokens(self, visual):
        """The number of visual tokens: merge x merge patches become one."""
        return math.prod(self.grid(visual)) // self.config.vision.merge**2

    def cut(self, visual):
        """An image or video -> patches [t * h * w, 1176]: slice by slice, through blocks of merge x merge patches, row
        by row. Within a patch: channel, frame, row, column. The last frame is repeated: an image is two equal ones."""
        c = self.config.vision
        t, h, w = self.grid(visual)
        frames = [self.pixels(frame, self.resized(visual)) for frame in visual.frames]
        frames += frames[-1:] * (-len(frames) % c.temporal_patch_size)
        pixels = torch.stack(frames)  # [t * 2, 3, h * 14, w * 14]
        blocks_down, blocks_across = (h // c.merge, c.merge, c.patch_size), (w // c.merge, c.merge, c.patch_size)
        # slice, frame in it, channel, block row, patch row in it, pixel row in that, and the same across
        blocks = pixels.view(t, c.temporal_patch_size, c.channels, *blocks_down, *blocks_across)
        blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # [t, h/2, w/2, 2, 2, 3, 2, 14, 14]
        return blocks.reshape(t * h * w, c.patch_values)

    def pixels(self, frame, size):
        """A frame, bicubically resized to (width, height) -> [3, height, width], (x / 255 - mean) / std."""
        image = open_image(frame).resize(size, Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3)
        return ((pixels / 255 - self.mean) / self.std).permute(2, 0, 1)

    # --------------------------------------------------------------------------------------------- from text to tokens

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        """Token ids -> text, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def tokens(self, example):
        """Example -> Tokens. Raises InputError for an answer without tokens or an image of a useless shape."""
        s, newline = self.special, self.encode("\n")
        visuals = []
        for visual in example.visuals:
            self.resized(visual, example.name)  # an error names the example
            pad = s["video_pad"] if visual.is_video else s["image_pad"]
            spans = self.family.spans(self.config, visual, self.grid(visual), example.fps)
            visuals.append([(text, [s["vision_start"], *[pad] * count, s["vision_end"]]) for text, count in spans])

        # The system line, earlier turns, the question. Images are in the first turn.
        ids = []
        if self.family.SYSTEM:
            ids += [s["im_start"], *self.encode(f"system\n{self.family.SYSTEM}"), s["im_end"], *newline]
        for prompt, answer in example.history:
            ids += [*self.user_turn(prompt, visuals), *self.encode(answer), s["im_end"], *newline]
            visuals = []
        ids += self.user_turn(example.prompt, visuals)
        prefix = len(ids) - ids[::-1].index(s["vision_end"]) if example.visuals else 0

        # The answer is tokenised separately, so where it starts is known.
        if example.answer is None:
            return Tokens(ids, len(ids), prefix)
        answer_ids = self.encode(self.answer_text(example))
        if not answer_ids:
            raise InputError(f"{example.name}: the answer has no tokens")
        return Tokens([*ids, *answer_ids, s["im_end"]], len(ids), prefix)

    def user_turn(self, prompt, visuals):
        """The ids of a user's turn and of the beginning of the assistant's; visuals: [(text before it, ids)] of each. Text is
        encoded up to the next image, as the reference does it: newlines at the start of a prompt merge with that before."""
        s, pieces = self.special, prompt.split(PLACE)
        if len(pieces) != len(visuals) + 1:
            pieces = [*[""] * len(visuals), prompt]
        ids, text = [s["im_start"]], f"user\n{pieces[0]}"
        for spans, piece in zip(visuals, pieces[1:]):
            for before, span in spans:
                ids, text = [*ids, *self.encode(text + before), *span], ""
            text = piece
        return [*ids, *self.encode(text), s["im_end"], *self.encode("\n"), s["im_start"], *self.encode("assistant\n")]

    def answer_text(self, example):
        """The text to learn. A box goes from pixels of the file to the numbers that the model writes."""
        if isinstance(example.answer, str):
            return example.answer
        (visual,), end = example.visuals, self.family.BOX_END
        return BOX_ANSWER.format(box_to_model(example.answer, visual.size, self.box_scale(visual), end))

    def count(self, example):
        """(all tokens, visual tokens) of one example; reads no pixels."""
        return len(self.tokens(example).ids), sum(self.visual_tokens(visual) for visual in example.visuals)

    # ----------------------------------------------------------------------------------------- from examples to a batch

    def __call__(self, examples, share_images=False):
        """Examples -> Batch. All with answers: padded on the right, to train. None: padded on the left, to generate.

        share_images: consecutive examples about the same images share one row. It has the images once, in segment 0,
        then each question with its answer in a segment of its own, at the positions that it would have alone. The mask
        separates the segments, so loss and gradients are those of separate rows.
        Images whose embeddings are in `self.encoded` are not opened: their embeddings go into the batch.
        Raises ValueError for a mixture, InputError for a bad image or an example longer than the model's positions.
        """
        answered = [example.answer is not None for example in examples]
        if not examples or any(answered) != all(answered):
            raise ValueError("a batch needs examples, all with answers (to train) or all without (to generate)")
        tokens = [self.tokens(example) for example in examples]
        most = self.config.max_positions
        for example, (ids, _, _) in zip(examples, tokens):
            if len(ids) > most:
                raise InputError(f"{example.name}: {len(ids)} tokens, the model has {most} positions")
        new, old, source = self.images(examples)
        rows, places = self.packed(examples, tokens, source, share_images)
        batch = self.tensors(rows, places, pad_left=not all(answered))
        # Each image is opened and cut once, unless it is encoded already.
        if new:
            batch.patches = torch.cat([self.cut(visual) for visual in new])
            batch.grids = torch.tensor([self.grid(visual) for visual in new])
        if old:
            batch.encoded = torch.cat([self.encoded[visual.key] for visual in old])
        return batch

    def images(self, examples):
        """The images of a batch, each once: those to encode, those that are encoded already, and {key: the rows of its
        embeddings}, the earlier ones after the new ones."""
        visuals = {visual.key: visual for example in examples for visual in example.visuals}
        new = [visual for key, visual in visuals.items() if key not in self.encoded]
        old = [visual for key, visual in visuals.items() if key in self.encoded]
        source, count = {}, 0
        for visual in new + old:
            source[visual.key] = range(count, count + self.visual_tokens(visual))
            count = source[visual.key].stop
        return new, old, source

    def packed(self, examples, tokens, source, share_images):
        """[{"ids", "labels", "segments", "positions", "source"}] of each row, [(row, segment)] of each example."""

        def shown(i):
            """What example i has in common with those that may share its row; its own number if nothing."""
            keys = [visual.key for visual in examples[i].visuals]
            ids, _, prefix = tokens[i]
            return (keys, examples[i].fps, ids[:prefix]) if share_images and keys else i

        # A group about the same images is a row: the first example brings the shared prefix, the others their own part.
        rows, places = [], []
        for _, group in groupby(range(len(examples)), key=shown):
            group = list(group)
            visuals = examples[group[0]].visuals
            grids = [self.grid(visual) for visual in visuals]
            row = {"ids": [], "labels": [], "segments": [], "positions": []}
            for segment, i in enumerate(group, start=1):
                ids, answer_start, prefix = tokens[i]
                segment = 0 if len(group) == 1 else segment  # an ordinary row is all segment 0
                start = 0 if i == group[0] else prefix
                labels = [IGNORED] * answer_start + ids[answer_start:]
                segments = [0] * prefix + [segment] * (len(ids) - prefix)
                positions = self.family.positions(self.config, ids, grids, examples[i].fps)
                for name, values in zip(row, (ids, labels, segments, positions)):
                    row[name] += values[start:]
                places.append((len(rows), segment))
            rows.append(row | {"source": [n for visual in visuals for n in source[visual.key]]})
        return rows, places

    def tensors(self, rows, places, pad_left):
        """Rows of lists -> Batch, padded to the longest row; its images are still missing."""
        B, T = len(rows), max(len(row["ids"]) for row in rows)
        input_ids = torch.full((B, T), self.special["endoftext"])
        segments, labels = torch.full((B, T), -1), torch.full((B, T), IGNORED)
        position_ids = torch.zeros(3, B, T, dtype=torch.long)
        for b, row in enumerate(rows):
            start = T - len(row["ids"]) if pad_left else 0
            here = slice(start, start + len(row["ids"]))
            input_ids[b, here] = torch.tensor(row["ids"])
            labels[b, here] = torch.tensor(row["labels"])
            segments[b, here] = torch.tensor(row["segments"])
            position_ids[:, b, here] = torch.tensor(row["positions"]).T

        # The paper's I_v: a position is visual if its token is the image or the video token.
        real = segments >= 0
        visual_mask = real & ((input_ids == self.config.image_token) | (input_ids == self.config.video_token))

        # A supervised token is predicted from the position before it. To generate, each example's last token counts.
        answer_index = (labels.flatten() != IGNORED).nonzero()[:, 0] - 1
        answer_ids = labels.flatten()[answer_index + 1]
        if len(answer_ids) == 0:
            last = [row * T + (segments[row] == segment).nonzero().max() for row, segment in places]
            answer_index = torch.stack(last)

        return Batch(
            input_ids=input_ids,
            attention_mask=real.long(),
            position_ids=position_ids,
            segments=segments,
            labels=labels,
            visual_mask=visual_mask,
            visual_index=visual_mask.flatten().nonzero()[:, 0],
            visual_source=torch.tensor([n for row in rows for n in row["source"]], dtype=torch.long),
            answer_index=answer_index,
            answer_ids=answer_ids,
            patches=torch.empty(0, self.config.vision.patch_values),
            grids=torch.empty(0, 3, dtype=torch.long),
            causal=bool((segments == 0).all()),
            examples=places,
        )


def load(name, root, split, limit=None):
    """The first `limit` (None or 0: all) examples of a split of a data set, each with its answer: see tasks.load."""
    return [Example(**row) for row in tasks.load(name, root, split, limit)]

"""The stage of an analysis: the suites' model and examples, and what a run left to be put on it.

Whatever train.py and its harness offer is called here and nowhere else in this room.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

import train
from data import Processor
from experiments.suites import COMMON
from harness.encodings import encode_images, load_examples
from harness.evaluate import evaluate
from harness.processes import choose_device
from harness.state import read_state
from imagelora import load_adapter
from model import VLM
from parts.files import read_json, reading
from parts.tasks import TASKS
from probe import head_scores

# What a run left


def folder(report):
    return Path(report["arguments"]["out"])


def scores_of(report):
    """The probe's scores, [L, G], that a run wrote down."""
    file = folder(report) / "heads.json"
    with reading(file, "a head selection with scores", RuntimeError):
        return torch.tensor(read_json(file)["scores"])


@contextmanager
def attached(report, vlm):
    """While this lasts, the adapter that a run trained is in the model."""
    adapter = load_adapter(folder(report) / "adapter.safetensors", vlm)
    try:
        yield adapter
    finally:
        adapter.detach()


def saved_steps(report, adapter):
    """Give the adapter what it had learnt when the run saved its states, one after another; yields the steps."""

    def steps(file):
        return int(file.stem.removeprefix("state-"))

    for file in sorted(folder(report).glob("state-*.pt"), key=steps):
        with reading(file, "a state of this adapter", RuntimeError):
            for parameter, saved in zip(adapter.parameters(), read_state(file)["parameters"]):
                parameter.data.copy_(saved)
        yield steps(file)


@contextmanager
def update_replaced(vlm, layer, replace):
    """While this lasts, replace(update) is in the place of the attached update of a layer's values. Both are functions
    (v, x, visual_index) -> values."""
    site = vlm.model.layers[layer].self_attn.adapters["v"]
    (update,) = site
    site[0] = replace(update)
    try:
        yield
    finally:
        site[0] = update


# Model and examples


@dataclass(frozen=True)
class Stage:
    """A model, and examples with images to measure it on."""

    vlm: VLM
    processor: Processor
    examples: list
    predict: Callable  # () -> an answer to every example, generated and scored

    def batch(self, examples, share_images=False):
        return self.processor(examples, share_images).to(self.vlm.device)

    def batches(self, size, share_images=False):
        starts = range(0, len(self.examples), size)
        return [self.batch(self.examples[i : i + size], share_images) for i in starts]

    def probe(self, count, seed, criterion="rank1"):
        """Scores [L, G] of the heads, by `count` of the examples. A model with an adapter is probed with it."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.examples), generator=generator)[:count].tolist()
        return head_scores(self.vlm, (self.batch([self.examples[i]]) for i in order), criterion, seed)


def model_and_examples(more, data="", split="test", limit=300):
    """The Stage of the suites: their model, and at most `limit` examples of their data set.

    more: further flags, as for the runs; data: flags for another data set.
    """
    args = train.arguments(f"{COMMON} {data} {more}".split())
    device, dtype, _ = choose_device(args.device, args.dtype)
    limits = train.pixel_limits(args.min_pixels, args.max_pixels, None)
    vlm, processor = train.load_model(args.model, dtype, device, *limits, quantize=args.quantize)

    most = args.limit if split == "train" else args.eval_limit
    limit = min(limit, most or limit)
    examples = load_examples(processor, args.data, args.data_root, split, limit, preamble=args.preamble)
    examples = [example for example in examples if example.images]
    encode_images(vlm, processor, examples, args.cache_vision)

    def predict():
        room = args.max_new_tokens or TASKS[args.data].new_tokens
        return evaluate(vlm, processor, examples, args.data, room, args.eval_batch, args.share_images)

    return Stage(vlm, processor, examples, predict)

"""Loads what an analysis needs: the model, examples, and the adapters and answers that runs saved.

What train.py and its harness offer is called here, and in `work` of runs.py.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

import train
from data import Processor
from experiments.suites import COMMON
from experiments.tables import QUESTIONS, own_data, when
from harness.arguments import data_set
from harness.encodings import encode_images, load_examples, load_model, load_processor
from imagelora import load_adapter
from model import VLM
from parts.tasks.rows import json_rows
from probe import head_scores

# What a run left


def folder(report):
    return Path(report["arguments"]["out"])


def attach_adapter(report, vlm):
    """The adapter that a run trained, attached to the model."""
    return load_adapter(folder(report) / "adapter.safetensors", vlm)


def scene_scores(report, column):
    """{scene: [score of each question]} of the questions that a column counts."""
    data, kind = QUESTIONS.get(column, (None, None))
    scenes = {}
    for is_from, of_data, of_kind, scene, score in answers(folder(report)):
        if is_from == when(report) and of_data == (data or own_data(report)) and kind in (None, of_kind):
            scenes.setdefault(scene, []).append(score)
    return scenes


@cache
def answers(folder):
    """[(base or tuned, data set, kind, scene, score)] of a run. A scene is the images of a question, or what it was drawn
    from: "scenes-fog test 12.3" is the third question about the scene "test 12"."""
    lines = []
    for line, _ in json_rows(folder / "predictions.jsonl"):
        scene = " ".join(line["images"])
        if set(line["images"]) <= {"drawn"}:
            scene = line["source"].partition(" ")[2].rpartition(".")[0]
        lines.append((line["when"], line["data"], line["kind"], scene, line["score"]))
    return lines


# Model and examples


@dataclass(frozen=True)
class Subject:
    """A model, and examples with images to measure it on."""

    vlm: VLM
    processor: Processor
    examples: list

    def batches(self, order):
        """One example a batch: those with the numbers in `order`."""
        return (self.processor([self.examples[i]]).to(self.vlm.device) for i in order)

    def probe(self, count, seed, criterion="rank1"):
        """Scores [L, G] of the heads, by `count` of the examples. A model with an adapter is probed with it."""
        order = torch.randperm(len(self.examples), generator=torch.Generator().manual_seed(seed))
        return head_scores(self.vlm, self.batches(order[:count].tolist()), criterion, seed)


def load_subject(setup, data="", split="test", limit=300):
    """The model of the suites, and at most `limit` examples of their data set. data: flags for another one."""
    args = train.parse_args(f"{COMMON} {data} {setup.more}".split())
    processor, vlm = load_processor(args), load_model(args)

    limit = min(limit, (args.limit if split == "train" else args.eval_limit) or limit)
    examples = load_examples(processor, *data_set(args.data), split, limit)
    examples = [example for example in examples if example.images]
    encode_images(vlm, processor, examples, args.cache_vision)
    return Subject(vlm, processor, examples)

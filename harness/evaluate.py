"""Generated answers -> scores -> accuracies."""

import argparse
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
import torch.distributed as dist

from data import Example
from files import InputError
from harness.processes import RANK, WORLD, progress
from tasks import TASKS, score
from tasks.boxes import compare_boxes
from tasks.images import image_key, image_size
from tasks.rows import json_rows, reading

TEXT_PROMPTS = (  # text_logit_max_change is the largest change of any logit at any position of these
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "17 + 25 =",
    "Translate into German: good morning",
    "def fibonacci(n):",
    "Why is the sky blue? Answer in one sentence.",
    "List three prime numbers.",
    "Ada has 12 apples and gives away 5. How many apples are left?",
    "你好，请介绍一下你自己。",
    "Summarise: the cat sat on the mat.",
)


def by_picture(examples):
    """Row numbers in groups: all rows about the same pictures together, a row without pictures on its own."""
    groups = defaultdict(list)
    for i, e in enumerate(examples):
        groups[tuple(image_key(image) for image in e.visuals) or i].append(i)
    return list(groups.values())


def evaluation_batches(args, processor, examples):
    """Row numbers in batches of at most --eval-batch: questions about one picture together (they share its row, unless
    --no-share-images), rows of like length together (little padding)."""
    groups = by_picture(examples) if args.share_images else [[i] for i in range(len(examples))]
    groups = [g[k : k + args.eval_batch] for g in groups for k in range(0, len(g), args.eval_batch)]
    counts = [processor.count(e) for e in examples]
    batches = []
    for group in sorted(groups, key=lambda g: sum(t for t, _ in (counts[i] for i in g))):
        if not batches or len(batches[-1]) + len(group) > args.eval_batch:
            batches.append([])
        batches[-1] += group
    return batches


def new_tokens(args, name):
    """The room for an answer to a question of a data set."""
    return args.max_new_tokens or TASKS[name].new_tokens


def evaluate(args, vlm, processor, examples, name, known):
    """Generate an answer to every example and score it: a list of predictions, in the order of the examples. Several
    processes take turns at the batches and put the answers together."""
    room = new_tokens(args, name)
    written = torch.full((len(examples), room), -1)  # token ids; -1: nothing
    with progress(total=len(examples), desc=f"evaluate {name}") as bar:
        for rows in evaluation_batches(args, processor, examples)[RANK::WORLD]:
            questions = [replace(examples[i], answer=None) for i in rows]
            batch = processor(questions, args.share_images, known).to(vlm.device)
            for i, ids in zip(rows, vlm.generate(batch, room)):
                written[i, : len(ids)] = torch.tensor(ids)
            bar.update(len(rows) * WORLD)
    if WORLD > 1:
        written = written.to(vlm.device)
        dist.all_reduce(written, dist.ReduceOp.MAX)  # a process has -1 where another one wrote
    texts = [processor.decode([t for t in row if t >= 0]) for row in written.tolist()]
    return [prediction(e, text, processor, name) for e, text in zip(examples, texts)]


@torch.no_grad()
def text_logits(vlm, processor):
    """The logits of the built-in text prompts, each on its own."""
    device = vlm.device
    return [vlm(processor([Example([], prompt)]).to(device)).cpu() for prompt in TEXT_PROMPTS]


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


def mean(values):
    return fmean(values) if values else None


def summary(predictions, data=None):
    """Scored rows -> accuracies, parse failures and how predicted boxes differ from the references.

    predictions: dicts with data, kind, group, metric, parsed, score, failed, reference, size, images, perhaps videos.
    data: the data set whose accuracy is "accuracy" (None: all rows); it is that of its rows with images, if it has any,
    and leaves out kind "prior" (ViLP's first image measures what the model would say without looking).
    text_accuracy is that of rows without image and video; by_kind has the mean score of each "data kind" and of each
    "data group"; boxes compares those of `data`. A mean over nothing is None.
    """
    kinds = {}
    for row in predictions:
        kind = row.get("kind") or ""
        for name in dict.fromkeys([kind, row.get("group") or kind]):  # once if they are the same
            kinds.setdefault(f"{row['data']} {name}".strip(), []).append(row["score"])
    own = [row for row in predictions if data in (None, row["data"]) and row.get("kind") != "prior"]
    seen = [row for row in own if row.get("images") or row.get("videos")]
    text_rows = [row["score"] for row in predictions if not row.get("images") and not row.get("videos")]
    return {
        "accuracy": mean([row["score"] for row in seen or own]),
        "text_accuracy": mean(text_rows),
        "by_kind": {name: mean(scores) for name, scores in kinds.items()},
        "parse_failures": sum(bool(row["failed"]) for row in predictions),
        "boxes": compare_boxes([row for row in own if row.get("metric") == "iou" and row["parsed"]]),
    }


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

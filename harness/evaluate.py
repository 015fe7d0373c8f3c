"""Generated answers -> predictions -> accuracies.

    python -m harness.evaluate runs/.../predictions.jsonl      the scores of a run again, from its answers
"""

import json
from pathlib import Path
from statistics import fmean

import torch
import torch.distributed as dist

from data import Example
from harness.arguments import Parser
from harness.encodings import ahead, like_batches
from harness.processes import RANK, WORLD, in_one_line, progress, together
from parts.files import InputError, reading
from parts.tasks import score
from parts.tasks.boxes import in_another_scale, parse_box
from parts.tasks.rows import json_rows

CURVE_ROWS = 100  # held-out rows by which accuracy is measured during training
TEXT_PROMPTS = (
    "What is the capital of France?", "Write a haiku about the sea.", "17 + 25 =", "List three prime numbers.",
    "Translate into German: good morning", "def fibonacci(n):", "Why is the sky blue? Answer in one sentence.",
    "Ada has 12 apples and gives away 5. How many apples are left?", "你好，请介绍一下你自己。",
    "Summarise: the cat sat on the mat.",
)


def evaluate(vlm, processor, examples, name, max_new_tokens, size=32):
    """Generate an answer to every example and score it: a list of predictions, in the order of the examples. Several
    processes take turns at the batches and put the answers together.

    name: of the data set; size: questions answered at once.
    """
    jobs = like_batches(processor, examples, size)[RANK::WORLD]
    generated = torch.full((len(examples), max_new_tokens), -1)  # token ids; -1: nothing

    def batch_of(numbers):
        return processor([examples[i].question() for i in numbers], share_images=True)

    for numbers, batch in zip(progress(jobs, desc=f"evaluate {name}"), ahead(batch_of, jobs)):
        for i, ids in zip(numbers, vlm.generate(batch.to(vlm.device), max_new_tokens)):
            generated[i, : len(ids)] = torch.tensor(ids)
    if WORLD > 1:
        generated = generated.to(vlm.device)
        with together():
            dist.all_reduce(generated, dist.ReduceOp.MAX)  # a process has -1 where another one has an answer
    texts = [processor.decode([t for t in ids if t >= 0]) for ids in generated.tolist()]
    return [prediction(e, text, processor, name) for e, text in zip(examples, texts)]


def prediction(example, text, processor, data=""):
    """A generated text and all that its score follows from: a line of predictions.jsonl."""
    metric = example.metric or ("exact" if isinstance(example.answer, str) else "iou")
    size = resized = None
    if metric in ("iou", "point"):  # boxes go from the numbers that the model writes to pixels of the file
        size, resized = example.visuals[0].size, processor.box_scale(example.visuals[0])
    reference = example.answer if example.reference is None else example.reference
    asked = {"data": data, "source": example.source, "kind": example.kind, "group": example.group}
    asked["images"] = [str(visual) for visual in example.visuals if not visual.is_video]
    asked |= {"videos": len(example.videos), "prompt": example.prompt, "text": text}
    asked |= {"metric": metric, "reference": reference, "size": size, "resized": resized}
    return asked | score(metric, text, reference, size, resized)


def summary(predictions, data=None):
    """Predictions -> accuracies, and counts of answers that could not be read or have boxes in another scale.

    accuracy: of the data set `data` (None: of all), by its questions with images if it has any, without kind "prior"
    (ViLP's first image measures what the model would say without looking). text_accuracy: of all questions without image
    and video. by_kind: the mean score of each "data kind" and each "data group". A mean over nothing is None.
    """

    def mean_score(rows):
        return fmean(p["score"] for p in rows) if rows else None

    by_kind = {}
    for p in predictions:
        for name in dict.fromkeys([p["kind"], p["group"] or p["kind"]]):  # once if they are the same
            by_kind.setdefault(f"{p['data']} {name}".strip(), []).append(p)
    own = [p for p in predictions if data in (None, p["data"]) and p["kind"] != "prior"]
    with_image = [p for p in own if p["images"] or p["videos"]]
    text = [p for p in predictions if not p["images"] and not p["videos"]]
    boxes = [(parse_box(p["text"]), p["resized"]) for p in predictions if p["metric"] == "iou"]
    return {
        "accuracy": mean_score(with_image or own),
        "text_accuracy": mean_score(text),
        "by_kind": {name: mean_score(rows) for name, rows in by_kind.items()},
        "parse_failures": sum(p["failed"] for p in predictions),
        "boxes_in_another_scale": sum(in_another_scale(box, resized) for box, resized in boxes if box),
    }


@torch.no_grad()
def text_logits(vlm, processor):
    """The logits [1, T, V] of each of TEXT_PROMPTS, on its own."""
    return [vlm(processor([Example([], prompt)]).to(vlm.device)).cpu() for prompt in TEXT_PROMPTS]


def text_change(before, after):
    """The largest change of any logit of any prompt, from two results of text_logits. Raises InputError if one is not
    finite."""
    changes = torch.stack([(a - b).abs().max() for a, b in zip(before, after)])
    if not changes.isfinite().all():
        raise InputError("the logits of text are not finite; lower --lr, or use --dtype float32")
    return changes.max().item()


def score_again(file):
    """Compute every score of a predictions.jsonl again, from its text and reference alone, and print the summaries of the
    base and the tuned model. Returns how many scores differ."""
    predictions, differ = {"base": [], "tuned": []}, 0
    for line, source in json_rows(Path(file)):
        with reading(source, "a line of predictions.jsonl"):
            scored = score(line["metric"], line["text"], line["reference"], line["size"], line["resized"])
            differ += scored["score"] != line["score"]
            predictions[line["when"]].append(line | scored)
    with reading(file, "the predictions of a run"):
        summaries = {when: summary(of_model) for when, of_model in predictions.items()}
    print(json.dumps(summaries, indent=1))
    print(f"{sum(map(len, predictions.values()))} answers scored again, {differ} scores differ from those in {file}")
    return differ


def main(argv=None):
    parser = Parser(usage="python -m harness.evaluate FILE", description="Score the answers of a run again.")
    parser.add_argument("file", metavar="FILE", help="its predictions.jsonl")
    with in_one_line():
        score_again(parser.parse_args(argv).file)


if __name__ == "__main__":
    main()

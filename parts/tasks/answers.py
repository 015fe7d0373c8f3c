"""Generated texts -> predictions -> accuracies; and what is doubtful about the boxes to learn."""

from statistics import fmean

from parts.tasks import TASKS, score
from parts.tasks.boxes import in_another_scale, parse_box, small_targets


def doubts(name, examples, processor):
    """Warnings about the boxes of a data set: targets too small to see, and boxes in texts that are not in its pixels."""
    boxed = [e for e in examples if isinstance(e.answer, tuple)]
    sizes = [e.visuals[0].size for e in boxed]
    resized = [processor.resized(e.visuals[0]) for e in boxed]
    small = small_targets([e.answer for e in boxed], sizes, resized, processor.factor)
    warnings = [small] if small else []

    written = [(e, parse_box(e.answer)) for e in examples if isinstance(e.answer, str) and len(e.visuals) == 1]
    beyond = [e.name for e, box in written if box and in_another_scale(box, processor.box_scale(e.visuals[0]))]
    if beyond and TASKS[name].own:
        warnings.append(
            f"{beyond[0]} and {len(beyond) - 1} others: a box in the answer is not in pixels of the image as the model"
            ' sees it. A text is learnt as it is; a box under "bbox" is converted'
        )
    return warnings


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

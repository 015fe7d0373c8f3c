"""The data sets: where their files are, prompt, rows, splits and metric, one file each. Text in, rows out; no tensors."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from files import InputError
from tasks.boxes import score_iou, score_point
from tasks.download import (
    ANNOTATIONS,
    COCO_IMAGES,
    cache_folder,
    fetch_annotations,
    fetch_images,
)
from tasks.gsm8k import gsm8k, score_number
from tasks.nextqa import nextqa, score_choice
from tasks.own import jsonl, llava
from tasks.refcoco import REFCOCO_FILES, refcoco
from tasks.rows import checked, score_exact
from tasks.scenes import DRAWN, drawn
from tasks.screenspot import screenspot
from tasks.textvqa import score_vqa, textvqa
from tasks.vilp import score_word, vilp


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
    """The first `limit` (None or 0: all) rows of a split of a data set, checked: what Examples are made of.

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
    rows = [checked(row, source, root) for row, source in rows]
    if not rows:
        raise InputError(f"{root}: split {split!r} of {name} has no rows")
    return rows


METRICS = {
    "exact": score_exact,
    "iou": score_iou,
    "point": score_point,
    "vqa": score_vqa,
    "choice": score_choice,
    "word": score_word,
    "number": score_number,
}


def score(metric, text, reference, size=None, resized=None):
    """Score one generated text: {"parsed", "score", "failed"}. size, resized: for metrics with boxes."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    parsed, value = METRICS[metric](text, reference, size, resized)
    return {"parsed": parsed, "score": value, "failed": parsed is None}

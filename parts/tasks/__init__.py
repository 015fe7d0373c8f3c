"""The tasks: text and images in, checked rows and scores out; no tensors.

Every data set is one file, which says where its files are and has its prompt, loader, splits and metric. A new data set
is one new file, or one function, and one line of TASKS.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from parts.files import InputError
from parts.tasks import gsm8k, nextqa, own, refcoco, scenes, screenspot, textvqa, vilp
from parts.tasks.boxes import score_iou, score_point
from parts.tasks.download import cache_folder, fetch_annotations, fetch_images
from parts.tasks.images import sample, within
from parts.tasks.rows import all_checked, score_exact


class Task(NamedTuple):
    """rows: the loader, (name, root, split) -> (row, source) pairs; parts/tasks/rows.py has the keys of a row.
    metrics: of this task alone, by name; each (text, reference, size, resized) -> (parsed or None, 0.0 to 1.0)."""

    rows: Callable
    metrics: Mapping = {}
    eval_split: str = "val"
    new_tokens: int = 48  # room for an answer
    even: bool = False  # a limit takes rows evenly spread over the split, not the first ones
    skip_outside: bool = False  # a box over the edge of its image costs its row, not the data set


TASKS = {
    **dict.fromkeys(refcoco.FILES, Task(refcoco.rows, skip_outside=True)),
    **dict.fromkeys(screenspot.NAMES, Task(screenspot.rows, even=True, skip_outside=True)),
    "textvqa": Task(textvqa.rows, {"vqa": textvqa.score}),
    "nextqa": Task(nextqa.rows, {"choice": nextqa.score}),
    "vilp": Task(vilp.rows, {"word": vilp.score}),
    "gsm8k": Task(gsm8k.rows, {"number": gsm8k.score}, eval_split="test", new_tokens=400),
    "jsonl": Task(own.jsonl, even=True),
    "llava": Task(own.llava, new_tokens=200, even=True),
    **dict.fromkeys(scenes.DRAWN, Task(scenes.rows)),
}

SHARED = {"exact": score_exact, "iou": score_iou, "point": score_point}  # metrics of several tasks


# -- rows


def default_root(name, root=None):
    """The folder (your own: or the file) of a data set: `root` or else data/NAME; None, fetch it, for a RefCOCO that is
    not there either."""
    folder = Path(root or Path("data") / name)
    if name in refcoco.FILES and not root and not folder.exists():
        return None
    return folder


def load(name, root, split, limit=None):
    """At most `limit` (None or 0: all) rows of a split of a data set, checked: what Examples are made of. They are the
    first ones or, where the file may be in some order, evenly spread over it (Task.even).

    root: the folder that holds the data set (drawn ones need none, but a limit), or the file, of `jsonl` and `llava`.
    None for the RefCOCO family: fetched into the cache folder, of the images only those of these rows. Images are found and their sizes read, but not decoded. Raises InputError for an unknown name
    or split, a missing file or image, and any row that is not what it should be.
    """
    if name not in TASKS:
        raise InputError(f"unknown data set {name!r}; known: {', '.join(TASKS)}")
    if name in scenes.DRAWN and not limit:
        raise InputError(f"{name}: drawn without end; say how many examples (a limit)")
    # where the files are; annotations that are not here are fetched
    fetch = root is None and name in refcoco.FILES
    root = cache_folder() / "refcoco" if fetch else Path(root or ".")
    if fetch:
        fetch_annotations(root)
    # the rows, and the images of these rows alone
    task = TASKS[name]
    rows = list(islice(task.rows(name, root, split), None if task.even else limit or None))
    if not rows:
        raise InputError(f"{root}: split {split!r} of {name} has no rows")
    rows = [rows[i] for i in sample(len(rows), limit or len(rows))]
    if fetch:
        fetch_images({within(row["image"], source, root).name for row, source in rows}, root)
    return all_checked(rows, root.parent if root.is_file() else root, task.skip_outside)


# -- scores


def metrics():
    """All metrics by name: the shared ones, and those that a task has for itself. A name means the same everywhere."""
    found = dict(SHARED)
    for task in TASKS.values():
        found |= task.metrics
    return found


def score(metric, text, reference, size=None, resized=None):
    """Score one generated text: {"parsed", "score", "failed"}. size, resized: for metrics with boxes."""
    functions = metrics()
    if metric not in functions:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(functions)}")
    parsed, value = functions[metric](text, reference, size, resized)
    return {"parsed": parsed, "score": value, "failed": parsed is None}

"""The tasks: text and images in, checked rows and scores out; no tensors. Every data set is one file, which says where its
files are and has its prompt, loader, splits and metric. A new one is a new file, or one function, and one line of TASKS."""

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from parts.files import InputError
from parts.tasks import gsm8k, nextqa, own, refcoco, scenes, screenspot, textvqa, vilp
from parts.tasks.boxes import score_iou, score_point
from parts.tasks.download import cache_folder, fetch_annotations, fetch_images
from parts.tasks.images import sample
from parts.tasks.rows import all_checked, score_contains, score_exact


class Task(NamedTuple):
    """rows: the loader, (name, root, split) -> (row, source) pairs; parts/tasks/rows.py has the keys of a row.
    metrics: of this task alone, by name; each (text, reference, size, resized) -> (parsed or None, 0.0 to 1.0)."""

    rows: Callable
    metrics: Mapping = {}
    folders: tuple = ("",)  # where its images are, in the data set's folder
    eval_split: str = "val"
    new_tokens: int = 48  # the longest answer
    even: bool = False  # a limit takes rows evenly spread over the split, not the first ones
    skip_outside: bool = False  # a box over the edge of its image costs its row, not the data set
    own: bool = False  # written by the user: asked about units, warned of contradictions


TASKS = {
    **dict.fromkeys(refcoco.FILES, Task(refcoco.rows, folders=refcoco.IMAGES, skip_outside=True)),
    **dict.fromkeys(screenspot.NAMES, Task(screenspot.rows, folders=screenspot.IMAGES, even=True, skip_outside=True)),
    "textvqa": Task(textvqa.rows, {"vqa": textvqa.score}, ("train_images",)),
    "nextqa": Task(nextqa.rows, {"choice": nextqa.score}),
    "vilp": Task(vilp.rows, {"word": vilp.score}),
    "gsm8k": Task(gsm8k.rows, {"number": gsm8k.score}, eval_split="test", new_tokens=400),
    "jsonl": Task(own.rows, even=True, own=True),
    "llava": Task(own.rows, even=True, own=True, new_tokens=200),
    **dict.fromkeys(scenes.DRAWN, Task(scenes.rows)),
}
SHARED = {"exact": score_exact, "contains": score_contains, "iou": score_iou, "point": score_point}  # of several tasks


def load(name, root, split, limit=None):
    """At most `limit` (None or 0: all) rows of a split of a data set, checked: what Examples are made of. They are the
    first ones or evenly spread (Task.even). Of images the sizes are read, but no pixels. Raises InputError.
    root: the folder that holds the data set, or the file of `jsonl` and `llava`; None: data/NAME or, where that is missing,
    RefCOCO is fetched into the cache folder, and of its images only those of these rows. Drawn sets need a limit alone."""
    rows, folder = read_rows(name, root, split, limit)
    examples, errors = all_checked(rows, TASKS[name], folder)
    if errors:
        raise InputError(f"{errors[0]} (bad rows: {len(errors)}; python -m parts.tasks lists all)")
    return examples


def read_rows(name, root, split, limit=None):
    """(rows, folder) as for `load`, not yet checked: (row, source) pairs, and the folder that holds their images."""
    if name not in TASKS:
        raise InputError(f"unknown data set {name!r:.80}; there are {', '.join(TASKS)}")
    if name in scenes.DRAWN and not limit:
        raise InputError(f"{name}: drawn without end; say how many examples (a limit)")
    task, folder = TASKS[name], Path(root or Path("data") / name)
    fetched = not root and name in refcoco.FILES and not folder.exists()
    if fetched:
        folder = cache_folder() / "refcoco"
        fetch_annotations(folder)

    rows = list(islice(task.rows(name, folder, split), None if task.even else limit or None))
    if not rows:
        raise InputError(f"{folder}: split {split!r} of {name} has no rows")
    rows = sample(rows, limit or len(rows))
    if fetched:
        fetch_images({row["image"] for row, _ in rows if isinstance(row, dict)}, folder)
    return rows, folder.parent if folder.is_file() else folder


def metrics():
    """All metrics by name: the shared ones, and those that a task has for itself. A name means the same everywhere."""
    return SHARED | {name: metric for task in TASKS.values() for name, metric in task.metrics.items()}


def score(metric, text, reference, size=None, resized=None):
    """Score one generated text: {"parsed", "score", "failed"}. size, resized: for metrics with boxes."""
    parsed, value = metrics()[metric](text, reference, size, resized)
    return {"parsed": parsed, "score": value, "failed": parsed is None}

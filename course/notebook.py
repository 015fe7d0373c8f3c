"""Writes course/colab.ipynb from the lessons: `python -m course.notebook`. A test holds the file equal to this.

The first line of a cell says what it needs: "# network" or "# GPU and network". Cells without such a line run offline,
in the project's folder, on a CPU.
"""

import json
from pathlib import Path

from course.judge import LESSONS, ROOT
from parts.files import write_text

FILE = ROOT / "course/colab.ipynb"
IN_SHORT = (3, 4, 5, 6)

TITLE = """# Image-LoRA from scratch

Image-LoRA fine-tunes a vision-language model by changing the *values* of *visual* tokens in a few attention heads. This
notebook runs the project's demo, goes through lessons 3 to 6 of its course in short, and ends with a real checkpoint.

Run the cells from top to bottom. All but the first and the last run on a CPU. Where to get the project: set
`REPOSITORY` to the address of your copy, or upload its folder and set `FOLDER`."""

FETCH = """# network
# Colab's own torch stays: with --no-deps pip installs these packages alone, in the versions that the project is tested with.
import os
import subprocess
import sys

REPOSITORY, FOLDER = "", "imagelora"
if REPOSITORY:
    subprocess.run(["git", "clone", REPOSITORY, FOLDER], check=True)
os.chdir(FOLDER)
packages = {packages}
subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *packages], check=True)"""

START = """import sys

sys.path.insert(0, ".")  # the project's folder
from IPython.display import Image, display

import train
from course.__main__ import show"""

DEMO_TEXT = """## The demo

The tiny model knows by name what is in scenes in fog, but was asked for boxes by day only. The run evaluates, probes the
heads, trains, and evaluates again: about a minute. Look at three things below: what was gained in fog, what was kept by
day, and the change of text logits, which is 0."""

DEMO = """train.main(["--steps=300", "--eval-limit=300", "--out=runs/notebook"])"""

PICTURES = """for name in ("heads", "curve", "examples"):
    display(Image(f"runs/notebook/{name}.png"))"""

REAL_TEXT = """## A real checkpoint

Qwen2.5-VL-3B on RefCOCO, on a T4: choose a GPU in the menu "Runtime" and run the first cells again. The weights (7 GB) and
the images that the run needs are downloaded. A T4 does not compute in bfloat16, so the arithmetic is float16.
**Not measured yet** on a T4: if memory runs out, lower `--max-pixels`."""

REAL = """# GPU and network
flags = "--model=Qwen/Qwen2.5-VL-3B-Instruct --data=refcoco --dtype=float16 --max-pixels=200704"
flags += " --limit=400 --eval-limit=100 --batch=8 --checkpointing --out=runs/refcoco"
train.main(flags.split())
display(Image("runs/refcoco/examples.png"))"""

EXERCISE_TEXT = (
    """Fill the holes and run the cell; it writes the file. The next cell checks it and names your mistake."""
)


def packages():
    """What to install, with versions: what Colab has not, or has too old. Its torch and pillow stay."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    return [line for line in lines if not line.startswith(("torch", "pillow", "tqdm", "pytest"))]


def section(number, title):
    """The text under a heading of a lesson, without its picture."""
    text = (ROOT / f"course/lesson{number}/lesson.md").read_text(encoding="utf-8")
    part = text.split(f"## {title}\n")[1].split("\n## ")[0].strip()
    return "\n".join(line for line in part.splitlines() if not line.startswith("!["))


def picture(number):
    """The file that a lesson shows."""
    text = (ROOT / f"course/lesson{number}/lesson.md").read_text(encoding="utf-8")
    target = text.split("](", 1)[1].split(")")[0]
    return (Path(f"course/lesson{number}") / target).as_posix().replace("course/lesson5/../../", "")


def cells():
    """[(kind, text)] of the notebook."""
    found = [("markdown", TITLE), ("code", FETCH.format(packages=json.dumps(packages()))), ("code", START)]
    found += [("markdown", DEMO_TEXT), ("code", DEMO), ("code", PICTURES)]
    for number in IN_SHORT:
        exercise = (ROOT / f"course/lesson{number}/exercise.py").read_text(encoding="utf-8").strip()
        found += [
            ("markdown", f"## Lesson {number}. {LESSONS[number]}\n\n{section(number, 'The idea')}"),
            ("code", f'display(Image("{picture(number)}"))'),
            ("markdown", EXERCISE_TEXT),
            ("code", f"%%writefile course/lesson{number}/exercise.py\n{exercise}"),
            ("code", f"show({number})"),
        ]
    return [*found, ("markdown", REAL_TEXT), ("code", REAL)]


def notebook():
    """The file's text."""
    made = []
    for i, (kind, text) in enumerate(cells()):
        cell = {"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": text.splitlines(keepends=True)}
        cell |= {"execution_count": None, "outputs": []} if kind == "code" else {}
        made.append(dict(sorted(cell.items())))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"colab": {"provenance": []}, "kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


if __name__ == "__main__":
    write_text(FILE, notebook())

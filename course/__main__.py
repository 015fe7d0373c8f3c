"""The course: eight lessons of 20 to 40 minutes, each a page, a file with holes, and checks that name your mistake.

    python -m course                      the lessons in order, up to the first one that is red, with a hint
    python -m course 4                    one lesson
    python -m course --grade              points by lesson as JSON; exit code 1 if something is red
    python -m course --hand-out FOLDER    a copy for students, without tests, solutions and notes for teachers

Read course/lesson1/lesson.md first, fill the holes of course/lesson1/exercise.py, run `python -m course`, and so on.
"""

import argparse
import json
import shutil
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch looks for it; nothing here needs it

import torch

from course.judge import LESSONS, ROOT, exercise_file, grade, has_holes, judge
from parts.files import InputError

COPIED = ("parts", "harness", "course", "docs", "experiments/results")  # rooms of the hand-out
LEFT_OUT = ("teacher.md", "__pycache__", "*.part", "runs")


def show(number):
    """Judge a lesson and print its checks up to the first red one; True if all are green."""
    print(f"\nLesson {number}. {LESSONS[number]}")
    for sentence, found in judge(number, all_checks=False):
        print(f"  {'red  ' if found else 'green'}  {sentence}")
        if found:
            print("\n    " + found.replace("\n", "\n    "))
            print(f"\n    Read course/lesson{number}/lesson.md, change course/lesson{number}/exercise.py,")
            print(f"    then run: python -m course {number}")
            return False
    return True


def hand_out(folder):
    """Copy the project for students. Raises InputError if the folder exists, or an exercise is filled in."""
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder}: exists already; name a new folder")
    filled = [str(file) for file in map(exercise_file, LESSONS) if not has_holes(file)]
    if filled:
        raise InputError(f"{filled[0]}: a hole is filled in; put the file back as it was (git checkout) first")
    for room in COPIED:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for file in [*ROOT.glob("*.py"), *ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "requirements.txt"]:
        shutil.copyfile(file, folder / file.name)
    print(f"{folder}: ready. The solutions are in tests/, which stayed here.")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m course", description=__doc__.splitlines()[0])
    parser.add_argument("lesson", nargs="?", type=int, choices=LESSONS, help="a single lesson, 1 to 8")
    parser.add_argument("--grade", action="store_true", help="print points by lesson as JSON")
    parser.add_argument("--hand-out", metavar="FOLDER", help="write a copy for students into a new folder")
    args = parser.parse_args(argv)
    torch.set_num_threads(
        1
    )  # the models are small: more threads would wait for each other, and longer on a busy machine

    if args.hand_out:
        try:
            hand_out(args.hand_out)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        return
    if args.grade:
        grades = grade()
        print(json.dumps(grades, indent=1))
        sys.exit(int(grades["points"] < grades["of"]))
    for number in [args.lesson] if args.lesson else LESSONS:
        if not show(number):
            sys.exit(1)
    print("\nAll green.")


if __name__ == "__main__":
    main()

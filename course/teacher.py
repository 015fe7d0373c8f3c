"""For teachers: a copy of the project for students, the grades of a class, and what a class measured together."""

import csv
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from statistics import NormalDist, fmean, stdev

from course.judge import LESSONS, ROOT, judge
from course.lesson9 import exercise
from parts.files import InputError, read_json, write_text

ROOMS = ("parts", "harness", "course", "docs", "experiments")  # of the hand-out
LEFT_OUT = ("teacher.md", "classroom.yml", "__pycache__", "*.part")
T = exercise.T | {df: 1.96 + 2.4 / df for df in range(10, 1000)}  # degrees of freedom: t; from 10 on to 0.03
BOXES, MARGIN = "scenes-fog grounding", 0.02  # what the class compares in lesson 9, and what would matter


def hand_out(folder):
    """Copy the project for students: no tests, no solutions, no answers. Raises InputError if the folder exists."""
    if folder.exists():
        raise InputError(f"{folder}: exists already; name a new folder")
    for name in ROOMS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    copied = {file: file.name for file in [*ROOT.glob("*.py"), ROOT / "LICENSE", ROOT / "requirements.txt"]}
    copied[ROOT / "course/classroom.yml"] = ".github/workflows/classroom.yml"
    copied |= {ROOT / f"course/lesson{number}/exercise.py": f"exercises/lesson{number}.py" for number in LESSONS}
    for file, name in copied.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8")
    ignored = ignored.replace("/exercises/\n", "exercises/*/*\n!exercises/*/report.json\n")
    (folder / ".gitignore").write_text(ignored, encoding="utf-8")
    (folder / "README.md").write_text("# Image-LoRA from scratch\n\nBegin with [the course](course/README.md).\n")
    print(f"{folder}: ready. The solutions are in tests/, which stayed here.")


def grade(folders):
    """Judge all lessons in each folder of exercises: print a CSV with a row for each folder, and write results.json into
    it, as Gradescope reads it. True if everything is green."""
    for folder in folders:
        if not any(folder.glob("lesson*.py")):
            raise InputError(f"{folder}: no file lesson1.py, lesson2.py, ...; name folders with a student's exercises")
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["student", *LESSONS, "points", "of", "leaderboard"])
    all_green = True
    for folder in folders:
        files = [folder / f"lesson{number}.py" for number in LESSONS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            lessons = list(pool.map(lambda number, file: list(judge(number, file)), LESSONS, files))
        points, tests = [sum(not result["problem"] for result in results) for results in lessons], []
        for number, result in ((n, result) for n, results in zip(LESSONS, lessons) for result in results):
            words = "\n".join(result[name] for name in ("problem", "remedy", "measured") if result[name])
            score = float(not result["problem"])
            tests.append({"name": f"{number}. {result['title']}", "output": words, "score": score, "max_score": 1.0})
        best = lessons[-1][-1]["measured"]  # "84.1 % of boxes in fog with 4,614 numbers"
        table.writerow([folder.name, *points, sum(points), len(tests), best])
        all_green = all_green and sum(points) == len(tests)
        board = [{"name": "boxes in fog", "value": float(best.split()[0])}] if best else []
        write_text(folder / "results.json", json.dumps({"tests": tests, "leaderboard": board}, indent=1))
    return all_green


def together(folders):
    """The common experiment of a class: probed heads against random ones, paired by seed over the runs probed-SEED and
    random-SEED in all folders; and its power, how often so many pairs find a true difference of the margin."""
    shares = {}
    for file in (file for folder in folders for file in folder.glob("*-*/report.json")):
        report = read_json(file)
        side = shares.setdefault(file.parent.name.split("-")[0], {})
        side[report["seed"]] = report["tuned"]["by_kind"][BOXES]
    probed, random = shares.get("probed", {}), shares.get("random", {})
    differences = [probed[seed] - random[seed] for seed in probed.keys() & random.keys()]
    n = len(differences)
    if n < 3:
        raise InputError(f"{n} pairs of runs probed-SEED and random-SEED; at least three are needed")
    d, s = fmean(differences), max(stdev(differences), 1e-9)
    half = T[n - 1] * s / sqrt(n)
    power = {m: NormalDist().cdf(MARGIN * sqrt(m) / s - T[m - 1]) for m in (3, n)}
    print(f"{n} pairs, probed - random: {100 * d:+.1f} points [{100 * (d - half):+.1f}, {100 * (d + half):+.1f}]")
    print(f"a true difference of {100 * MARGIN:g} points is seen by 3 pairs in {power[3]:.0%} of all classes, by {n} in {power[n]:.0%}")

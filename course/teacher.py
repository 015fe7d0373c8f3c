"""For teachers: a copy of the project for students, the grades of a class, and what a class found together in lesson 9."""

import csv
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from statistics import NormalDist, fmean, stdev

from course.judge import LESSONS, ROOT, judge
from parts.files import InputError, read_json

ROOMS = ("parts", "harness", "course", "docs", "experiments")  # of the hand-out
LEFT_OUT = ("teacher.md", "checked.md", "__pycache__", "*.part")
BOXES, MARGIN = "scenes-fog grounding", 0.02  # what the class compares in lesson 9, and what would matter


def hand_out(folder):
    """Copy the project for students: no tests, no solutions, no answers. Raises InputError if the folder exists."""
    if folder.exists():
        raise InputError(f"{folder}: exists already; name a new folder")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for file in [*ROOT.glob("*.py"), ROOT / "LICENSE", ROOT / "requirements.txt", ROOT / ".gitignore"]:
        shutil.copyfile(file, folder / file.name)
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8")
    (folder / ".gitignore").write_text(ignored.replace("exercises/\n", "exercises/*/*\n!exercises/*/report.json\n"))
    (folder / "README.md").write_text("# Image-LoRA from scratch\n\nBegin with [the course](course/README.md).\n")
    (folder / ".github/workflows").mkdir(parents=True)
    (folder / "course/classroom.yml").rename(folder / ".github/workflows/classroom.yml")
    (folder / "exercises").mkdir()
    for number in LESSONS:
        shutil.copyfile(ROOT / f"course/lesson{number}/exercise.py", folder / f"exercises/lesson{number}.py")
    print(f"{folder}: ready. The solutions are in tests/, which stayed here.")


def grade(folders):
    """Judge all lessons in each folder of exercises: print a CSV with a row for each folder, and write results.json into
    it, as Gradescope reads it. True if everything is green."""
    for folder in folders:
        if not any(folder.glob("lesson*.py")):
            raise InputError(f"{folder}: no file lesson1.py, lesson2.py, ...; name folders with a student's exercises")
    tasks = [(number, folder / f"lesson{number}.py") for folder in folders for number in LESSONS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        judged = list(pool.map(lambda task: list(judge(*task)), tasks))
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["student", *LESSONS, "points", "of", "leaderboard"])
    for i, folder in enumerate(folders):
        lessons = judged[i * len(LESSONS) : (i + 1) * len(LESSONS)]
        points = [sum(not result["problem"] for result in results) for results in lessons]
        best = lessons[-1][-1]["measured"]  # "84.1 % of boxes in fog with 4,614 numbers"
        table.writerow([folder.name, *points, sum(points), sum(map(len, lessons)), best])
        write_gradescope(folder / "results.json", lessons, best)
    return not any(result["problem"] for results in judged for result in results)


def write_gradescope(file, lessons, best):
    """The results of one student in the format of a Gradescope autograder."""
    tests = []
    for number, results in zip(LESSONS, lessons):
        for result in results:
            words = [result[name] for name in ("problem", "remedy", "measured") if result[name]]
            score = {"score": float(not result["problem"]), "max_score": 1.0, "output": "\n".join(words)}
            tests.append({"name": f"{number}. {result['title']}"} | score)
    board = [{"name": "boxes in fog", "value": float(best.split()[0])}] if best else []
    file.write_text(json.dumps({"tests": tests, "leaderboard": board}, indent=1), encoding="utf-8")


def quantile(df):
    """The t of a 95 % interval: that of lesson 9's table, beyond it by the first terms of a series, to a hundredth."""
    from course.lesson9.check import T  # it imports torch

    z = NormalDist().inv_cdf(0.975)
    return T[df] if df in T else z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


def together(folders):
    """The common experiment of a class: probed heads against random ones, paired by seed over the runs probed-SEED and
    random-SEED in all folders; and how surely so many pairs find a difference of two points."""
    shares = {}
    for name in ("probed", "random"):
        for file in (file for folder in folders for file in folder.glob(f"{name}-*/report.json")):
            report = read_json(file)
            shares.setdefault(report["seed"], {})[name] = report["tuned"]["by_kind"][BOXES]
    differences = [pair["probed"] - pair["random"] for pair in shares.values() if len(pair) == 2]
    n = len(differences)
    if n < 3:
        raise InputError(f"{n} pairs of runs probed-SEED and random-SEED; at least three are needed")
    d, s = fmean(differences), max(stdev(differences), 1e-9)
    half = quantile(n - 1) * s / sqrt(n)

    def power(pairs):
        """How often so many pairs would find a true difference of the margin, to be "better"."""
        return NormalDist().cdf(MARGIN * sqrt(pairs) / s - quantile(pairs - 1))

    print(f"{n} pairs, probed - random: {100 * d:+.1f} points [{100 * (d - half):+.1f}, {100 * (d + half):+.1f}]")
    print(f"standard deviation of a difference: {100 * s:.1f} points")
    print(f"a true difference of {100 * MARGIN:g} points is found by 3 pairs in {power(3):.0%} of all classes, by {n} in {power(n):.0%}")
    print(f"80 % need {next(pairs for pairs in range(3, 100_000) if power(pairs) >= 0.8)} pairs")

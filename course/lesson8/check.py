"""What lesson 8 checks."""

import math
import random
from pathlib import Path
from statistics import fmean, stdev

from course.checks import Wrong, compare, require
from parts.files import InputError, read_json

ROOT = Path(__file__).parent.parent.parent  # where the folders of the runs are
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
FREE = ("seed", "out", "device", "workers", "base", "resume")  # may differ between any two runs
FIELDS = {  # of my_experiment: the kind, and the kind in words
    "claim": (str, "a sentence"),
    "margin": ((int, float), "a number"),
    "measure": (str, "a name"),
    "a": (list, "a list of folders"),
    "b": (list, "a list of folders"),
    "changed": (list, "a list of flags"),
    "interval": ((list, tuple), "two numbers, [low, high]"),
    "verdict": (str, "a word"),
    "did_not_show": (str, "a sentence"),
}
POINTS = "this is in points: 2 points are a share of 0.02"


def interval(d, error, t):
    return d, d - t * error, d + t * error


def paired(a, b):
    differences = [x - y for x, y in zip(a, b)]
    n = len(differences)
    return interval(fmean(differences), stdev(differences) / math.sqrt(n), T[n - 1])


def the_interval(student):
    """paired_interval is d -+ t * s / sqrt(n) of the differences, seed by seed."""
    rng = random.Random(8)
    for n in (3, 5, 8):
        b = [rng.uniform(0.5, 0.9) for _ in range(n)]
        a = [x + 0.03 + rng.uniform(-0.02, 0.02) for x in b]
        differences = [x - y for x, y in zip(a, b)]
        d, s, t = fmean(differences), stdev(differences), T[n - 1]
        apart = math.sqrt(stdev(a) ** 2 / n + stdev(b) ** 2 / n)
        mistakes = [
            (interval(d, s, t), "this is the spread of single runs: divide s by sqrt(n)"),
            (interval(d, s / n, t), "s is divided by n; divide by sqrt(n)"),
            (interval(d, s * math.sqrt((n - 1) / n) / math.sqrt(n), t), "s is divided by n under the root: take n - 1"),
            (interval(d, s / math.sqrt(n), 1.96), "1.96 is for hundreds of runs: with few, take t from the table"),
            (interval(d, s / math.sqrt(n), T[n]), "t is that of n degrees of freedom: take n - 1"),
            (
                interval(d, s / math.sqrt(n - 1), t),
                "s is divided by sqrt(n - 1); s has n - 1 in it already, divide by sqrt(n)",
            ),
            (interval(d, apart, t), "not paired: take the differences seed by seed, then their standard deviation"),
            (interval(-d, s / math.sqrt(n), t), "the sign is wrong: the difference is a - b"),
            (interval(d, s / math.sqrt(n), t)[1:], "return three numbers: (mean, low, high)"),
        ]
        compare("paired_interval", student.paired_interval(a, b), paired(a, b), mistakes)


def the_verdict(student):
    """verdict names what an interval says, and does not take "not significant" for "equal"."""
    cases = [
        (0.01, 0.05, "better", "all of it is above 0; the margin is asked for after that"),
        (-0.05, -0.01, "worse", "all of it is below 0; the margin is asked for after that"),
        (-0.01, 0.015, "equivalent", "an interval within the margin on both sides of 0 says equivalent"),
        (-0.06, 0.05, "undecided", "an interval that holds 0 and large differences is no proof of equality"),
        (-0.01, 0.05, "undecided", "it holds 0, so it is not better; it leaves the margin, so it is not equivalent"),
        (-0.05, 0.01, "undecided", "it holds 0, so it is not worse; it leaves the margin, so it is not equivalent"),
        (0.005, 0.01, "better", "it is above 0, so there is a difference, if a small one: better comes first"),
        (-0.01, -0.005, "worse", "it is below 0, so there is a difference, if a small one: worse comes first"),
    ]
    for low, high, right, words in cases:
        got = student.verdict(low, high, 0.02)
        if got != right:
            raise Wrong(f"verdict({low}, {high}, 0.02): {got!r} is not {right!r}: {words}")


def say(faults):
    """Raise Wrong with all faults, one a line."""
    require(not faults, "\n".join(faults))


def experiment(student, *fields):
    """The student's dict. Raises Wrong if one of these fields is missing, or of another kind."""
    e, faults = student.my_experiment(), []
    require(isinstance(e, dict), "my_experiment: return a dict")
    for field in fields:
        kind, words = FIELDS[field]
        if e.get(field) in (None, "", []):
            faults.append(f"{field}: missing")
        elif not isinstance(e[field], kind):
            faults.append(f"{field}: {e[field]!r} is not {words}")
    say(faults)
    return e


def it_is_described(student):
    """my_experiment says what is claimed, by which measure, and what did not show."""
    e, faults = experiment(student, *FIELDS), []
    if len(e["claim"].split()) < 6:
        faults.append(f"claim: {e['claim']!r} is too short for a sentence that can be wrong")
    if len(e["did_not_show"].split()) < 6:
        faults.append(f"did_not_show: {e['did_not_show']!r} is too short: what is it that these runs do not tell?")
    if not 0 < e["margin"] <= 0.2:
        faults.append(f"margin: {e['margin']}; {POINTS}")
    if len(e["interval"]) != 2:
        faults.append(f"interval: {e['interval']} is not [low, high]")
    say(faults)


def reports(e):
    """The reports of both sides. Raises Wrong for folders without one."""
    sides, faults = ([], []), []
    for side, name in zip(sides, "ab"):
        for folder in e[name]:
            try:
                side.append(read_json(ROOT / folder / "report.json"))
            except InputError as error:
                faults.append(f"{error}: a run that has ended leaves report.json in its folder")
    say(faults)
    return sides


def different(one, other):
    """The flags in which two runs differ. What was on neither command line only follows from another flag."""
    one, other = one["arguments"], other["arguments"]
    given = {*one["given"], *other["given"]} - {*FREE}
    return sorted(flag for flag in given if one[flag] != other[flag])


def as_argument(flag):
    """The flags "--no-base", "no-base" and "base" are the same."""
    return flag.lstrip("-").replace("-", "_").removeprefix("no_")


def runs_are_pairs(student):
    """There are three seeds or more, the same on both sides, and a differs from b in what you say, nothing else."""
    e = experiment(student, "a", "b", "changed")
    a, b = reports(e)
    faults, folders = [], e["a"] + e["b"]
    seeds = [[report["seed"] for report in side] for side in (a, b)]

    if len({*folders}) < len(folders):
        faults.append("a folder is named twice: each run counts once")
    elif len({*seeds[0]}) < len(seeds[0]):
        faults.append(f"the seeds of a are {seeds[0]}: each run needs its own")
    if min(len(a), len(b)) < 3:
        faults.append("fewer than three seeds: a difference of one or two runs has no useful interval")
    if max(len(a), len(b)) > 10:
        faults.append("more than ten seeds: the table of t ends there")
    if len(a) != len(b):
        faults.append(f"{len(a)} runs against {len(b)}: a pair is two runs of the same seed")
    elif seeds[0] != seeds[1]:
        faults.append(f"the seeds are {seeds[0]} and {seeds[1]}: give both sides the same, in the same order")

    for name, side in zip("ab", (a, b)):
        mixed = sorted({flag for report in side for flag in different(side[0], report)})
        if mixed:
            faults.append(f"the runs of {name} differ in {', '.join(mixed)}: only the seed may differ")
    changed, said = different(a[0], b[0]), sorted(map(as_argument, e["changed"]))
    if said != changed:
        faults.append(f"a and b differ in {', '.join(changed) or 'nothing'}; `changed` says {', '.join(said)}")
    say(faults)


def near(found, right, tolerance):
    return len(found) == len(right) and all(abs(x - y) < tolerance for x, y in zip(found, right))


def the_result(student):
    """The interval and the verdict follow from the reports."""
    e = experiment(student, "a", "b", "measure", "margin", "interval", "verdict")
    values, faults = [], []
    for side in reports(e):
        measured = [{"accuracy": report["tuned"]["accuracy"]} | report["tuned"]["by_kind"] for report in side]
        require(e["measure"] in measured[0], f"measure: choose {', '.join(measured[0])}")
        values.append([of_run[e["measure"]] for of_run in measured])
    require(len(values[0]) == len(values[1]) > 1, "a and b: name as many runs on both sides, three or more")

    _, low, high = paired(*values)
    found, right = list(e["interval"]), f"[{low:.3f}, {high:.3f}]"
    if near(found, [100 * low, 100 * high], 0.15):
        faults.append(f"interval: {POINTS}")
    elif near(found, [-high, -low], 0.0015):
        faults.append("interval: the sign is wrong, it is a - b")
    elif not near(found, [low, high], 0.0015):
        faults.append(f"interval: the reports give {right}, not {found}")
    verdict = student.verdict(low, high, e["margin"])
    if e["verdict"] != verdict:
        faults.append(f"verdict: {e['verdict']!r}, but of {right} your `verdict` says {verdict!r}")
    say(faults)


CHECKS = [the_interval, the_verdict, it_is_described, runs_are_pairs, the_result]

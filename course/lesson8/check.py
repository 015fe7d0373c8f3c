"""What lesson 8 checks."""

import math
import random
from pathlib import Path
from statistics import fmean, stdev

from course.checks import Wrong, compare, require
from files import InputError, read_json

ROOT = Path(__file__).parent.parent.parent  # where the folders of the runs are
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
FREE = (
    "seed",
    "probe_seed",
    "out",
    "given",
    "device",
    "workers",
    "base",
    "resume",
)  # may differ between runs of a side
FIELDS = ("claim", "margin", "measure", "a", "b", "changed", "interval", "verdict", "did_not_show")
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
        (0.01, 0.05, "better", ""),
        (-0.05, -0.01, "worse", ""),
        (-0.01, 0.015, "equivalent", "an interval within the margin on both sides of 0 says equivalent"),
        (-0.06, 0.05, "undecided", "an interval that holds 0 and large differences is no proof of equality"),
        (-0.01, 0.05, "undecided", "it holds 0, so it is not better; it leaves the margin, so it is not equivalent"),
        (-0.05, 0.01, "undecided", "it holds 0, so it is not worse; it leaves the margin, so it is not equivalent"),
        (0.005, 0.01, "better", "better comes first, also where the difference is within the margin"),
    ]
    for low, high, right, words in cases:
        got = student.verdict(low, high, 0.02)
        if got != right:
            raise Wrong(f"verdict({low}, {high}, 0.02): {got!r} is not {right!r}{': ' * bool(words)}{words}")


def reports(e):
    """The reports of both sides. Raises Wrong for a folder without one."""
    try:
        return [[read_json(ROOT / folder / "report.json") for folder in e[side]] for side in "ab"]
    except InputError as error:
        raise Wrong(f"{error}: a run that has ended leaves report.json in its folder") from None


def it_is_described(student):
    """my_experiment says what is claimed, by which measure, and what did not show."""
    e = student.my_experiment()
    missing = [field for field in FIELDS if not isinstance(e, dict) or e.get(field) in (None, "", [])]
    require(not missing, f"my_experiment: {', '.join(missing)} missing")
    for field in ("claim", "did_not_show"):
        require(len(e[field].split()) >= 6, f"{field}: {e[field]!r} is too short for a sentence that can be wrong")
    require(0 < e["margin"] <= 0.2, f"margin: {e['margin']}; {POINTS}")


def runs_are_pairs(student):
    """There are three seeds or more, the same on both sides, and a differs from b in what you say, nothing else."""
    e = student.my_experiment()
    folders = [str(folder) for side in "ab" for folder in e[side]]
    require(len(set(folders)) == len(folders), "a folder is named twice: each run counts once")
    a, b = reports(e)
    require(
        len(a) >= 3 and len(b) >= 3, "fewer than three seeds: a difference of one or two runs has no useful interval"
    )
    require(len(a) == len(b), f"{len(a)} runs against {len(b)}: a pair is two runs of the same seed")
    seeds = [[report["seed"] for report in side] for side in (a, b)]
    require(len(set(seeds[0])) == len(seeds[0]), f"the seeds of a are {seeds[0]}: each run needs its own")
    require(
        seeds[0] == seeds[1], f"the seeds are {seeds[0]} and {seeds[1]}: give both sides the same, in the same order"
    )

    def different(one, other):
        one, other = one["arguments"], other["arguments"]
        return sorted(
            name for name in one.keys() | other.keys() if name not in FREE and one.get(name) != other.get(name)
        )

    for side in (a, b):
        mixed = sorted({name for report in side for name in different(side[0], report)})
        require(not mixed, f"the runs of one side differ in {', '.join(mixed)}: only the seed may differ")
    changed = different(a[0], b[0])
    words = ", ".join(changed) or "nothing"
    require(sorted(e["changed"]) == changed, f"a and b differ in {words}; `changed` says {', '.join(e['changed'])}")


def near(found, right, tolerance):
    return len(found) == len(right) and all(abs(x - y) < tolerance for x, y in zip(found, right))


def the_result(student):
    """The interval and the verdict follow from the reports."""
    e = student.my_experiment()
    values = []
    for side in reports(e):
        known = side[0]["tuned"]["by_kind"]
        require(e["measure"] == "accuracy" or e["measure"] in known, f"measure: choose accuracy or {', '.join(known)}")
        values.append([({"accuracy": r["tuned"]["accuracy"]} | r["tuned"]["by_kind"])[e["measure"]] for r in side])
    _, low, high = paired(*values)
    found = list(e["interval"])
    if not near(found, [low, high], 0.0015):
        require(not near(found, [100 * low, 100 * high], 0.15), f"interval: {POINTS}")
        require(not near(found, [-high, -low], 0.0015), "interval: the sign is wrong, it is a - b")
        raise Wrong(f"interval: the reports give [{low:.3f}, {high:.3f}], not {found}")
    right = student.verdict(low, high, e["margin"])
    require(
        e["verdict"] == right, f"verdict: {e['verdict']!r}, but the interval [{low:.3f}, {high:.3f}] says {right!r}"
    )


CHECKS = [the_interval, the_verdict, it_is_described, runs_are_pairs, the_result]

"""What lesson 9 checks."""

import math
import random
from pathlib import Path
from statistics import fmean, stdev

from course.checks import compare, require
from course.judge import Wrong
from course.teacher import T
from parts.files import InputError, read_json

FREE = {"seed", "out", "device", "workers", "base", "resume"}  # flags that may differ between any two runs
FIELDS = dict.fromkeys(("claim", "measure", "a", "b", "changed", "verdict", "did_not_show"), str)  # of my_experiment
FIELDS |= {"margin": (int, float), "interval": (list, tuple)}
POINTS = "this is in points -> 2 points are a share of 0.02"


def around(d, error, t):
    return d, d - t * error, d + t * error


def paired(a, b):
    differences = [x - y for x, y in zip(a, b)]
    return around(fmean(differences), stdev(differences) / math.sqrt(len(a)), T[len(a) - 1])


def check_the_interval(student):
    """paired_interval is d -+ t * s / sqrt(n) of the differences, seed by seed."""
    rng = random.Random(8)
    for n in (3, 5, 8):
        b = [rng.uniform(0.5, 0.9) for _ in range(n)]
        a = [x + 0.03 + rng.uniform(-0.02, 0.02) for x in b]
        differences = [x - y for x, y in zip(a, b)]
        d, s, t, root = fmean(differences), stdev(differences), T[n - 1], math.sqrt(n)
        apart = math.sqrt(stdev(a) ** 2 + stdev(b) ** 2) / root
        mistakes = {
            "this is the spread of single runs -> divide s by sqrt(n)": around(d, s, t),
            "the interval is too narrow -> divide s by sqrt(n), not by n": around(d, s / n, t),
            "the interval is a little too wide -> the root is that of n, not n - 1": around(d, s / math.sqrt(n - 1), t),
            "the mean is in the middle -> it comes first, then low and high": sorted(paired(a, b)),
            "s is a little too small -> n - 1 under its root, not n": around(d, s * math.sqrt(n - 1) / n, t),
            "1.96 is for hundreds of runs -> take t from the table": around(d, s / root, 1.96),
            "t is that of n degrees of freedom -> take n - 1": around(d, s / root, T[n]),
            "the interval is that of two separate groups -> take the differences seed by seed": around(d, apart, t),
            "the sign is wrong -> the difference is a - b": around(-d, s / root, t),
        }
        compare("paired_interval", student.paired_interval(a, b), paired(a, b), mistakes)


def check_the_verdict(student):
    """verdict names what an interval says, and does not take "not significant" for "equal"."""
    cases = {(0.01, 0.05): "better", (-0.05, -0.01): "worse", (-0.01, 0.015): "equivalent", (-0.06, 0.05): "undecided"}
    cases |= {(-0.01, 0.05): "undecided", (0.005, 0.01): "better", (-0.01, -0.005): "worse"}
    for (low, high), right in cases.items():
        compare(f"verdict({low}, {high}, 0.02)", student.verdict(low, high, 0.02), right)


def experiment(student):
    """The student's dict. Raises Wrong for what is missing, of another kind, or says nothing."""
    e = student.my_experiment()
    require(isinstance(e, dict), "my_experiment: return a dict")
    for field, python in FIELDS.items():
        require(isinstance(e.get(field), python), f"{field}: {e.get(field)!r} -> my_experiment says what it is")
    for field in ("claim", "did_not_show"):
        require(len(e[field].split()) > 5, f"{field}: {e[field]!r} is too short -> one sentence that can be wrong")
    require(0 < e["margin"] <= 0.2, f"margin: {e['margin']}; {POINTS}")
    require(len(e["interval"]) == 2, f"interval: {e['interval']} is not [low, high]")
    return e


def check_it_is_described(student):
    """my_experiment says what is claimed, by which measure, and what did not show."""
    experiment(student)


def reports(student, name):
    """The reports of the runs NAME-SEED beside the exercise, for the student's three seeds."""
    read = []
    for seed in range(3 * student.NUMBER, 3 * student.NUMBER + 3):
        folder = f"{name}-{seed}"
        try:
            read.append(read_json(Path(student.__file__).parent / folder / "report.json"))
        except InputError:
            raise Wrong(f"{folder}: no report -> a run with --seed {seed} --out exercises/{folder}, to its end") from None
        require(read[-1]["seed"] == seed, f"{folder}: its seed is {read[-1]['seed']} -> --seed {seed}")
    return read


def different(one, other):
    """The flags in which two runs differ. What was on neither command line only follows from another flag."""
    one, other = one["arguments"], other["arguments"]
    given = {*one["given"], *other["given"]} - FREE
    return sorted(flag for flag in given if one[flag] != other[flag])


def check_runs_are_pairs(student):
    """The runs have your three seeds on both sides, and a differs from b in one flag, nothing else."""
    e = experiment(student)
    a, b = reports(student, e["a"]), reports(student, e["b"])
    for name, side in zip("ab", (a, b)):
        mixed = sorted({flag for report in side for flag in different(side[0], report)})
        require(not mixed, f"the runs of {name} differ in {', '.join(mixed)} -> only the seed may differ")
    changed, yours = different(a[0], b[0]), e["changed"].lstrip("-").replace("-", "_").removeprefix("no_")
    require(changed == [yours], f"a and b differ in {', '.join(changed) or 'nothing'}; `changed` is {e['changed']}")


def check_the_result(student):
    """The interval and the verdict follow from the reports."""
    e, values = experiment(student), []
    for side in (reports(student, e["a"]), reports(student, e["b"])):
        measured = [{"accuracy": report["tuned"]["accuracy"]} | report["tuned"]["by_kind"] for report in side]
        require(e["measure"] in measured[0], f"measure: choose {', '.join(measured[0])}")
        values.append([of_run[e["measure"]] for of_run in measured])
    d, low, high = paired(*values)
    words = f"{e['a']} - {e['b']}: {100 * d:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    first, last = e["interval"]

    def near(x, y):  # to a tenth of a point
        return abs(x - y) < 0.0015

    require(not (near(first / 100, low) and near(last / 100, high)), f"interval: {POINTS}")
    require(not (near(first, -high) and near(last, -low)), "interval: the sign is wrong -> it is a - b")
    require(near(first, low) and near(last, high), f"interval: {e['interval']} is not that of the reports -> {words}")
    verdict = student.verdict(low, high, e["margin"])
    require(e["verdict"] == verdict, f"verdict: {e['verdict']!r}; {words}: your `verdict` is {verdict!r}")
    return f"{words}, {verdict}"

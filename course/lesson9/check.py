"""What lesson 9 checks."""

import math
import random
from pathlib import Path
from statistics import fmean, stdev

from course.checks import compare, require
from parts.files import InputError, read_json

T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
FREE = {"seed", "out", "device", "workers", "base", "resume"}  # flags that may differ between any two runs
FIELDS = {  # of my_experiment: the kind, in Python and in words
    "claim": (str, "a sentence"),
    "margin": ((int, float), "a number"),
    "measure": (str, "a name"),
    "a": (str, "a name"),
    "b": (str, "a name"),
    "changed": (str, "a flag"),
    "interval": ((list, tuple), "two numbers, [low, high]"),
    "verdict": (str, "a word"),
    "did_not_show": (str, "a sentence"),
}
POINTS = "this is in points -> 2 points are a share of 0.02"


def around(d, error, t):
    return d, d - t * error, d + t * error


def paired(a, b):
    differences = [x - y for x, y in zip(a, b)]
    return around(fmean(differences), stdev(differences) / math.sqrt(len(a)), T[len(a) - 1])


def the_interval(student):
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
            "s is a little too small -> n - 1 under its root, not n": around(d, s * math.sqrt(n - 1) / n, t),
            "the interval is too narrow: 1.96 is for hundreds of runs -> take t from the table": around(d, s / root, 1.96),
            "t is that of n degrees of freedom -> take n - 1": around(d, s / root, T[n]),
            "the interval is too wide -> s has n - 1 in it already, divide by sqrt(n)": around(d, s / math.sqrt(n - 1), t),
            "the interval is that of two separate groups -> take the differences seed by seed": around(d, apart, t),
            "the sign is wrong -> the difference is a - b": around(-d, s / root, t),
            "the mean is missing -> return three numbers, (mean, low, high)": around(d, s / root, t)[1:],
        }
        compare("paired_interval", student.paired_interval(a, b), paired(a, b), mistakes)


def the_verdict(student):
    """verdict names what an interval says, and does not take "not significant" for "equal"."""
    cases = (
        (0.01, 0.05, "better", "all of it is above 0; the margin is asked for after that"),
        (-0.05, -0.01, "worse", "all of it is below 0; the margin is asked for after that"),
        (-0.01, 0.015, "equivalent", "it is within the margin on both sides of 0"),
        (-0.06, 0.05, "undecided", "an interval that holds 0 and large differences is no proof of equality"),
        (-0.01, 0.05, "undecided", "it holds 0, so it is not better; it leaves the margin, so it is not equivalent"),
        (-0.05, 0.01, "undecided", "it holds 0, so it is not worse; it leaves the margin, so it is not equivalent"),
        (0.005, 0.01, "better", "it is above 0, so there is a difference, if a small one: better comes first"),
        (-0.01, -0.005, "worse", "it is below 0, so there is a difference, if a small one: worse comes first"),
    )
    for low, high, right, words in cases:
        got = student.verdict(low, high, 0.02)
        require(got == right, f"verdict({low}, {high}, 0.02): {got!r} is not {right!r} -> {words}")


def experiment(student):
    """The student's dict. Raises Wrong if a field is missing, or of another kind."""
    e = student.my_experiment()
    require(isinstance(e, dict), "my_experiment: return a dict")
    missing = [field for field in FIELDS if e.get(field) in (None, "", [])]
    require(not missing, f"my_experiment: without {', '.join(missing)}")
    for field, (python, words) in FIELDS.items():
        require(isinstance(e[field], python), f"{field}: {e[field]!r} is not {words}")
    return e


def it_is_described(student):
    """my_experiment says what is claimed, by which measure, and what did not show."""
    e = experiment(student)
    for field in ("claim", "did_not_show"):
        require(len(e[field].split()) > 5, f"{field}: {e[field]!r} is too short -> one sentence that can be wrong")
    require(0 < e["margin"] <= 0.2, f"margin: {e['margin']}; {POINTS}")
    require(len(e["interval"]) == 2, f"interval: {e['interval']} is not [low, high]")


def seeds(student):
    return [3 * student.NUMBER + i for i in range(3)]


def reports(student, name):
    """The reports of one side, in the folder of the exercise, a report for each of the student's seeds."""
    read = []
    for seed in seeds(student):
        folder = f"{name}-{seed}"
        try:
            read.append(read_json(Path(student.__file__).parent / folder / "report.json"))
        except InputError:
            require(False, f"{folder}: no report -> run it with --seed {seed} --out exercises/{folder}, to its end")
        require(read[-1]["seed"] == seed, f"{folder}: its seed is {read[-1]['seed']} -> --seed {seed}")
    return read


def different(one, other):
    """The flags in which two runs differ. What was on neither command line only follows from another flag."""
    one, other = one["arguments"], other["arguments"]
    given = {*one["given"], *other["given"]} - FREE
    return sorted(flag for flag in given if one[flag] != other[flag])


def runs_are_pairs(student):
    """The runs have your three seeds on both sides, and a differs from b in one flag, nothing else."""
    e = experiment(student)
    a, b = reports(student, e["a"]), reports(student, e["b"])
    for name, side in zip("ab", (a, b)):
        mixed = sorted({flag for report in side for flag in different(side[0], report)})
        require(not mixed, f"the runs of {name} differ in {', '.join(mixed)} -> only the seed may differ")
    changed, yours = different(a[0], b[0]), e["changed"].lstrip("-").replace("-", "_").removeprefix("no_")
    require(changed == [yours], f"a and b differ in {', '.join(changed) or 'nothing'}; `changed` is {e['changed']}")


def the_result(student):
    """The interval and the verdict follow from the reports."""
    e, values = experiment(student), []
    for side in (reports(student, e["a"]), reports(student, e["b"])):
        measured = [{"accuracy": report["tuned"]["accuracy"]} | report["tuned"]["by_kind"] for report in side]
        require(e["measure"] in measured[0], f"measure: choose {', '.join(measured[0])}")
        values.append([of_run[e["measure"]] for of_run in measured])
    d, low, high = paired(*values)
    yours, right = list(e["interval"]), f"[{low:.3f}, {high:.3f}]"

    def near(a, b, tolerance=0.0015):
        return max(abs(yours[0] - a), abs(yours[1] - b)) < tolerance

    require(not near(100 * low, 100 * high, 0.15), f"interval: {POINTS}")
    require(not near(-high, -low), "interval: the sign is wrong -> it is a - b")
    require(near(low, high), f"interval: the reports give {right}, not {yours}")
    verdict = student.verdict(low, high, e["margin"])
    require(e["verdict"] == verdict, f"verdict: {e['verdict']!r}, but of {right} your `verdict` is {verdict!r}")
    return f"{e['a']} - {e['b']}: {100 * d:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], {verdict}"


CHECKS = [the_interval, the_verdict, it_is_described, runs_are_pairs, the_result]

import math

NUMBER = 0

T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # degrees of freedom: t


def paired_interval(a, b):
    differences = [x - y for x, y in zip(a, b)]
    n = len(differences)
    d = sum(differences) / n
    s = math.sqrt(sum((x - d) ** 2 for x in differences) / (n - 1))
    half = T[n - 1] * s / math.sqrt(n)
    return d, d - half, d + half


def verdict(low, high, margin):
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "equivalent" if low > -margin and high < margin else "undecided"


def my_experiment():
    return {
        "claim": "Values adapted in six heads find more boxes in fog than keys.",
        "margin": 0.02,
        "measure": "scenes-fog grounding",
        "a": "values",
        "b": "keys",
        "changed": "--ablate",
        "interval": [0.015, 0.065],
        "verdict": "better",
        "did_not_show": "No difference in words: both find as many of them as before.",
    }

"""Statistics: paired comparisons over seeds, rank correlation, overlap of selections."""

import math
from statistics import correlation, fmean, stdev

from experiments.suites import MARGIN

POINTS = f"{100 * MARGIN:.0f} points"


def t_cdf(t, df):
    """P(T <= t) of Student's t distribution with `df` degrees of freedom.

    With t = sqrt(df) tan(x) the density becomes c cos(x)^(df - 1). That is smooth on a finite interval, so Simpson's rule
    gives many exact places.
    """
    c = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    end, n = math.atan(abs(t) / math.sqrt(df)), 400
    y = [math.cos(end * i / n) ** (df - 1) for i in range(n + 1)]
    area = c * end / n / 3 * (y[0] + y[n] + 4 * sum(y[1:n:2]) + 2 * sum(y[2:n:2]))
    return 0.5 + math.copysign(area, t)


def t_quantile(p, df):
    """The t with P(T <= t) = p, for p >= 0.5, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        if t_cdf(middle, df) < p:
            low = middle
        else:
            high = middle
    return low


def paired(a, b):
    """Paired comparison of two lists, a value for each seed: the mean difference a - b, its 95 % confidence interval, and
    the two-sided p of the paired t-test. A single pair and equal differences have no interval: None."""
    differences = [x - y for x, y in zip(a, b)]
    d, n = fmean(differences), len(differences)
    s = stdev(differences) if n > 1 else 0
    if s == 0:
        return {"difference": d, "interval": None, "p": None}
    error = s / math.sqrt(n)
    half = t_quantile(0.975, n - 1) * error
    p = 2 * (1 - t_cdf(abs(d / error), n - 1))
    return {"difference": d, "interval": [d - half, d + half], "p": p}


def verdict(low, high):
    """What the confidence interval [low, high] of a difference says. One of four, the first that is true of it:

        better                          it lies above 0
        equivalent within 2 points      it lies within the margin on both sides of 0
        worse by more than 2 points     it lies below the margin
        undecided                       it holds both; "worse, undecided ..." if it lies below 0, so that the sign is known

    Added is "not worse at a margin of 2 points" exactly if the interval lies above -2 points: the paper claims as much.
    """
    if low > 0:
        found = "better"
    elif -MARGIN < low and high < MARGIN:
        found = f"equivalent within {POINTS}"
    elif high < -MARGIN:
        found = f"worse by more than {POINTS}"
    elif high < 0:
        found = f"worse, undecided at a margin of {POINTS}"
    elif low > -MARGIN:
        found = "undecided"
    else:
        found = f"undecided at a margin of {POINTS}"
    return found + (f"; not worse at a margin of {POINTS}" if low > -MARGIN else "")


def not_worse(a, b):
    """Whether a is not worse than b at the margin: the complete confidence interval of a - b lies above -MARGIN."""
    c = paired(a, b)
    low = c["difference"] if c["interval"] is None else c["interval"][0]
    return low > -MARGIN


def compared(name, a, b):
    """One sentence about a paired comparison: `name` says what against what, a and b are accuracies."""
    c = paired(a, b)
    points = f"{100 * c['difference']:+.1f} points"
    if c["interval"] is None:
        return f"{name}: {points}."

    low, high = c["interval"]
    p = "p < 0.001" if c["p"] < 0.001 else f"p = {c['p']:.3f}"
    return f"{name}: {points} [{100 * low:+.1f}, {100 * high:+.1f}], {p}, {verdict(low, high)}."


def ranks(values):
    """Ranks from 1; equal values share the mean of their ranks."""
    order = sorted(values)
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]


def spearman(a, b):
    """Rank correlation of two lists; None if one of them is constant."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return correlation(ranks(a), ranks(b))  # from Python 3.12 on it can rank by itself: method="ranked"


def jaccard(a, b):
    """Overlap of two selections {layer: [heads]}: heads in both / heads in either."""
    first = {(layer, head) for layer, heads in a.items() for head in heads}
    second = {(layer, head) for layer, heads in b.items() for head in heads}
    return len(first & second) / len(first | second)

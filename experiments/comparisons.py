"""Statistics: paired comparisons over seeds, rank correlation, overlap of selections."""

import math
from statistics import fmean, mean, stdev

from experiments.suites import MARGIN


def t_cdf(t, df):
    """P(T <= t) of Student's distribution. With t = sqrt(df) tan(x) the density is c cos(x)^(df - 1), smooth on a finite
    interval, so Simpson's rule is exact to many places."""
    c = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    end, n = math.atan(abs(t) / math.sqrt(df)), 400
    y = [math.cos(end * i / n) ** (df - 1) for i in range(n + 1)]
    area = c * end / n / 3 * (y[0] + y[n] + 4 * sum(y[1:n:2]) + 2 * sum(y[2:n:2]))
    return 0.5 + math.copysign(area, t)


def t_quantile(p, df):
    """The t with P(T <= t) = p >= 0.5, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return low


def paired(a, b):
    """Paired comparison of two lists (a value a seed): mean difference a - b, its 95 % confidence interval, and the two-sided
    p of the paired t-test. One pair alone, or equal differences, have no interval (None)."""
    differences = [x - y for x, y in zip(a, b)]
    d, n = fmean(differences), len(differences)
    if n < 2 or (s := stdev(differences)) == 0:
        return {"difference": d, "interval": None, "p": None}
    error = s / math.sqrt(n)
    half = t_quantile(0.975, n - 1) * error
    return {"difference": d, "interval": [d - half, d + half], "p": 2 * (1 - t_cdf(abs(d / error), n - 1))}


def compared(name, a, b):
    """One sentence of a paired comparison: `name` against another, accuracies a and b."""
    c = paired(a, b)
    if c["interval"] is None:
        return f"{name}: {100 * c['difference']:+.1f} points."
    low, high = c["interval"]
    p = "p < 0.001" if c["p"] < 0.001 else f"p = {c['p']:.3f}"
    verdict = "not worse" if low > -MARGIN else "worse" if high < 0 else "undecided"
    return (
        f"{name}: {100 * c['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], {p}, "
        f"{verdict} at a margin of {100 * MARGIN:.0f} points."
    )


def ranks(values):
    """Ranks from 1; equal values share the mean of their ranks."""
    order = sorted(values)
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]


def spearman(a, b):
    """Rank correlation of two lists; None if one is constant."""
    a, b = ranks(a), ranks(b)
    ma, mb = mean(a), mean(b)
    spread = math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))
    return sum((x - ma) * (y - mb) for x, y in zip(a, b)) / spread if spread else None


def jaccard(a, b):
    """Overlap of two selections {layer: [heads]}: common heads / heads in either."""
    a, b = ({(layer, h) for layer, hs in x.items() for h in hs} for x in (a, b))
    return len(a & b) / len(a | b)

"""Statistics: the difference of two methods over seeds and scenes, rank correlation, overlap of selections."""

import math
from itertools import chain
from statistics import correlation, fmean, variance

MARGIN = 0.02  # of accuracy, fixed beforehand
POINTS = f"{100 * MARGIN:.0f} points"


def t_between(low, high, df):
    """P(low <= T <= high) of Student's t distribution with `df` degrees of freedom. With t = sqrt(df) tan(x) the density
    becomes c cos(x)^(df - 1). That is smooth on a finite interval, so Simpson's rule gives many exact digits."""
    c, n = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi), 400
    start, end = math.atan(low / math.sqrt(df)), math.atan(high / math.sqrt(df))
    y = [max(0.0, math.cos(start + (end - start) * i / n)) ** (df - 1) for i in range(n + 1)]  # 0 at infinity, also rounded
    return c * (end - start) / n / 3 * (y[0] + y[n] + 4 * sum(y[1:n:2]) + 2 * sum(y[2:n:2]))


def t_quantile(p, df):
    """The t with P(T <= t) = p, for p >= 0.5, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        if 0.5 + t_between(0, middle, df) < p:
            low = middle
        else:
            high = middle
    return low


# Comparisons


def compare(row, against, column, ours, theirs):
    """The difference of two rows of a table, over seeds and scenes.

    ours, theirs: [{scene: [score of each question]} for each seed], of the same seeds and scenes.
    """
    by_seed, by_scene = [], {}
    for a, b in zip(ours, theirs, strict=True):
        by_seed.append(fmean(chain(*a.values())) - fmean(chain(*b.values())))
        for scene in a:
            by_scene.setdefault(scene, []).append(fmean(a[scene]) - fmean(b[scene]))
    result = difference(by_seed, [fmean(values) for values in by_scene.values()])
    return {"row": row, "against": against, "column": column} | result


def difference(by_seed, by_scene=()):
    """A mean difference with its 95 % interval and the p of its t-test, from the means of the seeds and of the scenes.

    The squared standard errors of the two are added. What varies in both is counted twice, so the interval is too wide
    rather than too narrow. The degrees of freedom are Welch's. Without any variation there is no interval: None.
    """
    mean, errors = fmean(by_seed), []  # (squared standard error, degrees of freedom)
    for values in (by_seed, by_scene):
        if len(values) > 1 and variance(values) > 0:
            errors.append((variance(values) / len(values), len(values) - 1))
    result = {"difference": mean, "interval": None, "p": None, "seeds": list(by_seed), "scenes": len(by_scene)}
    if errors:
        squared = sum(e for e, _ in errors)
        df = squared**2 / sum(e**2 / n for e, n in errors)
        half = t_quantile(0.975, df) * math.sqrt(squared)
        p = 2 * t_between(abs(mean) / math.sqrt(squared), math.inf, df)
        result |= {"interval": [mean - half, mean + half], "p": p, "error": math.sqrt(squared), "df": df}
    return result


def holm(ps):
    """The p of several tests -> p by Holm's method: the smallest times their number, the next times one less, and so on,
    never smaller than the one before."""
    adjusted, largest = {}, 0.0
    for i, p in enumerate(sorted(ps)):
        largest = max(largest, min(1.0, (len(ps) - i) * p))
        adjusted.setdefault(p, largest)
    return [adjusted[p] for p in ps]


def judged(comparisons):
    """The comparisons of a suite with their p by Holm's method, "holm", and a "verdict"."""
    tested = [c for c in comparisons if c["interval"]]
    for c, p in zip(tested, holm([c["p"] for c in tested])):
        c |= {"holm": p, "verdict": verdict(*c["interval"], p)}
    return comparisons


def verdict(low, high, p):
    """What an interval [low, high] and a p say. "better" and "worse" are shown: p is below 0.05. What follows for the
    margin comes from the interval: it lies within the margin, or completely above its lower end, or completely below."""
    if p < 0.05 and low > 0:
        return "better"
    if p < 0.05 and high < -MARGIN:
        return f"worse by more than {POINTS}"
    if p >= 0.05 and -MARGIN < low and high < MARGIN:
        return f"equivalent within {POINTS}"
    word = "worse" if p < 0.05 else "undecided"
    return f"{word}; not worse by more than {POINTS}" if low > -MARGIN else word


def sentence(c):
    """A comparison in a line."""
    line = f"{c['row']}, against {c['against']}, {c['column']}: {100 * c['difference']:+.1f} points"
    if c["interval"]:
        low, high = c["interval"]
        line += f" [{100 * low:+.1f}, {100 * high:+.1f}], p = {c['p']:.2g} ({c['holm']:.2g} by Holm), {c['verdict']}"
    return f"{line}."


# Ranks and overlaps


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

"""What lesson 8 checks."""

import math

import torch

from course.checks import call, compare, require
from course.real import probe_scores
from probe import select_heads


def check_shares_follow_mass_and_tau(student):
    """layer_shares is in proportion to mass^tau and adds up to the budget."""
    for tau in (0.5, 1, 0):
        scores = torch.rand(5, 4) * torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5])[:, None]
        mass, weights = scores.sum(dim=1), {
            "these are in proportion to the mass -> to its power tau": scores.sum(dim=1),
            "tau comes before the sum -> first a layer's mass, then its power": (scores**tau).sum(dim=1),
            "the mass of a layer is its best score -> it is the sum of its scores": scores.amax(dim=1) ** tau,
        }
        mistakes = {sentence: 7 * weight / weight.sum() for sentence, weight in weights.items()}
        mistakes["these shares add up to 1 -> multiply by the budget"] = mass**tau / (mass**tau).sum()
        mistakes["they do not add up to the budget -> divide by the sum last"] = 7 * (mass / mass.sum()) ** tau
        right = 7 * mass**tau / (mass**tau).sum()
        compare(f"layer_shares at tau {tau}", student.layer_shares(scores, 7, tau), right, mistakes)


def check_full_layers_pass_on(student):
    """limited gives at most G each, and loses nothing, also where passing on fills a second layer."""
    cases = [([6.0, 1.0, 0.7, 0.3], 4, [4.0, 2.0, 1.4, 0.6]), ([9.0, 3.0, 1.0, 1.0], 5, [5.0, 5.0, 2.0, 2.0])]
    cases += [([7.0, 3.5, 1.0, 0.5], 4, [4.0, 4.0, 8 / 3, 4 / 3]), ([1.0, 2.0], 4, [1.0, 2.0])]
    cases += [([9.1, 2.5, 0.4], 4, [4.0] * 3), ([7.8, 3.9, 0.3], 4, [4.0] * 3)]  # full; rounding leaves 1e-6
    for values, G, right in cases:
        shares = torch.tensor(values)
        cut, free = shares.clamp(max=G), shares < G
        over = (shares - cut).sum()
        mistakes = {
            "limited gives NaN when all layers are full -> a rest below 1e-4 is rounding: stop there": shares * float("nan"),
            "a layer has more than its G heads -> cut it": shares,
            "what a full layer cannot take is lost -> give it to the others": cut,
            "full layers are over G again -> scale the others alone": cut * shares.sum() / cut.sum(),
            "full layers get a part of the rest -> give it to those that are not full": cut + over / len(cut),
            "the rest is shared out equally -> in proportion to the shares": cut + over * free / free.sum(),
            "a layer became full on the way -> repeat it": cut + over * shares * free / (shares * free).sum(),
        }
        compare(f"limited({values}, {G})", call(student.limited, shares, G), torch.tensor(right), mistakes)


def topped_up(down, missing, key):
    """Whole shares, and one head more for the `missing` layers with the smallest keys."""
    first = sorted(range(len(down)), key=key.__getitem__)[:missing]
    return [n + (i in first) for i, n in enumerate(down)]


def check_the_sum_is_exact(student):
    """rounded gives whole numbers with exactly the sum of the shares, by the rule of its docstring."""
    ties = [1.5, 0.25, 0.75, 0.5]
    for values in ([0.1, 1.7, 0.55, 0.65], [0.6, 0.3, 4.1], [3.0, 1.0], [2.7, 1.6, 0.4, 0.3], ties):
        down, rounded = [int(x) for x in values], [round(x) for x in values]
        missing, rest = round(sum(values)) - sum(down), [n - x for n, x in zip(down, values)]  # -remainders
        higher = [(r, -i) for i, r in enumerate(rest)]
        mistakes = {
            "heads are missing -> give them to the largest remainders, after rounding down": down,
            "too many heads: each is rounded up -> round down first": [math.ceil(x) for x in values],
            "the sum is not the budget: each is rounded for itself -> use the largest remainders": rounded,
            "what is missing went to the first layers -> to the largest remainders": topped_up(down, missing, range(9)),
            "what is missing went to the largest shares -> to the largest remainders": topped_up(down, missing, [-x for x in values]),
            "of equal remainders the higher layer came first -> sort with stable=True": topped_up(down, missing, higher),
        }
        got = student.rounded(torch.tensor(values))
        whole = isinstance(got, list) and all(type(n) is int for n in got)
        require(whole, "this is no list of ints -> `.tolist()` of a tensor of whole numbers gives one")
        compare(f"rounded({values})", got, topped_up(down, missing, rest), mistakes)


def selected(student, scores, budget, tau):
    """{layer: [heads]}: the student's quota, and within a layer the highest scores."""
    quota = student.rounded(student.limited(student.layer_shares(scores, budget, tau), scores.shape[1]))
    require(max(quota) <= scores.shape[1], f"a layer of 4 heads gets {max(quota)} (budget {budget}, tau {tau})")
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    return {layer: sorted(ranked[layer, :n].tolist()) for layer, n in enumerate(quota) if n}


def check_in_the_real_model(student):
    """For the probe's scores of the real model the three together meet every budget, and select what the project selects."""
    scores = probe_scores()
    for tau in (0, 0.5, 1, 3):
        for budget in range(1, 25):
            given = sum(map(len, selected(student, scores, budget, tau).values()))
            require(given == budget, f"{given} heads for a budget of {budget} at tau {tau} -> a sum may be 6.9999995: round it")
        heads = selected(student, scores, 6, tau)
        compare(f"the selection of 6 heads at tau {tau}", heads, select_heads(scores, 6, tau))
    return f"the six heads at tau 3: {heads}"

"""What lesson 8 checks."""

import torch

from course.checks import compare, require, same
from course.real import scenes, tiny
from probe import head_scores, select_heads


def shares_follow_mass_and_tau(student):
    """layer_shares is in proportion to mass^tau and adds up to the budget."""
    for tau in (0.5, 1, 0):
        scores = torch.rand(5, 4) * torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5])[:, None]
        mass, best, budget = scores.sum(dim=1), scores.amax(dim=1), 7

        def shared(weight, budget=budget):
            return budget * weight / weight.sum()

        mistakes = {
            "these are in proportion to the mass -> to its power tau": shared(mass),
            "these shares add up to 1 -> multiply by the budget": shared(mass**tau, 1),
            "this is a softmax -> divide mass^tau by its sum": shared((tau * mass).exp()),
            "tau comes before the sum -> first a layer's mass, then its power": shared((scores**tau).sum(dim=1)),
            "they do not add up to the budget -> divide by the sum last": budget * (mass / mass.sum()) ** tau,
            "the mass of a layer is its best score -> it is the sum of its scores": shared(best**tau),
            "there is one for each head, not for each layer -> scores.sum(dim=1)": shared(scores.sum(dim=0) ** tau),
        }
        compare(f"layer_shares at tau {tau}", student.layer_shares(scores, budget, tau), shared(mass**tau), mistakes)


def fill(shares, G):
    """The right answer for `limited`."""
    shares, total = shares.double().clone(), shares.double().sum()
    while total - shares.clamp(max=G).sum() > 1e-9:
        over, full = total - shares.clamp(max=G).sum(), shares >= G - 1e-9
        shares = torch.where(full, G, shares + over * shares / shares[~full].sum())
    return shares.clamp(max=G).float()


def full_layers_pass_on(student):
    """limited gives at most G each, and loses nothing, also where passing on fills a second layer."""
    for values, G in (([6.0, 1.0, 0.7, 0.3], 4), ([9.0, 3.0, 1.0, 1.0], 5), ([7.0, 3.5, 1.0, 0.5], 4), ([1.0, 2.0], 4)):
        shares = torch.tensor(values)
        before, cut, free = shares.clone(), shares.clamp(max=G), shares < G
        over = (shares - cut).sum()
        once = cut + over * shares * free / (shares * free).sum()
        mistakes = {
            "a layer has more than its G heads -> cut it": shares,
            "what a full layer cannot take is lost -> give it to the others": cut,
            "full layers are over G again -> scale the others alone": cut * shares.sum() / cut.sum(),
            "full layers get a part of the rest -> give it to those that are not full": cut + over / len(cut),
            "the rest is shared out equally -> in proportion to the shares": cut + over * free / free.sum(),
            "a layer became full on the way -> it passes on, too; repeat until nothing is left over": once,
            "what does not fit the second time is lost -> repeat until nothing is left over": once.clamp(max=G),
        }
        got = student.limited(shares, G)
        require(same(shares, before), "the shares that came in were changed -> change a copy, .clone()")
        compare(f"limited({values}, {G})", got, fill(shares, G), mistakes)


def topped_up(down, missing, key):
    """Whole shares, and one head more for the `missing` layers with the smallest keys."""
    first = sorted(range(len(down)), key=key.__getitem__)[:missing]
    return [n + (i in first) for i, n in enumerate(down)]


def the_sum_is_exact(student):
    """rounded gives whole numbers with exactly the sum of the shares, by the rule of its docstring."""
    ties = [1.5, 0.25, 0.75, 0.5]
    for values in ([0.1, 1.7, 0.55, 0.65], [0.6, 0.3, 4.1], [3.0, 1.0], [2.7, 1.6, 0.4, 0.3], ties):
        down, shares = [int(x) for x in values], torch.tensor(values)
        missing, remainders = round(sum(values)) - sum(down), (torch.tensor(down) - shares).tolist()  # negative
        numbers = range(len(values))
        mistakes = {
            "heads are missing -> give them to the largest remainders, after rounding down": down,
            "the sum is not the budget: each is rounded for itself -> use the largest remainders": [round(x) for x in values],
            "there are more heads than the budget -> round down first": [int(-(-x // 1)) for x in values],
            "what is missing went to the first layers -> to the largest remainders": topped_up(down, missing, numbers),
            "what is missing went to the largest shares -> to the largest remainders": topped_up(down, missing, (-shares).tolist()),
            "of equal remainders the higher layer came first -> sort with stable=True": topped_up(
                down, missing, [(r, -i) for i, r in enumerate(remainders)]),
            "what is missing went to one layer -> give one head each": [
                n + missing * (i == remainders.index(min(remainders))) for i, n in enumerate(down)],
        }
        got = student.rounded(shares)
        whole = isinstance(got, list) and all(type(n) is int for n in got)
        require(whole, "this is no list of ints -> `.tolist()` of a tensor of whole numbers gives one")
        compare(f"rounded({values})", got, topped_up(down, missing, remainders), mistakes)


def selected(student, scores, budget, tau):
    """{layer: [heads]}: the student's quota, and within a layer the highest scores."""
    quota = student.rounded(student.limited(student.layer_shares(scores, budget, tau), scores.shape[1]))
    require(max(quota) <= scores.shape[1], f"a layer of 4 heads gets {max(quota)} (budget {budget}, tau {tau})")
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    return {layer: sorted(ranked[layer, :n].tolist()) for layer, n in enumerate(quota) if n}


def every_budget_is_met(student):
    """The three together meet every budget exactly, at every tau."""
    for tau in (0, 0.5, 1, 3):
        scores = torch.rand(6, 4) ** 4 + 1e-3
        for budget in range(1, 25):
            given = sum(map(len, selected(student, scores, budget, tau).values()))
            require(given == budget, f"{given} heads for a budget of {budget} at tau {tau} -> a sum may be 6.9999995: round it")


def in_the_real_model(student):
    """For the probe's scores of the real model your selection is the project's own."""
    vlm, processor = tiny()
    scores, words = head_scores(vlm, [processor([e]) for e in scenes(4)]), []
    for budget, tau in ((12, 0.5), (6, 0), (6, 0.5), (6, 1)):
        heads = selected(student, scores, budget, tau)
        compare(f"the selection of {budget} heads at tau {tau}", heads, select_heads(scores, budget, tau))
        words.append(f"tau {tau:g}: {[len(heads.get(layer, [])) for layer in range(6)]}")
    return f"six heads over the six layers: {', '.join(words[1:])}"


CHECKS = [shares_follow_mass_and_tau, full_layers_pass_on, the_sum_is_exact, every_budget_is_met, in_the_real_model]

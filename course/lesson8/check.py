"""What lesson 7 checks."""

import torch

from course.checks import Wrong, compare, frozen, mixed, require, scenes, tiny
from imagelora import ImageLoRA
from probe import head_scores, select_heads


def shares_follow_mass_and_tau(student):
    """layer_shares is budget * mass^tau / sum of mass^tau."""
    for tau in (0.5, 1, 0):
        scores = torch.rand(5, 4) * torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5])[:, None]
        mass, budget = scores.sum(dim=1), 7
        power, heads = mass**tau, (scores**tau).sum(dim=1)
        mistakes = [
            (budget * mass / mass.sum(), "tau is not used: the share goes with mass to the power of tau"),
            (power / power.sum(), "these shares add up to 1: multiply by the budget"),
            (budget * (tau * mass).softmax(0), "no softmax here: divide mass^tau by its sum"),
            (budget * heads / heads.sum(), "tau comes after the sum: first a layer's mass, then its power"),
            (budget * (mass / mass.sum()) ** tau, "after the power they no longer add up: divide by the sum last"),
            (
                budget * scores.amax(1) ** tau / (scores.amax(1) ** tau).sum(),
                "a layer's mass is the sum of its scores, not the best",
            ),
            (
                budget * scores.sum(0) ** tau / (scores.sum(0) ** tau).sum(),
                "summed over the layers: the mass of a layer is scores.sum(dim=1)",
            ),
            (budget * tau * mass / (tau * mass).sum(), "tau is an exponent, not a factor"),
        ]
        compare(
            f"layer_shares at tau {tau}",
            student.layer_shares(scores, budget, tau),
            budget * power / power.sum(),
            mistakes,
        )


def fill(shares, G):
    """The right answer for `limited`."""
    shares, total = shares.double().clone(), shares.double().sum()
    for _ in range(len(shares)):
        full = shares >= G - 1e-9
        over = total - shares.clamp(max=G).sum()
        if over < 1e-9:
            break
        shares = torch.where(full, torch.full_like(shares, G), shares)
        shares[~full] += over * shares[~full] / shares[~full].sum()
    return shares.clamp(max=G)


def full_layers_pass_on(student):
    """limited gives at most G each, and loses nothing, also where passing on fills a second layer."""
    for values, G in (
        ([6.0, 1.0, 0.7, 0.3], 4),
        ([9.0, 3.0, 1.0, 1.0], 5),
        ([7.0, 3.5, 1.0, 0.5], 4),
        ([1.0, 2.0, 3.0], 4),
    ):
        shares = torch.tensor(values)
        right, before = fill(shares, G).float(), shares.clone()
        cut = shares.clamp(max=G)
        over = shares.sum() - cut.sum()
        free = shares < G
        once = cut + over * (shares * free) / (shares * free).sum()
        mistakes = [
            (shares, "a layer has more than its G heads"),
            (cut, "what a full layer cannot take is lost: give it to the others"),
            (cut * shares.sum() / cut.sum(), "scaled up after cutting: full layers are over G again"),
            (cut + over / len(cut), "full layers get a part of the rest again: give it to those with room"),
            (cut + over * free / free.sum(), "the rest is shared out equally: give it in proportion to the shares"),
            (once, "passed on only once: a layer that becomes full on the way passes on, too; repeat"),
            (once.clamp(max=G), "passed on only once: what does not fit is lost; repeat until nothing is left over"),
        ]
        got = student.limited(shares, G)
        require(torch.equal(shares, before), "the shares that came in were changed: change a copy, .clone()")
        compare(f"limited({values}, {G})", got.float() if torch.is_tensor(got) else got, right, mistakes)


def the_sum_is_exact(student):
    """rounded gives whole numbers with exactly the sum, by the largest remainders; of equal ones the lower layer is first."""
    ties = [1.5, 0.25, 0.75, 0.5]
    for values in ([0.1, 1.7, 0.55, 0.65], [0.6, 0.3, 4.1], [3.0, 1.0], [2.7, 1.6, 0.4, 0.3], ties):
        shares = torch.tensor(values)
        down, total = [int(x) for x in values], round(sum(values))
        order = sorted(range(len(values)), key=lambda i: -(values[i] - down[i]))
        right = [n + (i in order[: total - sum(down)]) for i, n in enumerate(down)]
        first = [n + (i < total - sum(down)) for i, n in enumerate(down)]
        lump = [n + (total - sum(down)) * (i == order[0]) for i, n in enumerate(down)]
        by_share = sorted(range(len(values)), key=lambda i: -values[i])
        largest = [n + (i in by_share[: total - sum(down)]) for i, n in enumerate(down)]
        backwards = sorted(range(len(values)), key=lambda i: (down[i] - values[i], -i))
        higher = [n + (i in backwards[: total - sum(down)]) for i, n in enumerate(down)]
        mistakes = [
            (down, "rounded down only: heads are missing (a weak spot of the authors' script, too)"),
            (
                [round(x) for x in values],
                "each is rounded for itself: the sum is not the budget; use the largest remainders",
            ),
            ([int(-(-x // 1)) for x in values], "rounded up: these are more heads than the budget"),
            (first, "what is missing went to the first layers: it goes to the largest remainders"),
            (lump, "what is missing went to one layer: give one head each"),
            (largest, "what is missing went to the largest shares: it goes to the largest remainders"),
            (higher, "of equal remainders the lower layer comes first: sort with stable=True, the largest first"),
        ]
        got = student.rounded(shares)
        if torch.is_tensor(got) or any(torch.is_tensor(n) or not isinstance(n, int) for n in got or []):
            raise Wrong("rounded: return a list of ints; `.tolist()` of a tensor of whole numbers gives one")
        compare(f"rounded({values})", got, right, mistakes)


def selected(student, scores, budget, tau):
    """{layer: [heads]}: the student's quota, and within a layer the highest scores."""
    shares = student.limited(student.layer_shares(scores, budget, tau), scores.shape[1])
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    return {layer: sorted(ranked[layer, :n].tolist()) for layer, n in enumerate(student.rounded(shares)) if n}


def every_budget_is_met(student):
    """The three together meet every budget exactly, at every tau, and no layer gets more heads than it has."""
    for tau in (0, 0.5, 1, 3):
        scores = torch.rand(6, 4) ** 4 + 1e-3
        for budget in range(1, 25):
            heads = selected(student, scores, budget, tau)
            given = sum(len(hs) for hs in heads.values())
            words = "; shares.sum() may be 6.9999995: round it" if given == budget - 1 else ""
            require(given == budget, f"a budget of {budget} at tau {tau} gives {given} heads{words}")
            shares = student.limited(student.layer_shares(scores, budget, tau), 4)
            quota = student.rounded(shares)
            require(max(quota) <= 4, f"a layer of 4 heads gets {max(quota)} (budget {budget}, tau {tau})")


def in_the_real_model(student):
    """For the probe's scores of the real model your selection is the project's own, and the model runs with it."""
    vlm, processor = tiny()
    batches = [processor([e]) for e in scenes(4)]
    scores = head_scores(vlm, batches)
    for budget, tau in ((6, 0.5), (6, 0), (6, 1), (12, 0.5)):
        heads = selected(student, scores, budget, tau)
        compare(f"the selection of {budget} heads at tau {tau}", heads, select_heads(scores, budget, tau))
    adapter = ImageLoRA(vlm.config, heads).attach(vlm)
    try:
        for layer in adapter.layers.values():
            layer.B.data.normal_()
        after = frozen(mixed())
    finally:
        adapter.detach()
    require(torch.equal(after[1], frozen(mixed())[1]), "the row without an image changed")


CHECKS = [shares_follow_mass_and_tau, full_layers_pass_on, the_sum_is_exact, every_budget_is_met, in_the_real_model]

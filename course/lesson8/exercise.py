"""Lesson 8: the budget over the layers, and tau. L layers, G value heads of a layer."""

import torch  # noqa: F401 (for what you write)


def layer_shares(scores, budget, tau):
    """The share of each layer in the budget [L], in proportion to mass^tau, not yet rounded and not yet limited to G.

    scores [L, G], above 0; a layer's mass is the sum of its scores. The shares add up to the budget.
    """
    raise NotImplementedError


def limited(shares, G):
    """The shares [L] with at most G each. What a full layer cannot take goes to the others, in proportion to their shares,
    until nothing is left over; a rest below 1e-4 is rounding. The sum stays (shares.sum() is at most L * G; all above 0).
    """
    raise NotImplementedError


def rounded(shares):
    """Whole numbers, a list of L ints: round down, then give what is missing to those with the largest remainders, one
    head each. Of equal remainders the lower layer comes first.

    shares [L]: they add up to a whole number, up to rounding errors, and the ints must have exactly this sum.
    """
    raise NotImplementedError

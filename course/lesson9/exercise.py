"""Lesson 9: an experiment of your own."""

import math  # noqa: F401 (for what you write)

NUMBER = 0  # yours in the list of the class, from 0 on: your seeds are 3 * NUMBER and the two after it
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # degrees of freedom: t


def paired_interval(a, b):
    """The mean difference a - b and its 95 % confidence interval: (mean, low, high).

    a, b: accuracies, one for each seed, in the same order (3 to 10 of them). With n differences, their mean d and their
    standard deviation s (divided by n - 1 under the root): d -+ t * s / sqrt(n), with t for n - 1 degrees of freedom.
    """
    raise NotImplementedError


def verdict(low, high, margin):
    """What the interval says, the first of these that is true:

    "better": all of it is above 0 (so there is a difference, not one as large as the margin); "worse": all of it is below
    0; "equivalent": all of it is between -margin and margin; "undecided": anything else.
    """
    raise NotImplementedError


def my_experiment():
    """Your experiment as a dict:

    claim          one sentence: what against what, on which data, measured how
    margin         from which difference on it would matter, a share (0.02 is 2 points); decided before the runs
    measure        a name in the reports' tuned.by_kind, "scenes-fog grounding" say, or "accuracy"
    a, b           names of the two sides, "values" and "keys" say: their runs are exercises/values-SEED, exercises/keys-SEED
    changed        the flag in which a and b differ, "--ablate" say
    interval       [low, high] of a - b, shares
    verdict        one of the four words, for this interval and your margin
    did_not_show   one sentence: what these runs do not tell
    """
    raise NotImplementedError

"""Statistics, against tables and by hand; and the published comparisons, recomputed from the tables."""

import json

import pytest

from experiments import comparisons
from experiments.analyses import LORA, deciding
from experiments.comparisons import compare, difference, judged, t_quantile
from experiments.suites import PAIR
from experiments.tables import RESULTS

# -- Student's t, Holm, ranks


def test_student_t_of_tabulated_values():
    """One degree of freedom is Cauchy's, many are nearly normal."""
    assert comparisons.t_between(0.5, float("inf"), 10.037) == pytest.approx(0.3139272224, abs=1e-9)  # its angle is rounded up
    for df, quantile in ((1, 12.706205), (2, 4.302653), (4, 2.776445), (30, 2.042272), (1000, 1.962339)):
        assert t_quantile(0.975, df) == pytest.approx(quantile, abs=1e-5)


def test_holm_of_a_worked_example():
    """Four tests: the smallest p times 4, the next times 3, ...; never below the one before."""
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_rank_correlation_with_ties_and_overlap_of_selections():
    assert comparisons.spearman([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(0.8, abs=1e-12)
    by_hand = 3 / 10**0.5  # the ranks are 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert comparisons.spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(by_hand, abs=1e-12)
    assert comparisons.spearman([1, 1], [1, 2]) is None
    assert comparisons.jaccard({0: [1, 2], 3: [0]}, {0: [2], 1: [0]}) == pytest.approx(1 / 4, abs=1e-12)


# -- over seeds and scenes


def test_an_interval_holds_what_seeds_and_what_scenes_add():
    """Seeds 1, 2, 3 have variance 1 and squared error 1/3; scenes 1, 3 have variance 2 and squared error 1."""
    c = difference([1, 2, 3], [1, 3])
    squared = 1 / 3 + 1
    half = t_quantile(0.975, squared**2 / ((1 / 3) ** 2 / 2 + 1)) * squared**0.5  # Welch's degrees of freedom
    assert c["difference"] == 2 and c["interval"] == pytest.approx([2 - half, 2 + half])
    assert difference([2, 2], [1, 3])["interval"] == pytest.approx([2 - 12.706205, 2 + 12.706205], abs=1e-5)
    assert difference([1, 2, 3])["p"] == pytest.approx(1 - (12 / 14) ** 0.5)  # t = 12^0.5; in closed form for two degrees


def test_seeds_and_scenes_are_paired():
    """Both rows are 0.4 better with seed 1 than with seed 0, and on scene "b" than on "a": that cancels out."""
    theirs = [{"a": [0.1, 0.3], "b": [0.5]}, {"a": [0.5, 0.7], "b": [0.9]}]
    ours = [{scene: [score + 0.1 for score in scores] for scene, scores in seed.items()} for seed in theirs]
    c = compare("us", "them", "boxes", ours, theirs)
    assert c["seeds"] == pytest.approx([0.1, 0.1]) and c["scenes"] == 2 and c.get("error", 0) < 1e-9


# -- verdicts


@pytest.mark.parametrize(
    "low, high, p, says",
    [
        (0.001, 0.09, 0.04, "better"),
        (0.001, 0.09, 0.06, "undecided; not worse by more than 2 points"),  # not after Holm's correction
        (-0.019, 0.019, 1, "equivalent within 2 points"),
        (-0.03, 0.03, 1, "undecided"),
        (-0.03, -0.001, 0.04, "worse"),
        (-0.015, -0.001, 0.04, "worse; not worse by more than 2 points"),
        (-0.03, -0.021, 0.04, "worse by more than 2 points"),
    ],
)
def test_a_verdict_is_true_of_its_interval_and_its_corrected_p(low, high, p, says):
    assert comparisons.verdict(low, high, p) == says


def test_what_is_undecided_does_not_count_as_failing():
    """The review's test asks for random heads that are worse than LoRA, not for some that are not shown to be as good."""
    (probed, drawn), every = PAIR, []
    every.append({"row": probed, "against": LORA, "interval": [-0.01, 0.01], "p": 0.9})
    every.append({"row": drawn, "against": LORA, "interval": [-0.05, 0.001], "p": 0.06})
    every.append({"row": probed, "against": drawn, "interval": [0.02, 0.05], "p": 1e-4})
    assert deciding(judged(every)).endswith("shown for no budget.")
    every.append({"row": probed, "against": LORA, "interval": [-0.5, -0.4], "p": 1e-4})  # by day
    every[-3] |= {"interval": [-0.05, -0.03], "p": 1e-4}
    assert deciding(judged(every)).endswith("shown for 6 probed heads.")


# -- the published results


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_published_comparisons_follow_from_the_tables(file):
    result = json.loads(file.read_text())
    rows = {row: columns for _, table in reversed(result.get("tables", ())) for row, columns in table.items()}
    again = [dict(c) for c in result.get("comparisons", ())]
    for c in again:
        ours, theirs = (rows.get(c[name], {}).get(c["column"]) for name in ("row", "against"))
        if ours and theirs:
            assert c["seeds"] == pytest.approx([a - b for a, b in zip(ours, theirs)])
        assert c["difference"] == pytest.approx(sum(c["seeds"]) / len(c["seeds"]), abs=1e-12)
        half = t_quantile(0.975, c["df"]) * c["error"]
        assert c["interval"] == pytest.approx([c["difference"] - half, c["difference"] + half])
    assert judged(again) == result.get("comparisons", [])

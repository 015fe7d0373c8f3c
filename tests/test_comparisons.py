"""What is compared: statistics, the columns of the tables, and the sentences, from made-up reports."""

import json

import pytest

from experiments import analyses, suites, tables
from experiments.comparisons import (
    compared,
    jaccard,
    not_worse,
    paired,
    spearman,
    t_cdf,
    t_quantile,
    verdict,
)
from experiments.tables import RESULTS

# Statistics


def test_student_t_of_known_values():
    """Tables of the t distribution: one degree of freedom is Cauchy's, many are nearly normal."""
    assert t_cdf(1, 1) == pytest.approx(0.75, abs=1e-9)
    assert t_cdf(-1, 1) == pytest.approx(0.25, abs=1e-9)
    assert t_cdf(0, 7) == pytest.approx(0.5, abs=1e-9)
    for df, quantile in ((1, 12.706205), (2, 4.302653), (4, 2.776445), (30, 2.042272), (1000, 1.962339)):
        assert t_quantile(0.975, df) == pytest.approx(quantile, abs=1e-5)


def test_the_paired_t_test_equals_scipys():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    a, b = [0.71, 0.69, 0.74, 0.66, 0.7], [0.68, 0.7, 0.69, 0.65, 0.66]
    result = stats.ttest_rel(a, b)
    ours = paired(a, b)
    assert ours["p"] == pytest.approx(result.pvalue, rel=1e-6)
    assert ours["interval"] == pytest.approx(list(result.confidence_interval(0.95)), rel=1e-6)


def test_a_paired_comparison_worked_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 3.464 with 2 degrees of freedom."""
    result = paired([2, 4, 6], [1, 2, 3])
    assert result["difference"] == pytest.approx(2, abs=1e-12)
    assert result["interval"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], abs=1e-5)
    assert result["p"] == pytest.approx(0.0741799, abs=1e-6)
    assert paired([1], [0]) == {"difference": 1, "interval": None, "p": None}


@pytest.mark.parametrize(
    "low, high, says",
    [
        (0.001, 0.09, "better; not worse at a margin of 2 points"),
        (0.001, 0.019, "better; not worse at a margin of 2 points"),
        (-0.019, 0.019, "equivalent within 2 points; not worse at a margin of 2 points"),
        (-0.019, -0.001, "equivalent within 2 points; not worse at a margin of 2 points"),
        (-0.019, 0.03, "undecided; not worse at a margin of 2 points"),
        (-0.03, 0.03, "undecided at a margin of 2 points"),
        (-0.03, 0.001, "undecided at a margin of 2 points"),
        (-0.03, -0.001, "worse, undecided at a margin of 2 points"),
        (-0.03, -0.021, "worse by more than 2 points"),
    ],
)
def test_a_verdict_is_true_of_its_interval(low, high, says):
    assert verdict(low, high) == says
    middle, half = (low + high) / 2, (high - low) / 2
    error = half / t_quantile(0.975, 1)  # two seeds with this interval: their differences are middle +- error
    a = [middle + error, middle - error]
    assert not_worse(a, [0, 0]) == ("not worse" in says)
    assert compared("a", a, [0, 0]).endswith(
        f"[{100 * low:+.1f}, {100 * high:+.1f}], p = {paired(a, [0, 0])['p']:.3f}, {says}."
    )


def test_rank_correlation_with_ties_and_overlap_of_selections():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(0.8, abs=1e-12)
    by_hand = 3 / 10**0.5  # the ranks are 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(by_hand, abs=1e-12)
    assert spearman([1, 1], [1, 2]) is None
    assert jaccard({0: [1, 2], 3: [0]}, {0: [2], 1: [0]}) == pytest.approx(1 / 4, abs=1e-12)


# Columns and sentences, from made-up reports


def made_up(by_kind, accuracy=None, method="lora"):
    """A report with these accuracies, as far as tables and sentences read it."""
    when, other = ("base", "tuned") if method == "none" else ("tuned", "base")
    return {
        "method": method,
        when: {"accuracy": accuracy, "by_kind": by_kind},
        other: {"accuracy": None, "by_kind": {}},
    }


def test_boxes_and_words_are_those_of_the_runs_own_look():
    mixed = {"scenes-fog grounding": 0.5, "scenes-fog attribute": 0.7, "scenes-day grounding": 0.9, "sums text": 1.0}
    report = made_up(mixed, 0.6)
    columns = ("boxes", "words", "accuracy", "boxes by day", "words by day", "text")
    assert [tables.values([report], column) for column in columns] == [[0.5], [0.7], [None], [0.9], [None], [1.0]]
    assert tables.accuracy(report) == 0.5
    assert tables.accuracy(made_up({"scenes-noise attribute": 0.4, "scenes-noise grounding": 0.3}, 0.35)) == 0.3
    assert tables.accuracy(made_up(mixed, 0.6, method="none")) == 0.5

    # Without boxes, the accuracy of everything counts; a column of its own has it if there are no words either.
    prior, others = made_up({"scenes-prior attribute": 0.2}, 0.2), made_up({"textvqa": 0.1}, 0.1)
    assert tables.accuracies({"a": [prior, others]}) == {"a": [0.2, 0.1]}
    assert tables.values([prior, others], "accuracy") == [None, 0.1]


def boxes(*accuracies):
    return [made_up({"scenes-fog grounding": accuracy}) for accuracy in accuracies]


def test_the_reviews_test_names_the_budgets_at_which_the_probe_decides():
    reports = {
        "base": boxes(0.1),
        "LoRA q,k,v,o": boxes(0.80, 0.81),
        "Image-LoRA, 12 probed heads": boxes(0.80, 0.811),
        "Image-LoRA, 12 random heads": boxes(0.80, 0.811),
        "Image-LoRA, 6 probed heads": boxes(0.80, 0.811),
        "Image-LoRA, 6 random heads": boxes(0.70, 0.711),
        "Image-LoRA, 3 probed heads": boxes(0.70, 0.711),
        "Image-LoRA, 3 random heads": boxes(0.60, 0.611),
    }
    (said,) = analyses.where_probing_decides(reports)
    assert "do probed heads come close to LoRA (not worse at a margin of 2 points)" in said
    assert said.endswith("At 6 heads (12 heads: both; 6 heads: probed alone; 3 heads: neither).")
    reports["Image-LoRA, 6 random heads"] = boxes(0.80, 0.811)
    assert "At none (12 heads: both; 6 heads: both;" in analyses.where_probing_decides(reports)[0]
    assert analyses.where_probing_decides({row: found[:1] for row, found in reports.items()}) == []


def test_a_row_is_compared_with_the_lora_that_saw_the_same_data():
    reports = {"LoRA q,k,v,o": boxes(0.8), "Image-LoRA, all heads": boxes(0.7)}
    reports |= {f"LoRA q,k,v,o, {suites.ALONE}": boxes(0.4), f"Image-LoRA, all heads, {suites.ALONE}": boxes(0.35)}
    alone = f"LoRA q,k,v,o, {suites.ALONE}"
    assert analyses.compare_with_lora(reports) == [
        "Image-LoRA, all heads, against LoRA q,k,v,o: -10.0 points.",
        f"Image-LoRA, all heads, {suites.ALONE}, against {alone}: -5.0 points.",
    ]
    assert analyses.compare_by_day(reports) == []  # nothing was measured by day


def test_in_the_look_with_new_words_it_is_words_that_count():
    def pair(look, key):
        return {
            f"{look}, LoRA": [made_up({"x grounding": 0.5, key: 0.9})],
            f"{look}, Image-LoRA": [made_up({"x grounding": 0.4, key: 0.1})],
        }

    said = analyses.compare_pairs(pair("fog", "x attribute") | pair(suites.NEW_WORDS, "x attribute"))
    assert said == ["fog, Image-LoRA against LoRA: -10.0 points.", "new words, Image-LoRA against LoRA: -80.0 points."]


KINDS = {"boxes": "x grounding", "words": "x attribute"}
KINDS |= {"boxes by day": "scenes-day grounding", "words by day": "scenes-day attribute"}


def reports_of(row):
    """The columns of a row, as reports that have them."""
    reports = []
    for i in range(len(row["boxes"])):
        by_kind = {kind: row[column][i] for column, kind in KINDS.items() if row[column][i] is not None}
        everything = row["accuracy"][i] if row["accuracy"][i] is not None else row["words"][i]
        reports.append(made_up(by_kind, everything))
    return reports


@pytest.mark.parametrize(
    "suite, compare",
    [
        ("main", lambda reports: analyses.main(reports)[1]),
        ("ratio", analyses.compare_pairs),
        ("bottleneck", analyses.compare_with_lora),
        ("looks", analyses.compare_pairs),
    ],
)
def test_the_comparisons_of_the_results_follow_from_their_accuracies(suite, compare):
    if not (RESULTS / f"{suite}.json").exists():
        pytest.skip(f"the suite {suite} is not measured yet")
    result = json.loads((RESULTS / f"{suite}.json").read_text())
    (_, rows), *_ = result["tables"]
    assert compare({name: reports_of(row) for name, row in rows.items()}) == result["sentences"]

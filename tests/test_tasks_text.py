"""Answers in words, letters and numbers: every metric on the cases of answers.json, with their traps."""

import itertools
import json
import random
import time

import pytest
from conftest import ROOT

from parts.tasks import boxes, gsm8k, metrics, nextqa, score, textvqa, vilp

CASES = json.loads((ROOT / "tests/answers.json").read_text(encoding="utf-8"))  # what is read from a text
READ = {"box": boxes.parse_box, "point": boxes.parse_point, "choice": nextqa.parse, "number": gsm8k.parse}
READ |= {"textvqa": textvqa.normalize}


@pytest.mark.parametrize("kind", READ)
def test_an_answer_is_read_as_the_official_evaluator_does(kind):
    assert [[text, READ[kind](text)] for text, _ in CASES[kind]] == CASES[kind]


NOTHING = ["", " \n", "????", "[", "[]()", "####", "-", ".", "Ω", "[1, 2" * 99, "9" * 400, f"[0, 0, {'1' * 400}, 1]"]


@pytest.mark.parametrize("metric", metrics())
def test_no_text_breaks_a_metric_and_what_is_not_read_scores_zero(metric):
    reference = (1, 2, 3, 4) if metric in ("iou", "point") else ["yes"] * 10 if metric == "vqa" else "7"
    for text in [*NOTHING, "I cannot tell."]:
        result = score(metric, text, reference, (100, 100), (100, 100))
        assert result["score"] == 0 and result["failed"] == (result["parsed"] is None)
    assert result["failed"] == (metric in ("iou", "point", "choice", "number"))


@pytest.mark.parametrize("metric", CASES["right or wrong"])
def test_what_counts_as_right(metric):
    """A box from an IoU of one half, a point up to the edges; exact: but for white space at the ends; number: by value."""
    for text, reference, expected in CASES["right or wrong"][metric]:
        result = score(metric, text, reference, (100, 100), (100, 100))
        assert (result["score"], result["failed"]) == (expected, False), text


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_textvqa_scores_the_mean_over_all_sets_of_nine_answers(matches, expected):
    answers = ["Stop"] * matches + [f"other {i}" for i in range(10 - matches)]
    sets = list(itertools.combinations(answers, 9))
    brute_force = sum(min(1, nine.count("Stop") / 3) for nine in sets) / len(sets)
    random.Random(matches).shuffle(answers)
    assert score("vqa", "the stop.", answers)["score"] == pytest.approx(brute_force) == pytest.approx(expected)


def test_the_official_tables_are_complete():
    assert len(textvqa.SPELLINGS) == 114 and [len(table) for table in vilp.TABLES] == [21, 115, 90]
    words = {"its", "well", "were", "id", "ill", "wed", "shell", "shed", "hell", "lets", "im", "ive"}  # other words
    assert not words & textvqa.SPELLINGS.keys()
    assert all(word == word.lower().strip() != one for table in vilp.TABLES for word, one in table.items())


def test_a_number_is_read_in_time_linear_in_the_text():
    """20,000 times "$" took half a minute: the marks of currency were counted again from each of them."""
    start = time.process_time()
    for piece in ("$", "\\", "-", "####", "#### ", ",", "1,", "1,111", "9", ".", "1.", "-$", "#### x"):
        gsm8k.parse(piece * 20_000)
    assert time.process_time() - start < 5


def test_every_real_gsm8k_solution_is_right_against_itself_with_and_without_its_marks(shared):
    for line in (shared / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines():
        solution = json.loads(line)["answer"]
        for text in (solution, solution.replace("####", "The answer is $") + ".00 dollars."):
            assert score("number", text, solution)["score"] == 1, text

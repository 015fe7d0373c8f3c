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


def value(metric, text, reference):
    return score(metric, text, reference)["score"]


@pytest.mark.parametrize("kind", READ)
def test_an_answer_is_read_as_the_official_evaluator_does(kind):
    assert [[text, READ[kind](text)] for text, _ in CASES[kind]] == CASES[kind]


@pytest.mark.parametrize("metric", metrics())
def test_no_text_breaks_a_metric_and_what_is_not_read_scores_zero(metric):
    reference = (1, 2, 3, 4) if metric in ("iou", "point") else ["yes"] * 10 if metric == "vqa" else "7"
    for text in ("", " \n", "????", "[", "[]()", "####", "-", ".", "Ω", "[1, 2" * 99, "9" * 400, f"[0, 0, {'1' * 400}, 1]"):
        result = score(metric, text, reference, (100, 100), (100, 100))
        assert result["score"] == 0 and result["failed"] == (result["parsed"] is None)
    failed = score(metric, "I cannot tell.", reference, (100, 100), (100, 100))["failed"]
    assert failed == (metric in ("iou", "point", "choice", "number"))


def test_exact_ignores_white_space_at_the_ends_and_nothing_else():
    assert [value("exact", text, "red") for text in (" red\n", "Red", "dark red", "red.")] == [1, 0, 0, 0]


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_textvqa_scores_the_mean_over_all_sets_of_nine_answers(matches, expected):
    answers = ["Stop"] * matches + [f"other {i}" for i in range(10 - matches)]
    sets = list(itertools.combinations(range(10), 9))
    brute_force = sum(min(1, sum(answers[i] == "Stop" for i in nine) / 3) for nine in sets) / len(sets)
    random.Random(matches).shuffle(answers)
    assert value("vqa", "the stop.", answers) == pytest.approx(brute_force) == pytest.approx(expected)


def test_the_official_tables_are_complete():
    assert len(textvqa.SPELLINGS) == 114 and [len(table) for table in vilp.TABLES] == [21, 115, 90]
    words = {"its", "well", "were", "id", "ill", "wed", "shell", "shed", "hell", "lets", "im", "ive"}  # other words
    assert not words & textvqa.SPELLINGS.keys()
    assert all(word == word.lower().strip() != one for table in vilp.TABLES for word, one in table.items())


def test_vilp_takes_numbers_synonyms_and_plurals_for_the_same_word_and_nothing_else():
    for text, reference in CASES["vilp, the same word"]:
        assert value("word", text, reference) == value("word", reference, text.replace(".", "")) == 1, text
    assert {value("word", *pair) for pair in CASES["vilp, another word"]} == {0}


def test_a_letter_is_right_if_it_is_the_reference():
    assert [value("choice", "The answer is (B).", letter) for letter in "AB"] == [0, 1]


def test_a_number_is_read_in_time_linear_in_the_text():
    """20,000 times "$" took half a minute: the marks of currency were counted again from each of them."""
    start = time.process_time()
    for piece in ("$", "\\", "-", "####", "#### ", ",", "1,", "1,111", "9", ".", "1.", "-$", "#### x"):
        gsm8k.parse(piece * 20_000)
    assert time.process_time() - start < 5


def test_numbers_are_compared_by_value_against_a_solution_or_its_answer():
    solution = "She sells 9 * 2 = $<<9*2=18>>18.\n#### 18"
    right = [("18.00", solution), ("18", "18"), ("$18", "18.0"), ("1,080", "1080"), ("1080", "#### 1,080"), ("0.1", "0.10")]
    assert all(value("number", *pair) == 1 for pair in right)
    wrong = [("9", solution), ("180", solution), ("-18", solution), ("0.1", "0.11")]
    wrong += [("12345678901234567890.1", "12345678901234567890.2")]  # equal as floats
    assert not any(value("number", *pair) for pair in wrong)


def test_every_real_gsm8k_solution_is_right_against_itself_with_and_without_its_marks(shared):
    for line in (shared / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines():
        solution = json.loads(line)["answer"]
        for text in (solution, solution.replace("####", "The answer is $") + ".00 dollars."):
            assert value("number", text, solution) == 1, text

"""Answers in words, letters and numbers: every metric on hand-made cases with their traps."""

import itertools
import json
import random
import time

import pytest
from conftest import SHARED

from parts.tasks import gsm8k, metrics, nextqa, score, textvqa, vilp

SIZE = (100, 100)  # of an image that the model sees as it is


def value(metric, text, reference):
    return score(metric, text, reference)["score"]


# -- every metric


def test_an_unknown_metric_is_a_value_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'bleu'.*exact, iou, point"):
        score("bleu", "a", "b")


@pytest.mark.parametrize("metric", metrics())
@pytest.mark.parametrize("text", ["", " \n", "????", "[", "[]()", "####", "-", ".", "Ω", "[1, 2" * 99, "9" * 400])
def test_no_text_breaks_a_metric_and_what_is_not_read_scores_zero(metric, text):
    reference = {"iou": (1, 2, 3, 4), "point": (1, 2, 3, 4), "vqa": ["yes"] * 10}.get(metric, "7")
    result = score(metric, text, reference, SIZE, SIZE)
    assert result["score"] == 0 and result["failed"] == (result["parsed"] is None)


@pytest.mark.parametrize("metric", ["iou", "point", "choice", "number"])
def test_text_that_holds_no_answer_has_failed(metric):
    reference = (1, 2, 3, 4) if metric in ("iou", "point") else "B"
    assert score(metric, "I cannot tell.", reference, SIZE, SIZE) == {"parsed": None, "score": 0, "failed": True}


@pytest.mark.parametrize("metric", ["exact", "vqa", "word"])
def test_an_empty_answer_in_words_is_wrong_but_has_not_failed(metric):
    reference = ["yes"] * 10 if metric == "vqa" else "yes"
    assert score(metric, " ", reference) == {"parsed": "", "score": 0, "failed": False}


def test_exact_ignores_white_space_at_the_ends_and_nothing_else():
    assert score("exact", " red\n", "red") == {"parsed": "red", "score": 1, "failed": False}
    assert value("exact", "Red", "red") == value("exact", "dark red", "red") == value("exact", "red.", "red") == 0


# -- TextVQA


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The  Coca-Cola", "coca cola"),  # an article; a hyphen between letters separates them
        ("Coca -Cola", "coca cola"),  # beside a space it vanishes
        ("t - shirt-x", "t shirtx"),  # and then everywhere
        ("a man\nand\tan owl", "man and owl"),
        ("two dogs, ten cats", "2 dogs 10 cats"),
        ("eleven", "eleven"),
        ("None", "0"),
        ("zero", "0"),
        ("$3.50", "$3.50"),
        ("1,000.", "1000"),
        ("5. avenue", "5 avenue"),
        ("p.m.", "pm"),
        ("no .5 left", "no .5 left"),
        ("v.2", "v.2"),  # only what follows the period counts
        ("stop!", "stop"),
        ("(stop)", "stop"),
        ("10:30", "10:30"),  # a colon is not on the official list
        ("what?", "what"),
        ("dont", "don't"),
        ("DIDNT", "didn't"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("couldntve", "couldntve"),
        ("twas six oclock", "'twas 6 o'clock"),
        ("joe's", "joe 's"),
        ("that's thats", "that 's that's"),
        ("its well were id lets im", "its well were id lets im"),  # other words, or never reached
        ("the", ""),
        ("", ""),
    ],
)
def test_an_answer_is_normalised_as_textvqas_evaluator_does(text, answer):
    assert textvqa.normalize(text) == answer


def test_every_contraction_has_lost_one_apostrophe_and_none_is_an_english_word():
    spellings = {short: word for short, word in textvqa.SPELLINGS.items() if short != "somebody'd"}
    assert len(spellings) == 113
    for short, word in spellings.items():
        assert len(short) == len(word) - 1 and short.replace("'", "") == word.replace("'", "")
    assert not {"its", "well", "were", "id", "ill", "wed", "shell", "shed", "hell", "lets", "im", "ive"} & set(
        spellings
    )


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_textvqa_scores_the_mean_over_all_sets_of_nine_answers(matches, expected):
    answers = ["Stop"] * matches + [f"other {i}" for i in range(10 - matches)]
    sets = list(itertools.combinations(range(10), 9))
    brute_force = sum(min(1, sum(answers[i] == "Stop" for i in nine) / 3) for nine in sets) / len(sets)
    for _ in range(3):
        random.Random(matches).shuffle(answers)
        assert value("vqa", "the stop.", answers) == pytest.approx(brute_force) == pytest.approx(expected)


def test_the_human_answers_are_normalised_too():
    assert value("vqa", "2", ["Two", "two.", "2", "the two"] + ["no"] * 6) == 1
    assert value("vqa", "", ["the"] * 10) == 1  # by the rule: both are nothing


# -- multiple choice


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" b.\n", "B"),
        ("a", "A"),
        ("(b)", "B"),
        ("B. a red cup", "B"),
        ("(C) because it is red", "C"),
        ("**D**", "D"),
        ("A: the dog", "A"),
        ("A\nthe dog is red", "A"),
        ("A is right", "A"),
        ("E because of the cup", "E"),
        ("The answer is (B).", "B"),
        ("Answer: B", "B"),
        ("**Answer:** (C) a dog", "C"),
        ("answer is option D", "D"),
        ("A man holds it. The answer is C.", "C"),
        ("A dog. So: B", "B"),
        ("Option A shows a dog, so the answer is B.", "B"),
        ("Picture E is wrong, (C) is right", "C"),
        ("Vitamin-A and C++ and D's: option B", "B"),
        ("The best option is B", "B"),
        ("I would say B", "B"),
        ("A dog", None),
        ("The answer is A dog", None),
        ("a dog", None),
        ("Because", None),
        ("Dog", None),
        ("F", None),
        ("none of them", None),
    ],
)
def test_the_chosen_letter_is_read_and_an_article_is_none(text, letter):
    assert nextqa.parse(text) == letter
    assert score("choice", text, letter or "A")["score"] == (letter is not None)
    assert value("choice", text, "E" if letter != "E" else "A") == 0


# -- ViLP


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("dog", " Dog "),
        ("Bees.", "bee"),
        ("four", "4"),
        ("20", "Twenty"),
        ("Alligator", "crocodile"),
        ("U.S.A.", "usa"),  # all periods of a prediction go
        ("USA", "United States"),
        ("New York", "NYC"),
        ("sphere", "Circle"),
        ("striped", "stripe"),  # a synonym, then its plural
        ("candy", "Lollipops"),
        ("leaves", "leaf"),
        ("T-Rex", "dinosaur"),
        ("CO₂", "carbon dioxide"),
        ("aircondition", "airconditioner"),
    ],
)
def test_vilp_takes_numbers_synonyms_and_plurals_for_the_same_word(text, reference):
    assert value("word", text, reference) == value("word", reference, text.replace(".", "")) == 1


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("cat", "dog"),
        ("a dog", "dog"),
        ("none", "none"),
        ("None.", "None"),
        ("twenty-one", "21"),
        ("bushes", "bee"),
        ("co2", "carbon dioxide"),  # official: one look-up each, so the two miss each other
        ("America", "USA"),  # official: listed with a capital, which nothing in lower case meets
        ("airconditioner", "AC"),  # likewise
    ],
)
def test_vilp_takes_nothing_else_for_the_same_word_and_none_is_never_right(text, reference):
    assert value("word", text, reference) == 0


def test_vilps_tables_hold_every_official_entry_that_can_match():
    numbers, synonyms, plurals = vilp.TABLES
    assert (len(numbers), len(synonyms), len(plurals)) == (21, 115, 90)
    assert all(word == word.lower().strip() != one for table in vilp.TABLES for word, one in table.items())
    assert vilp.normalize("Square") == "cube" and vilp.normalize("polka-dots") == "spots"


# -- GSM8K


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"),
        ("16 - 3 - 4 = 9, and 9 * 2 = 18.", "18"),
        ("She makes **$18.00** every day.", "18"),
        ("1,000", "1000"),
        ("$1,234,567.50 in all", "1234567.5"),
        ("1, 2, 3", "3"),
        ("50%", "50"),
        ("It takes 2.50 hours.", "2.5"),
        ("half is .5", "0.5"),
        ("-7", "-7"),
        ("a loss of -$7.10", "-7.1"),
        ("a loss of $-7", "-7"),
        ("−7", "-7"),
        ("-0.0", "0"),
        ("007", "7"),
        ("3-4=-1", "-1"),
        ("3-4", "4"),  # a subtraction
        ("(8)-4", "4"),
        ("20%-5", "5"),
        ("pages 3-4", "4"),
        ("covid-19", "19"),
        ("an area of 20 m2", "20"),
        ("20 cm^2", "20"),
        ("5kg", "5"),
        (r"\boxed{18}", "18"),
        ("答案是18元", "18"),
        ("We have 3.\n#### 18\nNote 5", "18"),
        ("#### 3\nNo.\n#### $1,080.00 for 2 days", "1080"),
        ("#### -10", "-10"),
        ("18\n####", "18"),  # the marks without a number say nothing
        ("#### 18 ####", "18"),
        ("18 ####", "18"),
        ("####18####", "18"),
        ("#### **18**", "18"),
        ("####\n$18", "18"),
        ("#### Step 1\n5 + 4 = 9\n#### Step 2\n9 * 2 = 18", "18"),
        ("#### 1. Eggs\n5 + 4 = 9\n#### 2. Money\n9 * 2 = 18", "18"),
        ("#### 18\n#### Note\nThere were 5.", "18"),
        ("#### 18. ", "18"),
        ("#### m2 of 7", "7"),
        ("no number", None),
        ("#### none", None),
    ],
)
def test_the_number_after_the_marks_or_else_the_last_one_is_the_answer(text, number):
    assert gsm8k.parse(text) == number
    assert score("number", text, number or "1")["score"] == (number is not None)


@pytest.mark.parametrize("piece", ["$", "\\", "-", "####", "#### ", ",", "1,", "1,111", "9", ".", "1.", "-$", "#### x"])
def test_a_number_is_read_in_time_linear_in_the_text(piece):
    """20,000 times "$" took half a minute: the marks of currency were counted again from each of them."""
    start = time.process_time()
    gsm8k.parse(piece * 20_000)
    assert time.process_time() - start < 2


def test_the_prompt_of_gsm8k_asks_for_the_number_after_the_marks():
    assert gsm8k.PROMPT.endswith('write the final number after "####" at the end.')


def test_numbers_are_compared_by_value_against_a_solution_or_its_answer():
    solution = "She sells 9 * 2 = $<<9*2=18>>18.\n#### 18"
    assert value("number", "18.00", solution) == value("number", "18", "18") == value("number", "$18", "18.0") == 1
    assert value("number", "1,080", "1080") == value("number", "1080", "#### 1,080") == 1
    assert value("number", "9", solution) == value("number", "180", solution) == value("number", "-18", solution) == 0
    assert value("number", "0.1", "0.10") == 1 and value("number", "0.1", "0.11") == 0
    assert value("number", "12345678901234567890.1", "12345678901234567890.2") == 0  # equal as floats


def test_the_answer_of_a_gsm8k_solution_comes_after_its_last_marks():
    assert gsm8k.answer_of("2 + 2 = 4\n#### 1,450,000 ") == "1450000"
    assert gsm8k.answer_of("#### 1\n#### $-10") == "-10"
    assert gsm8k.answer_of(" 70000") == "70000"


def test_every_gsm8k_solution_is_right_against_itself_with_and_without_its_marks():
    file = SHARED / "gsm8k/test.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    for line in file.read_text(encoding="utf-8").splitlines():
        solution = json.loads(line)["answer"]
        for text in (solution, solution.replace("####", "The answer is $") + ".00 dollars."):
            assert value("number", text, solution) == 1, text

"""Answers in words, letters and numbers: every metric on hand-made cases with their traps."""

import itertools
import json
import random
import time

import pytest

from parts.tasks import gsm8k, metrics, nextqa, score, textvqa, vilp

BOXES = ("iou", "point")


def value(metric, text, reference):
    return score(metric, text, reference)["score"]



@pytest.mark.parametrize("metric", metrics())
@pytest.mark.parametrize("text", ["", " \n", "????", "[", "[]()", "####", "-", ".", "Ω", "[1, 2" * 99, "9" * 400])
def test_no_text_breaks_a_metric_and_what_is_not_read_scores_zero(metric, text):
    reference = (1, 2, 3, 4) if metric in BOXES else ["yes"] * 10 if metric == "vqa" else "7"
    result = score(metric, text, reference, (100, 100), (100, 100))
    assert result["score"] == 0 and result["failed"] == (result["parsed"] is None)


def test_text_that_holds_no_answer_has_failed_unless_words_are_asked_for():
    for metric, reference in (("iou", (1, 2, 3, 4)), ("point", (1, 2, 3, 4)), ("choice", "B"), ("number", "7")):
        result = score(metric, "I cannot tell.", reference, (100, 100), (100, 100))
        assert result == {"parsed": None, "score": 0, "failed": True}
    for metric, reference in (("exact", "yes"), ("vqa", ["yes"] * 10), ("word", "yes")):
        assert score(metric, " ", reference) == {"parsed": "", "score": 0, "failed": False}


def test_exact_ignores_white_space_at_the_ends_and_nothing_else():
    assert [value("exact", text, "red") for text in (" red\n", "Red", "dark red", "red.")] == [1, 0, 0, 0]


NORMALISED = {
    "The  Coca-Cola": "coca cola",  # an article; a hyphen between letters separates them
    "Coca -Cola": "coca cola",  # beside a space it vanishes
    "t - shirt-x": "t shirtx",  # and then everywhere
    "a man\nand\tan owl": "man and owl",
    "two dogs, ten cats": "2 dogs 10 cats", "eleven": "eleven", "None": "0", "zero": "0",
    "$3.50": "$3.50", "1,000.": "1000", "5. avenue": "5 avenue", "p.m.": "pm", "no .5 left": "no .5 left",
    "v.2": "v.2",  # only what follows the period counts
    "stop!": "stop", "(stop)": "stop", "what?": "what",
    "10:30": "10:30",  # a colon is not on the official list
    "dont": "don't", "DIDNT": "didn't", "couldntve": "couldntve",
    "couldnt've couldn'tve": "couldn't've couldn't've",
    "twas six oclock": "'twas 6 o'clock", "joe's": "joe 's", "that's thats": "that 's that's",
    "its well were id lets im": "its well were id lets im",  # other words, or never reached
    "the": "", "": "",
}  # fmt: skip


@pytest.mark.parametrize("text", NORMALISED)
def test_an_answer_is_normalised_as_textvqas_evaluator_does(text):
    assert textvqa.normalize(text) == NORMALISED[text]


def test_every_contraction_has_lost_one_apostrophe_and_none_is_an_english_word():
    spellings = {short: word for short, word in textvqa.SPELLINGS.items() if short != "somebody'd"}
    assert len(spellings) == 113
    for short, word in spellings.items():
        assert len(short) == len(word) - 1 and short.replace("'", "") == word.replace("'", "")
    words = {"its", "well", "were", "id", "ill", "wed", "shell", "shed", "hell", "lets", "im", "ive"}
    assert not words & spellings.keys()


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_textvqa_scores_the_mean_over_all_sets_of_nine_answers(matches, expected):
    answers = ["Stop"] * matches + [f"other {i}" for i in range(10 - matches)]
    sets = list(itertools.combinations(range(10), 9))
    brute_force = sum(min(1, sum(answers[i] == "Stop" for i in nine) / 3) for nine in sets) / len(sets)
    random.Random(matches).shuffle(answers)
    assert value("vqa", "2", ["Two", "two.", "2", "the two"] + ["no"] * 6) == 1  # people's answers are normalised too
    assert value("vqa", "the stop.", answers) == pytest.approx(brute_force) == pytest.approx(expected)


LETTERS = {
    "A": ["a", "A: the dog", "A\nthe dog is red", "A is right"],
    "B": ["B", " b.\n", "(b)", "B. a red cup", "The answer is (B).", "Answer: B", "A dog. So: B", "The best option is B"],
    "C": ["(C) because it is red", "**Answer:** (C) a dog", "A man holds it. The answer is C.", "Picture E is wrong, (C) is right"],
    "D": ["**D**", "answer is option D"],
    "E": ["E because of the cup"],
    None: ["A dog", "The answer is A dog", "a dog", "Because", "Dog", "F", "none of them"],
}
LETTERS["B"] += ["Option A shows a dog, so the answer is B.", "Vitamin-A and C++ and D's: option B", "I would say B"]


@pytest.mark.parametrize("letter", LETTERS)
def test_the_chosen_letter_is_read_and_an_article_is_none(letter):
    for text in LETTERS[letter]:
        assert nextqa.parse(text) == letter, text
        assert value("choice", text, letter or "A") == (letter is not None)
        assert value("choice", text, "E" if letter != "E" else "A") == 0


SAME = [("dog", " Dog "), ("Bees.", "bee"), ("four", "4"), ("20", "Twenty"), ("Alligator", "crocodile"), ("leaves", "leaf")]
SAME += [("U.S.A.", "usa"), ("USA", "United States"), ("New York", "NYC"), ("sphere", "Circle"), ("striped", "stripe")]
SAME += [("candy", "Lollipops"), ("T-Rex", "dinosaur"), ("CO₂", "carbon dioxide"), ("aircondition", "airconditioner")]
OTHER = [("cat", "dog"), ("a dog", "dog"), ("none", "none"), ("None.", "None"), ("twenty-one", "21"), ("bushes", "bee")]
OTHER += [("co2", "carbon dioxide")]  # official: one look-up each, so the two miss each other
OTHER += [("America", "USA"), ("airconditioner", "AC")]  # official: listed with capitals, which small letters never meet


def test_vilp_takes_numbers_synonyms_and_plurals_for_the_same_word_and_nothing_else():
    for text, reference in SAME:
        assert value("word", text, reference) == value("word", reference, text.replace(".", "")) == 1, text
    for text, reference in OTHER:
        assert value("word", text, reference) == 0, text


def test_vilps_tables_hold_every_official_entry_that_can_match():
    assert [len(table) for table in vilp.TABLES] == [21, 115, 90]
    assert all(word == word.lower().strip() != one for table in vilp.TABLES for word, one in table.items())
    assert vilp.normalize("Square") == "cube" and vilp.normalize("polka-dots") == "spots"


NUMBERS = {
    "18": "18", "16 - 3 - 4 = 9, and 9 * 2 = 18.": "18", "She makes **$18.00** every day.": "18", "1,000": "1000",
    "$1,234,567.50 in all": "1234567.5", "1, 2, 3": "3", "50%": "50", "It takes 2.50 hours.": "2.5", "half is .5": "0.5",
    "-7": "-7", "a loss of -$7.10": "-7.1", "a loss of $-7": "-7", "−7": "-7", "-0.0": "0", "007": "7", "3-4=-1": "-1",
    "3-4": "4",  # a subtraction
    "(8)-4": "4", "20%-5": "5", "pages 3-4": "4", "covid-19": "19", "an area of 20 m2": "20", "20 cm^2": "20", "5kg": "5",
    r"\boxed{18}": "18", "答案是18元": "18", "We have 3.\n#### 18\nNote 5": "18", "#### -10": "-10",
    "#### 3\nNo.\n#### $1,080.00 for 2 days": "1080",
    "18\n####": "18",  # the marks without a number say nothing
    "#### 18 ####": "18", "18 ####": "18", "####18####": "18", "#### **18**": "18", "####\n$18": "18", "#### 18. ": "18",
    "#### Step 1\n5 + 4 = 9\n#### Step 2\n9 * 2 = 18": "18", "#### 1. Eggs\n5 + 4 = 9\n#### 2. Money\n9 * 2 = 18": "18",
    "#### 18\n#### Note\nThere were 5.": "18", "#### m2 of 7": "7", "no number": None, "#### none": None,
}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_the_number_after_the_marks_or_else_the_last_one_is_the_answer(text):
    assert gsm8k.parse(text) == NUMBERS[text]
    assert value("number", text, NUMBERS[text] or "1") == (NUMBERS[text] is not None)


def test_a_number_is_read_in_time_linear_in_the_text():
    """20,000 times "$" took half a minute: the marks of currency were counted again from each of them."""
    start = time.process_time()
    for piece in ("$", "\\", "-", "####", "#### ", ",", "1,", "1,111", "9", ".", "1.", "-$", "#### x"):
        gsm8k.parse(piece * 20_000)
    assert time.process_time() - start < 5


def test_numbers_are_compared_by_value_against_a_solution_or_its_answer():
    solution = "She sells 9 * 2 = $<<9*2=18>>18.\n#### 18"
    assert value("number", "18.00", solution) == value("number", "18", "18") == value("number", "$18", "18.0") == 1
    assert value("number", "1,080", "1080") == value("number", "1080", "#### 1,080") == 1
    assert value("number", "9", solution) == value("number", "180", solution) == value("number", "-18", solution) == 0
    assert value("number", "0.1", "0.10") == 1 and value("number", "0.1", "0.11") == 0
    assert value("number", "12345678901234567890.1", "12345678901234567890.2") == 0  # equal as floats


def test_every_real_gsm8k_solution_is_right_against_itself_with_and_without_its_marks(shared):
    for line in (shared / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines():
        solution = json.loads(line)["answer"]
        for text in (solution, solution.replace("####", "The answer is $") + ".00 dollars."):
            assert value("number", text, solution) == 1, text

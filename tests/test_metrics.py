"""From generated text to scores: every metric on hand-made cases with their traps, and the summary of scored rows."""

import itertools
import json
import random

import pytest
from conftest import SHARED

from harness.evaluate import summary
from tasks import METRICS, score
from tasks.boxes import (
    box_from_model,
    box_to_model,
    iou,
    parse_box,
    parse_point,
    percentile,
)
from tasks.gsm8k import gsm8k_answer, parse_number
from tasks.nextqa import parse_choice
from tasks.textvqa import VQA_SPELLINGS, normalize_vqa
from tasks.vilp import WORD_TABLES, normalize_word

SIZE = (100, 100)  # of pictures that the model sees as they are


def value(metric, text, reference, size=SIZE, resized=SIZE):
    return score(metric, text, reference, size, resized)["score"]


# -- every metric


def test_an_unknown_metric_is_a_value_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'bleu'.*exact, iou, point"):
        score("bleu", "a", "b")


@pytest.mark.parametrize("metric", METRICS)
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


# -- boxes


def test_iou_equals_counting_pixels_of_random_boxes():
    rng = random.Random(0)
    for _ in range(200):
        boxes = []
        for _ in range(2):
            x, y = rng.randrange(10), rng.randrange(10)
            boxes.append((x, y, x + rng.randrange(1, 8), y + rng.randrange(1, 8)))
        a, b = ({(x, y) for x in range(x1, x2) for y in range(y1, y2)} for x1, y1, x2, y2 in boxes)
        assert iou(*boxes) == iou(*boxes[::-1]) == pytest.approx(len(a & b) / len(a | b))


def test_iou_of_boxes_without_area_or_with_swapped_corners_is_zero():
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0  # they touch
    assert iou((10, 10, 0, 0), (0, 0, 10, 10)) == iou((5, 0, 5, 10), (0, 0, 10, 10)) == 0


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[1, 2, 3, 4]", [1, 2, 3, 4]),
        ('```json\n[\n\t{"bbox_2d": [10, 20.5, 30, 40], "label": "cup"}\n]\n```', [10, 20.5, 30, 40]),
        ("In 2 of 3 pictures: [1, 2, 3] no, [4,5,6,7] or [8, 9, 10, 11]", [4, 5, 6, 7]),
        ("[[1, 2, 3, 4]]", [1, 2, 3, 4]),
        ("[-1, .5, 3., 4]", [-1, 0.5, 3, 4]),
        ("1, 2, 3, 4", None),
        ("(1, 2, 3, 4)", None),
        ("[1, 2, 3, 4, 5]", None),
        ("[a, 2, 3, 4]", None),
        ("[nan, 2, 3, 4]", None),
        ("[1, 2, 3, 4", None),
        (f"[0, 0, {'1' * 400}, 1]", None),  # infinite as a float
    ],
)
def test_the_first_bracket_with_exactly_four_numbers_is_the_box(text, box):
    assert parse_box(text) == box


def test_boxes_go_to_the_models_pixels_and_back():
    size, resized = (640, 427), (420, 280)
    for box in ((0, 0, 640, 427), (249.6, 29.27, 565.84, 274.35), (10, 20, 31, 55)):
        inside = box_to_model(box, size, resized)
        assert all(type(n) is int for n in inside) and inside[2] <= 420 and inside[3] <= 280
        assert box_from_model(inside, size, resized) == pytest.approx(box, abs=1)
    assert box_to_model((320, 213.5, 640, 427), size, resized) == [210, 140, 420, 280]


def test_a_box_is_right_from_an_iou_of_one_half():
    assert score("iou", "[10, 10, 50, 50]", (10, 10, 50, 50), SIZE, SIZE) == {
        "parsed": [10, 10, 50, 50],
        "score": 1,
        "failed": False,
    }
    assert value("iou", "[10, 10, 50, 30]", (10, 10, 50, 50)) == 1  # exactly one half
    assert value("iou", "[10, 10, 50, 29]", (10, 10, 50, 50)) == 0


def test_a_box_written_as_x_y_width_height_or_on_another_scale_is_wrong():
    reference = (60, 50, 90, 80)
    assert value("iou", "[60, 50, 90, 80]", reference) == 1
    assert value("iou", "[60, 50, 30, 30]", reference) == 0  # width and height
    assert value("iou", "[0.6, 0.5, 0.9, 0.8]", reference) == 0  # 0..1
    assert value("iou", "[600, 500, 900, 800]", reference) == 0  # 0..1000
    assert not score("iou", "[60, 50, 30, 30]", reference, SIZE, SIZE)["failed"]  # it was read, though


def test_a_box_in_a_resized_picture_is_scored_in_pixels_of_the_original():
    size, resized, reference = (400, 200), (200, 50), (100, 40, 200, 120)
    result = score("iou", "[50, 10, 100, 30]", reference, size, resized)
    assert result["parsed"] == pytest.approx(reference) and result["score"] == 1
    assert value("iou", "[100, 40, 200, 120]", reference, size, resized) == 0


# -- points


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("(10, 20)", [10, 20]),
        ("[10.5, 20]", [10.5, 20]),
        ("pyautogui.click(10, 20)", [10, 20]),
        ('{"point_2d": [10, 20], "label": "save"}', [10, 20]),
        ('[{"bbox_2d": [10, 20, 30, 60]}]', [20, 40]),
        ("Step (1): of [1, 2, 3] take [7, 8], not (9, 10)", [7, 8]),
        ("(the button) (7, 8)", [7, 8]),
        ("[(7, 8)]", [7, 8]),
        ("click(x=10, y=20)", None),
        ("10, 20", None),
        ("[10, 20)", None),
        ("(10)", None),
    ],
)
def test_the_first_bracket_with_two_or_four_numbers_is_the_point(text, point):
    assert parse_point(text) == point


def test_a_point_on_the_edge_is_inside_and_one_pixel_further_is_not():
    box = (10, 20, 30, 40)
    for x, y in [(10, 20), (30, 40), (10, 40), (20, 20), (30, 30)]:
        assert score("point", f"({x}, {y})", box, SIZE, SIZE) == {"parsed": [x, y], "score": 1, "failed": False}
    for x, y in [(9, 30), (31, 30), (20, 19), (20, 41)]:
        assert value("point", f"({x}, {y})", box) == 0


def test_a_point_is_scaled_to_the_original_picture_and_its_edges_stay_exact():
    for width in range(28, 1000, 28):
        size, resized = (5 * width, 3 * width), (width, width)
        box = (5 * 7, 3 * 11, 5 * 13, 3 * 17)
        assert value("point", "[7, 11]", box, size, resized) == value("point", "[13, 17]", box, size, resized) == 1
        assert value("point", "[6, 11]", box, size, resized) == value("point", "[13, 18]", box, size, resized) == 0
    assert score("point", "(49, 49)", (50, 50, 60, 60), (1000, 1000), (980, 980))["score"] == 1


def test_a_point_on_another_scale_is_scored_as_written():
    assert value("point", "(0.5, 0.5)", (40, 40, 60, 60)) == value("point", "(500, 500)", (40, 40, 60, 60)) == 0
    assert value("point", "(0.5, 0.5)", (0, 0, 1, 1)) == 1


# -- TextVQA


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The  Coca-Cola", "coca cola"),  # an article; a hyphen between letters parts them
        ("Coca -Cola", "coca cola"),  # beside a space it only vanishes
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
    assert normalize_vqa(text) == answer


def test_every_contraction_has_lost_one_apostrophe_and_none_is_an_english_word():
    spellings = {short: word for short, word in VQA_SPELLINGS.items() if short != "somebody'd"}
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
    assert parse_choice(text) == letter
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
    numbers, synonyms, plurals = WORD_TABLES
    assert (len(numbers), len(synonyms), len(plurals)) == (21, 115, 90)
    assert all(word == word.lower().strip() != one for table in WORD_TABLES for word, one in table.items())
    assert normalize_word("Square") == "cube" and normalize_word("polka-dots") == "spots"


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
        ("18\n####", None),
        ("no number", None),
    ],
)
def test_the_number_behind_the_marks_or_else_the_last_one_is_the_answer(text, number):
    assert parse_number(text) == number
    assert score("number", text, number or "1")["score"] == (number is not None)


def test_numbers_are_compared_by_value_against_a_solution_or_its_answer():
    solution = "She sells 9 * 2 = $<<9*2=18>>18.\n#### 18"
    assert value("number", "18.00", solution) == value("number", "18", "18") == value("number", "$18", "18.0") == 1
    assert value("number", "1,080", "1080") == value("number", "1080", "#### 1,080") == 1
    assert value("number", "9", solution) == value("number", "180", solution) == value("number", "-18", solution) == 0
    assert value("number", "0.1", "0.10") == 1 and value("number", "0.1", "0.11") == 0
    assert value("number", "12345678901234567890.1", "12345678901234567890.2") == 0  # equal as floats


def test_the_answer_of_a_gsm8k_solution_stands_behind_its_last_marks():
    assert gsm8k_answer("2 + 2 = 4\n#### 1,450,000 ") == "1450000"
    assert gsm8k_answer("#### 1\n#### $-10") == "-10"
    assert gsm8k_answer(" 70000") == "70000"


def test_every_gsm8k_solution_is_right_against_itself_with_and_without_its_marks():
    file = SHARED / "gsm8k/test.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    for line in file.read_text(encoding="utf-8").splitlines():
        solution = json.loads(line)["answer"]
        for text in (solution, solution.replace("####", "The answer is $") + ".00 dollars."):
            assert value("number", text, solution) == 1, text


# -- summary


def row(data="d", kind="", group="", metric="exact", score=1.0, parsed="x", images=("i",), **more):
    answer = {"metric": metric, "score": score, "parsed": parsed, "failed": parsed is None, "reference": "x"}
    return {"data": data, "kind": kind, "group": group, "size": None, "images": list(images)} | answer | more


def test_a_summary_of_nothing_has_no_means():
    assert summary([]) == {
        "accuracy": None,
        "text_accuracy": None,
        "by_kind": {},
        "parse_failures": 0,
        "boxes": None,
    }


def test_the_prior_does_not_count_into_the_accuracy_but_by_kind():
    rows = [row("vilp", "prior", score=1.0), row("vilp", "test", score=0.0), row("vilp", "test", score=0.5)]
    result = summary(rows)
    assert result["accuracy"] == 0.25 and result["by_kind"] == {"vilp prior": 1, "vilp test": 0.25}
    assert summary(rows[:1])["accuracy"] is None


def test_rows_without_image_and_video_make_the_text_accuracy_and_the_others_the_accuracy():
    texts = [row(images=[], score=1.0), row(images=[], score=0.0), row(images=[], score=0.0)]
    rows = [*texts, row(score=0.75), row(images=[], videos=["v"], score=0.25)]
    assert summary(rows)["text_accuracy"] == pytest.approx(1 / 3) and summary(rows)["accuracy"] == 0.5
    assert summary(rows[3:])["text_accuracy"] is None
    assert summary(texts)["accuracy"] == summary(texts)["text_accuracy"] == pytest.approx(1 / 3)  # nothing else there


def test_the_accuracy_can_be_that_of_one_data_set():
    rows = [row("a", score=1.0), row("b", score=0.0), row("b", "prior", score=1.0), row("c", images=[], score=0.5)]
    assert [summary(rows, data)["accuracy"] for data in ("a", "b", "c", "d", None)] == [1, 0, 0.5, None, 0.5]
    assert summary(rows, "a")["by_kind"] == summary(rows)["by_kind"] == {"a": 1, "b": 0, "b prior": 1, "c": 0.5}
    assert summary(rows, "a")["text_accuracy"] == 0.5


def test_scores_are_counted_by_kind_and_by_group_and_once_where_these_are_the_same():
    rows = [
        row("screen", "icon", "web", score=1.0),
        row("screen", "text", "web", score=0.0),
        row("screen", "text", "text", score=0.0, parsed=None),
        row("plain", score=1.0),
    ]
    result = summary(rows)
    assert result["by_kind"] == {"screen icon": 1, "screen web": 0.5, "screen text": 0, "plain": 1}
    assert result["parse_failures"] == 1


def box_row(box, reference=(10, 10, 30, 30), size=(60, 80)):
    return row(metric="iou", parsed=box, reference=reference, size=size)


def test_boxes_differ_by_the_distance_of_centres_over_the_diagonal_and_by_the_root_of_the_areas():
    result = summary([box_row([13, 14, 33, 34])])["boxes"]  # 3 and 4 pixels away: 5 of a diagonal of 100
    assert result["count"] == 1
    assert result["centre_error"] == pytest.approx({"median": 0.05, "p90": 0.05})
    assert result["size_ratio"] == pytest.approx({"p10": 1, "median": 1, "p90": 1})
    twice = summary([box_row([0, 0, 40, 40]), box_row([10, 10, 30, 30]), box_row([15, 15, 25, 25])])["boxes"]
    assert twice["size_ratio"] == pytest.approx({"p10": 0.6, "median": 1, "p90": 1.8})
    assert twice["centre_error"] == pytest.approx({"median": 0, "p90": 0})


def test_boxes_without_area_unread_boxes_and_other_metrics_are_not_compared():
    swapped, unread = box_row([30, 30, 10, 10]), box_row(None)
    assert summary([unread, row(metric="point", parsed=[1, 2])])["boxes"] is None
    assert summary([swapped, unread])["boxes"] == {
        "count": 0,
        "centre_error": {"median": None, "p90": None},
        "size_ratio": {"p10": None, "median": None, "p90": None},
    }
    assert summary([swapped, unread, box_row([10, 10, 30, 30])])["boxes"]["count"] == 1


def test_percentiles_lie_between_neighbours():
    assert percentile([3, 1, 2], 0.5) == 2 and percentile([4, 1], 0.5) == 2.5 and percentile([7], 0.9) == 7
    assert percentile(range(11), 0.9) == 9 and percentile([1, 2], 0) == 1 and percentile([1, 2], 1) == 2
    assert percentile([], 0.5) is None

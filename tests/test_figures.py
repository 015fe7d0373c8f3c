"""What the pictures show is what is so."""

from unittest.mock import Mock

import pytest
from PIL import Image

from harness import figures


def colours(path):
    return {colour for _, colour in Image.open(path).convert("RGB").getcolors(10**6)}


def test_higher_values_are_higher_and_equal_ratios_equally_wide_on_a_logarithmic_axis():
    pen, points = Mock(), [(1, 0), (10, 1), (100, 2)]
    figures.chart(pen, (50, 50, 450, 450), "boxes", "parameters", [(figures.BLUE, points)], log_x=True)
    (x1, y1), (x2, y2), (x3, y3) = (call.args[0] for call in pen.circle.call_args_list)
    assert x2 - x1 == pytest.approx(x3 - x2) and y1 - y2 == pytest.approx(y2 - y3)
    assert 50 < x1 < x2 - 100 and 50 < y3 < y2 - 100


def test_ticks_are_round_numbers_in_the_range():
    assert figures.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert figures.ticks(-0.13, 0.11) == pytest.approx([-0.1, -0.05, 0, 0.05, 0.1])
    assert figures.ticks(0.9, 2.5, log=True) == [10, 20, 50, 100, 200]
    assert figures.ticks(0.9, 4, log=True) == [10, 100, 1000, 10_000]


def test_a_text_is_broken_into_lines_that_fit():
    assert figures.wrap("the red\ncup", 16, 300, 2) == ["the red cup"] and figures.wrap("", 16, 300, 2) == []
    lines = figures.wrap("which of the cups is the one on the left of the man with the hat? " * 9, 16, 300, 2)
    assert len(lines) == 2 and lines[1].endswith("...") and all(200 < figures.font(16).getlength(line) <= 300 for line in lines)


@pytest.mark.parametrize("scores", [[[4.0, 1.0], [0.0, 2.0]], [[-4.0, -1.0], [0.0, -2.0]], [[float("inf"), 1], [0, 2]]])
def test_a_head_map_frames_the_selected_heads_and_draws_a_negative_score_as_zero(tmp_path, scores):
    figures.head_map(tmp_path / "some.png", scores, {0: [0], 1: [1]})
    figures.head_map(tmp_path / "none.png", scores, {})
    assert figures.ORANGE in colours(tmp_path / "some.png") and figures.ORANGE not in colours(tmp_path / "none.png")
    assert (figures.DARK in colours(tmp_path / "some.png")) == (scores[0][0] > 0)


def test_the_curve_shows_the_loss_and_the_accuracy(tmp_path):
    figures.curve(tmp_path / "both.png", [(0, 2.0), (1, 1.0), (2, 0.5)], [(0, 0.25), (2, 0.75)])
    figures.curve(tmp_path / "loss.png", [(0, 0.0)], [(0, float("nan"))])
    both, loss = colours(tmp_path / "both.png"), colours(tmp_path / "loss.png")
    assert {figures.BLUE, figures.ORANGE} <= both and figures.BLUE in loss and figures.ORANGE not in loss


ITEM = {"image": Image.new("RGB", (100, 100), (90, 90, 90)), "caption": "the ring", "tuned": (40, 40, 90, 90)}


def test_examples_draw_the_boxes_that_an_item_has_and_whether_an_answer_is_right(tmp_path):
    figures.examples(tmp_path / "right.png", [ITEM | {"scores": {"tuned": 1.0}}, ITEM | {"tuned": None}])
    figures.examples(tmp_path / "wrong.png", [ITEM | {"base": "a cup", "scores": {"tuned": 0.0, "base": 0.4}}])
    assert {figures.GREEN, figures.BLUE} <= colours(tmp_path / "right.png")  # a tick, a box
    assert not {figures.ORANGE, figures.RED} & colours(tmp_path / "right.png")  # no base model in this run, no cross
    assert figures.RED in colours(tmp_path / "wrong.png") and figures.GREEN not in colours(tmp_path / "wrong.png")


@pytest.mark.parametrize("words", ["", "x" * 4000, "\ud800\x00\u2028", "星はどこ " * 99], ids=ascii)
def test_no_answer_is_too_odd_to_be_drawn(tmp_path, words):
    items = [ITEM | {"caption": words, "reference": words, "tuned": box} for box in ([9e8, -9e8, 0, 1e9], [5, 5], None)]
    figures.examples(tmp_path / "odd.png", [*items, items[0] | {"image": Image.new("L", (1, 200))}])
    assert Image.open(tmp_path / "odd.png").height < 1000

"""What the pictures show is what is so."""

import pytest
from PIL import Image

from harness import figures


def colours(path):
    return {colour for _, colour in Image.open(path).convert("RGB").getcolors(10**6)}


def test_axes_turn_values_into_pixels_and_equal_ratios_into_equal_widths():
    axes = figures.Axes(Image.new("RGB", (200, 200)), (10, 20, 110, 120), x_range=(0, 5), y_range=(-1, 1))
    assert axes.at(0, -1) == (10, 120) and axes.at(5, 1) == (110, 20) and axes.at(1, 0) == (30, 70)
    axes = figures.Axes(axes.picture, axes.frame, x_range=(1, 10_000), y_range=(3, 0), log_x=True)
    assert axes.at(10, 0) == (35, 20) and axes.at(100, 3) == (60, 120)


def test_ticks_are_round_numbers_in_the_range():
    assert figures.nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1] and figures.nice_ticks(-0.13, 0.11, 4) == [-0.1, 0, 0.1]
    assert figures.log_ticks(4, 70_000) == [10, 100, 1000, 10_000]
    assert [figures.written(0.55, form) for form in ("g%", ".1f%", ".2f")] == ["55 %", "55.0 %", "0.55"]
    assert [figures.written(n, "k") for n in (500, 20_000, 3e6)] == ["500", "20k", "3M"]


def test_a_text_is_broken_into_lines_that_fit():
    assert figures.wrap("the red cup", 16, 300, 2) == ["the red cup"] and figures.wrap("", 16, 300, 2) == []
    lines = figures.wrap("the red cup " + "x" * 4000 + " y", 16, 300, 2)
    assert len(lines) == 2 and lines[1].endswith("...") and 250 < figures.text_width(lines[1], 16) <= 300


@pytest.mark.parametrize("scores", [[[4.0, 1.0], [0.0, 2.0]], [[-4.0, -1.0], [0.0, -2.0]]])
def test_a_head_map_frames_the_selected_heads_and_draws_a_negative_score_as_zero(tmp_path, scores):
    figures.head_map(tmp_path / "some.png", scores, {0: [0], 1: [1]})
    figures.head_map(tmp_path / "none.png", scores, {})
    assert figures.ORANGE in colours(tmp_path / "some.png") and figures.ORANGE not in colours(tmp_path / "none.png")
    assert (figures.shade(1) in colours(tmp_path / "some.png")) == (scores[0][0] > 0)


def test_the_curve_shows_the_loss_and_the_accuracy(tmp_path):
    figures.curve(tmp_path / "both.png", [(0, 2.0), (1, 1.0), (2, 0.5)], [(0, 0.25), (2, 0.75)])
    figures.curve(tmp_path / "loss.png", [(0, 2.0)], [])
    both, loss = colours(tmp_path / "both.png"), colours(tmp_path / "loss.png")
    assert {figures.BLUE, figures.ORANGE} <= both and figures.ORANGE not in loss


def test_examples_draw_the_boxes_that_an_item_has_and_whether_an_answer_is_right(tmp_path):
    item = {"image": Image.new("RGB", (100, 100), (90, 90, 90)), "caption": "the ring", "tuned": (40, 40, 90, 90)}
    figures.examples(tmp_path / "right.png", [item | {"right": {"tuned": True}}, item | {"tuned": None}])
    figures.examples(tmp_path / "wrong.png", [item | {"base": "a cup", "right": {"tuned": False, "base": False}}])
    assert {figures.GREEN, figures.BLUE} <= colours(tmp_path / "right.png")  # a tick, a box
    assert not {figures.ORANGE, figures.RED} & colours(tmp_path / "right.png")  # no base model in this run, no cross
    assert figures.RED in colours(tmp_path / "wrong.png") and figures.GREEN not in colours(tmp_path / "wrong.png")

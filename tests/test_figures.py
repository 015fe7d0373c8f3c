"""What the pictures show is what is so."""

import pytest
from conftest import ROOT
from PIL import Image

from harness.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PALE_ORANGE,
    WHITE,
    Axes,
    costs,
    curve,
    examples,
    head_map,
    log_ticks,
    method,
    nice_ticks,
    written,
)

TOKENS, VISUAL, HEADS, SELECTED = 16, 6, 4, 2  # of the picture's row of tokens, and of its layer


def rectangles(picture, size):
    """The filled rectangles of this (width, height): {colour: {(x, y) of the upper left corner}}."""
    pixels, (width, height) = picture.load(), picture.size
    found = {GREEN: set(), ORANGE: set(), PALE: set()}
    for y in range(1, height - size[1]):
        for x in range(1, width - size[0]):
            colour = pixels[x, y]
            if colour in found and colour not in (pixels[x - 1, y], pixels[x, y - 1]):
                filled = {colour for _, colour in picture.crop((x, y, x + size[0], y + size[1])).getcolors(10**4)}
                if filled == {colour} and colour not in (pixels[x + size[0], y], pixels[x, y + size[1]]):
                    found[colour].add((x, y))
    return found


TOKEN, VALUE = (32, 33), (32, 51)  # sizes of a token and of a head's value of a token


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    path = tmp_path_factory.mktemp("figures") / "method.png"
    method(path)
    return Image.open(path).convert("RGB")


def test_the_picture_of_the_method_touches_the_selected_heads_at_visual_tokens_and_nothing_else(drawn):
    assert drawn.size == (1660, 920) and drawn.getpixel((30, 30)) == WHITE  # a background for dark pages too
    tokens, values = rectangles(drawn, TOKEN), rectangles(drawn, VALUE)
    visual, text = tokens[GREEN], tokens[PALE]
    touched, frozen = values[ORANGE], values[PALE]
    assert len(visual) == VISUAL and len(visual) + len(text) == TOKENS
    assert len(touched) == SELECTED * VISUAL and len(touched) + len(frozen) == HEADS * TOKENS
    assert {x for x, _ in touched} == {x for x, _ in visual}  # in the columns of the visual tokens
    assert len({y for _, y in touched}) == SELECTED  # in the rows of the selected heads
    assert {x for x, _ in frozen} == {x for x, _ in visual | text}


def test_the_picture_of_the_method_names_its_parts_in_the_files_colours(drawn):
    colours = colours_in(drawn, (0, 0, *drawn.size))
    assert {BLUE, GREEN, ORANGE, PALE, PALE_ORANGE} <= colours  # heads, visual tokens, update, frozen, adapter


def test_the_committed_picture_is_the_one_that_the_program_draws(drawn):
    """Its shapes: letters may differ by a pixel where another library draws them."""
    committed = Image.open(ROOT / "docs/method.png").convert("RGB")
    assert drawn.size == committed.size and rectangles(drawn, VALUE) == rectangles(committed, VALUE)
    assert (ROOT / "docs/method.png").stat().st_size < 120_000


def colours_in(picture, area):
    """The colours in an area (x1, y1, x2, y2) of a picture."""
    return {colour for _, colour in picture.crop(area).getcolors(10**6)}


def test_the_head_map_outlines_the_selected_heads_and_no_other(tmp_path):
    scores, heads = [[4.0, 1.0], [0.0, 2.0], [3.0, 0.5]], {0: [0], 2: [0, 1]}
    head_map(tmp_path / "heads.png", scores, heads)
    picture, cell = Image.open(tmp_path / "heads.png").convert("RGB"), 44
    outlined = set()
    for layer in range(3):
        for h in range(2):
            x, y = 90 + h * cell, 100 + layer * cell
            if ORANGE in colours_in(picture, (x, y, x + cell - 2, y + cell - 2)):
                outlined.add((layer, h))
    assert outlined == {(0, 0), (2, 0), (2, 1)}


def test_the_curve_shows_the_loss_above_and_the_accuracy_below(tmp_path):
    curve(tmp_path / "curve.png", [(0, 2.0), (1, 1.0), (2, 0.5)], [(0, 0.25), (2, 0.75)])
    picture = Image.open(tmp_path / "curve.png").convert("RGB")
    above, below = colours_in(picture, (0, 0, 860, 350)), colours_in(picture, (0, 350, 860, 700))
    assert BLUE in above and ORANGE not in above and ORANGE in below and BLUE not in below


def test_examples_draw_the_boxes_that_an_item_has(tmp_path):
    image = Image.new("RGB", (100, 100), (90, 90, 90))
    boxes = {"image": image, "caption": "the ring", "reference": (10, 20, 50, 60), "tuned": (40, 40, 90, 90)}
    examples(tmp_path / "examples.png", [boxes, {"image": image, "caption": "how many?", "tuned": None}])
    picture = Image.open(tmp_path / "examples.png").convert("RGB")
    colours = colours_in(picture, (0, 0, *picture.size))
    assert {GREEN, BLUE} <= colours and ORANGE not in colours  # no base model in this run


def test_axes_turn_values_into_pixels_and_equal_ratios_into_equal_widths():
    picture = Image.new("RGB", (200, 200))
    axes = Axes(picture, (10, 20, 110, 120), x_range=(0, 5), y_range=(-1, 1))
    assert axes.at(0, -1) == (10, 120) and axes.at(5, 1) == (110, 20) and axes.at(1, 0) == (30, 70)
    axes = Axes(picture, (10, 20, 110, 120), x_range=(1, 10_000), y_range=(3, 0), log_x=True)
    assert axes.at(10, 0) == (35, 120 - 100) and axes.at(100, 3) == (60, 120)


def test_ticks_are_round_numbers_in_the_range():
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1] and nice_ticks(-0.13, 0.11, 4) == [-0.1, 0, 0.1]
    assert log_ticks(4, 700) == [5, 10, 20, 50, 100, 200, 500] and log_ticks(4, 70_000) == [10, 100, 1000, 10_000]
    assert [written(0.55, form) for form in ("g%", ".1f%", ".2f")] == ["55 %", "55.0 %", "0.55"]
    assert [written(n, "k") for n in (500, 20_000, 3e6)] == ["500", "20k", "3M"]


def test_a_picture_of_costs_has_its_colours(tmp_path):
    series = {"ours": (BLUE, True, {"3": (5, [0.7, 0.8])}), "random": (GREY, False, {"3": (50, [0.6, 0.7])})}
    costs(tmp_path / "costs.png", "?", "FLOPs", 0.5, series)
    picture = Image.open(tmp_path / "costs.png").convert("RGB")
    assert {BLUE, GREY} <= colours_in(picture, (0, 0, *picture.size))

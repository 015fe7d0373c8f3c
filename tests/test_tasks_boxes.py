"""Boxes and points: read from text, converted, scored, drawn."""

import random

import pytest
from PIL import Image, ImageDraw

from parts.tasks import boxes, score


def test_iou_equals_counting_pixels_of_random_boxes():
    rng = random.Random(0)
    for _ in range(200):
        corners = [(rng.randrange(10), rng.randrange(10)) for _ in "ab"]
        pair = [(x, y, x + rng.randrange(1, 8), y + rng.randrange(1, 8)) for x, y in corners]
        a, b = ({(x, y) for x in range(x1, x2) for y in range(y1, y2)} for x1, y1, x2, y2 in pair)
        assert boxes.iou(*pair) == boxes.iou(*pair[::-1]) == pytest.approx(len(a & b) / len(a | b))
    assert boxes.iou((10, 10, 0, 0), (0, 0, 10, 10)) == boxes.iou((5, 0, 5, 10), (0, 0, 10, 10)) == 0  # corners swapped


def test_boxes_go_to_the_models_pixels_and_back():
    size, resized = (640, 427), (420, 280)
    for box in ((0, 0, 640, 427), (249.6, 29.27, 565.84, 274.35), (10, 20, 31, 55)):
        inside = boxes.box_to_model(box, size, resized)
        assert all(type(n) is int for n in inside) and inside[2] <= 419 and inside[3] <= 279
        assert boxes.box_from_model(inside, size, resized) == pytest.approx(box, abs=1.6)
    assert boxes.box_to_model((320, 213.5, 600, 400), size, resized) == [210, 140, 394, 262]
    # a box ends at the last pixel, as in Qwen's converter: max(0, min(round(x * scale), side - 1))
    assert boxes.box_to_model((-1, -0.6, 101, 80.7), (100, 80), (100, 80)) == [0, 0, 99, 79]


def test_a_point_is_scaled_to_the_original_image_and_its_edges_stay_exact():
    for width in range(28, 1000, 28):
        size, resized, box = (5 * width, 3 * width), (width, width), (5 * 7, 3 * 11, 5 * 13, 3 * 17)
        points = ("[7, 11]", "[13, 17]", "[6, 11]", "[13, 18]")
        assert [score("point", point, box, size, resized)["score"] for point in points] == [1, 1, 0, 0]


@pytest.mark.parametrize("dash", [0, 5])
def test_a_box_is_drawn_around_its_pixels_and_never_over_them(dash):
    image = Image.new("RGB", (80, 60))
    boxes.draw_box(ImageDraw.Draw(image), (20.2, 20, 31.8, 26), "red", 3, dash)
    assert image.crop((20, 20, 32, 26)).getcolors() == [(72, (0, 0, 0))]
    assert image.getbbox() == (16, 16, 36, 30)
    assert dash or (18 * 12 - 72, (255, 0, 0)) in image.getcolors()  # all of the frame


def test_targets_that_the_model_sees_smaller_than_half_a_token_are_warned_of_with_the_flag_that_helps():
    """A control of 40 x 40 pixels on a screen of 3840 x 2160: 9 pixels at the default of 401,408."""
    targets, screens, seen = [(100, 100, 140, 140)] * 3, [(3840, 2160)] * 3, [(840, 476)] * 3
    warning = boxes.small_targets(targets, screens, seen, 28)
    assert "the shorter side of the median target is 8.8 pixels" in warning and "100% are smaller" in warning
    assert warning.endswith("half a visual token (14 pixels): raise --max-pixels")
    assert boxes.small_targets([(0, 0, 5, 50)], [(56, 56)], [(56, 56)], 28).endswith("raise --min-pixels")
    assert boxes.small_targets(targets, screens, screens, 28) is boxes.small_targets([], [], [], 28) is None

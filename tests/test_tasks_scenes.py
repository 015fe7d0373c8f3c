"""The drawn world: its rows are a function of the seed, its boxes fit, its expressions name one thing."""

import pytest
from PIL import ImageChops

from data import load
from tasks.scenes import LOOKS, SHAPES, draw, expressions, paper


@pytest.mark.parametrize("look", LOOKS)
def test_drawn_rows_are_a_function_of_split_and_number(look):
    few, more = load(f"scenes-{look}", None, "val", 4), load(f"scenes-{look}", None, "val", 9)
    assert [(e.prompt, e.answer, e.kind) for e in few] == [(e.prompt, e.answer, e.kind) for e in more[:4]]
    assert few[0].images[0].tobytes() == more[0].images[0].tobytes()
    assert few[0].images[0] is few[1].images[0]  # questions about one scene share its image
    assert [e.prompt for e in load(f"scenes-{look}", None, "train", 4)] != [e.prompt for e in few]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawn_thing_fills_its_box(shape):
    box = (30, 40, 66, 76)
    image = draw([(shape, "blue", "large", box)])
    assert ImageChops.difference(image, paper()).getbbox() == pytest.approx(box, abs=1.5)


def test_an_expression_names_one_thing_and_no_other():
    scene = [
        ("ring", "red", "small", (10, 10, 30, 30)),
        ("ring", "blue", "large", (60, 10, 96, 46)),
        ("square", "red", "small", (10, 60, 32, 82)),
    ]
    plain, related = expressions(scene, 0)
    assert plain == ["the red ring", "the small ring", "the small red ring"]
    assert "the ring left of the blue ring" in related
    assert "the ring above the square" not in related and "the red ring above the square" in related  # two rings are

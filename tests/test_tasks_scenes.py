"""The drawn world: its rows are a function of the seed, its boxes fit, its expressions name one thing."""

import random
from functools import cache
from itertools import islice
from statistics import pstdev

import pytest
from conftest import ROOT
from PIL import Image, ImageChops

from data import Processor, load
from parts.tasks.scenes import (
    DEMO_LOOK,
    KNOWN,
    LOOKS,
    SHAPES,
    SIDE,
    draw,
    expressions,
    in_look,
    paper,
    rows,
    scene_of,
)


@pytest.mark.parametrize("look", LOOKS)
def test_drawn_rows_are_a_function_of_split_and_number(look):
    few, more = load(f"scenes-{look}", None, "val", 4), load(f"scenes-{look}", None, "val", 9)
    assert [(e.prompt, e.answer, e.kind) for e in few] == [(e.prompt, e.answer, e.kind) for e in more[:4]]
    assert few[0].images[0].tobytes() == more[0].images[0].tobytes()
    assert few[0].images[0] is few[1].images[0]  # questions about one scene share its image
    assert [e.prompt for e in load(f"scenes-{look}", None, "train", 4)] != [e.prompt for e in few]


@pytest.mark.parametrize("name", ["scenes+25", "scenes-fog+60"])
def test_a_name_with_a_number_puts_so_many_words_before_each_question(name):
    plain, words = name.split("+")
    for short, long in zip(load(plain, None, "val", 6), load(name, None, "val", 6)):
        assert long.prompt.endswith(f" {short.prompt}") and long.answer == short.answer
        assert len(long.prompt.split()) == len(short.prompt.split()) + int(words)
        assert long.images[0].tobytes() == short.images[0].tobytes()


def test_other_images_come_after_the_one_that_is_asked_about():
    for one, four in zip(load("words-fog", None, "val", 4), load("words-fog+3images", None, "val", 4)):
        assert (four.prompt, four.answer, len(four.images)) == (one.prompt, one.answer, 4)
        assert four.images[0].tobytes() == one.images[0].tobytes()
        assert len({image.tobytes() for image in four.images}) == 4


SEEN = {"day": (200, 100, 0), "dusk": (200, 85, 0), "fog": (210, 140, 70), "negative": (55, 155, 255), "words": (200, 100, 0)}


@pytest.mark.parametrize("look", SEEN)
def test_a_look_changes_the_light_by_as_much_as_it_says(look):
    image = Image.new("RGB", (3, 3), (200, 100, 0))
    assert in_look(image, look, None).getcolors() == [(9, SEEN[look])]


def test_noise_has_a_standard_deviation_of_52():
    grey = in_look(Image.new("RGB", (SIDE, SIDE), (128, 128, 128)), "noise", random.Random(0))
    assert pstdev(grey.tobytes()) == pytest.approx(52, abs=0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawn_thing_fills_its_box(shape):
    box = (30, 40, 66, 76)
    image = draw([(shape, "blue", "large", box)])
    assert ImageChops.difference(image, paper(1)).getbbox() == pytest.approx(box, abs=1.5)


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


@cache
def drawn(look, split, number):
    return scene_of(look, split, number)[1].tobytes()


def look_of(row, number, split):
    """The look of a row's image, found by drawing the scene again in each."""
    (image,) = row["images"]
    return next(look for look in LOOKS if drawn(look, split, number) == image.tobytes())


def test_pretraining_asks_for_boxes_by_day_only_and_for_words_in_every_known_look():
    asked = {}  # look: kinds
    for row, source in islice(rows("scenes-pretraining", None, "train"), 150):
        number = int(source.split()[-1].split(".")[0])
        if row["images"]:
            look = look_of(row, number, "pretraining train")
            asked.setdefault(look, set()).add(row["kind"])
    assert asked.keys() == {"day", *KNOWN}  # and not blur
    assert all(asked[look] == {"attribute", "naming"} for look in KNOWN)
    assert asked["day"] == {"grounding", "attribute", "naming", "listing"}


def test_the_demo_trains_on_three_scenes_in_its_look_for_one_by_day():
    looks = {}
    for row, source in islice(rows("scenes", None, "train"), 45):
        number = int(source.split()[-1].split(".")[0])
        looks[number] = look_of(row, number, "train")
    assert list(looks.values())[:8] == [DEMO_LOOK, DEMO_LOOK, DEMO_LOOK, "day"] * 2


def test_almost_half_of_the_demos_tokens_are_visual():
    processor = Processor.from_pretrained(ROOT / "parts/tiny")
    counts = [processor.count(e) for e in load("scenes", None, "train", 200)]
    visual, tokens = sum(v for _, v in counts), sum(t for t, _ in counts)
    assert {v for _, v in counts} == {49} and visual / tokens >= 0.45


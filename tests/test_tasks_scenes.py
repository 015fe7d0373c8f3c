"""The drawn world: its rows are a function of the seed, its boxes fit, its expressions name one thing."""

import random
from itertools import islice
from statistics import pstdev

import pytest
from PIL import Image, ImageChops

from data import load
from parts.tasks import scenes


@pytest.mark.parametrize("look", scenes.LOOKS)
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


SEEN = {"day": (200, 100, 50), "dusk": (200, 85, 35), "fog": (210, 140, 105), "negative": (55, 155, 205)}


def test_a_look_changes_the_light_by_as_much_as_it_says():
    image = Image.new("RGB", (3, 3), (200, 100, 50))
    assert {look: scenes.in_look(image, look, None).getpixel((0, 0)) for look in SEEN} == SEEN
    grey = scenes.in_look(Image.new("RGB", (196, 196), (128, 128, 128)), "noise", random.Random(0))
    assert pstdev(grey.tobytes()) == pytest.approx(52, abs=0.5)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_drawn_thing_fills_its_box(shape):
    box = (30, 40, 66, 76)
    image = scenes.draw([(shape, "blue", "large", box)])
    assert ImageChops.difference(image, scenes.paper(1)).getbbox() == pytest.approx(box, abs=1.5)


def test_an_expression_names_one_thing_and_no_other():
    scene = [
        ("ring", "red", "small", (10, 10, 30, 30)),
        ("ring", "blue", "large", (60, 10, 96, 46)),
        ("square", "red", "small", (10, 60, 32, 82)),
    ]
    plain, related = scenes.expressions(scene, 0)
    assert plain == ["the red ring", "the small ring", "the small red ring"]
    assert "the ring left of the blue ring" in related
    assert "the ring above the square" not in related and "the red ring above the square" in related  # two rings are


def looks_of(name, seed, count):
    """{number of a scene: (its look, the kinds of its rows)}; the look by drawing the scene again in each."""
    asked = {}
    for row, source in islice(scenes.rows(name, None, "train"), count):
        number = int(source.split()[-1].split(".")[0])
        image = row["images"][0].tobytes() if row["images"] else None
        if image and number not in asked:
            look = next(look for look in scenes.LOOKS if scenes.scene_of(look, seed, number)[1].tobytes() == image)
            asked[number] = look, set()
        if image:
            asked[number][1].add(row["kind"])
    return asked


def test_pretraining_asks_for_boxes_by_day_only_and_for_words_in_every_look_that_it_shows():
    kinds = {}
    for look, asked in looks_of("scenes-pretraining", "pretraining train", 150).values():
        kinds[look] = kinds.get(look, set()) | asked
    assert kinds.keys() == {"day", *scenes.KNOWN}  # and not blur
    assert all(kinds[look] == {"attribute", "naming"} for look in scenes.KNOWN)
    assert kinds["day"] == {"grounding", "attribute", "naming", "listing"}


def test_the_demo_trains_on_three_scenes_in_its_look_for_one_by_day():
    looks = [look for look, _ in looks_of("scenes", "train", 45).values()]
    assert looks[:8] == [scenes.DEMO_LOOK, scenes.DEMO_LOOK, scenes.DEMO_LOOK, "day"] * 2

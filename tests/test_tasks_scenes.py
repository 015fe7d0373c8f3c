"""The drawn world: its rows are a function of the seed, its boxes fit, its expressions name one thing."""

import random
from itertools import islice
from statistics import fmean, pstdev

import pytest
from PIL import Image, ImageChops

from data import load
from parts.tasks import scenes
from parts.tasks.rows import WORDS


@pytest.mark.parametrize("look", scenes.LOOKS)
def test_drawn_rows_are_a_function_of_split_and_number(look):
    few, more = load(f"scenes-{look}", None, "val", 4), load(f"scenes-{look}", None, "val", 9)
    assert [(e.prompt, e.answer, e.kind) for e in few] == [(e.prompt, e.answer, e.kind) for e in more[:4]]
    assert few[0].images[0].tobytes() == more[0].images[0].tobytes()
    assert few[0].images[0] is few[1].images[0]  # questions about one scene share its image
    assert [e.prompt for e in load(f"scenes-{look}", None, "train", 4)] != [e.prompt for e in few]


@pytest.mark.parametrize("name", ["scenes+25", "scenes-fog+60", "words-fog+3images"])
def test_a_name_with_a_number_puts_so_many_words_before_or_images_after_each_question(name):
    plain, more = name.split("+")
    words, images = (0, int(more[0])) if more.endswith("images") else (int(more), 0)
    for short, long in zip(load(plain, None, "val", 6), load(name, None, "val", 6)):
        assert f" {long.prompt}".endswith(f" {short.prompt}") and long.answer == short.answer
        assert len(long.prompt.split()) == len(short.prompt.split()) + words
        drawn = [image.tobytes() for image in long.images]
        assert drawn[0] == short.images[0].tobytes() and len(drawn) == len(set(drawn)) == 1 + images


SEEN = {"day": (200, 100, 50), "dusk": (200, 85, 35), "fog": (210, 140, 105), "negative": (55, 155, 205)}


def test_a_look_changes_the_light_by_as_much_as_it_says():
    image = Image.new("RGB", (3, 3), (200, 100, 50))
    assert {look: scenes.in_look(image, look, None).getpixel((0, 0)) for look in SEEN} == SEEN
    grey = scenes.in_look(Image.new("RGB", (196, 196), (128, 128, 128)), "noise", random.Random(0))
    assert pstdev(grey.tobytes()) == pytest.approx(52, abs=0.5)


def test_the_look_of_other_words_answers_in_them():
    day, words = ([e.answer for e in load(f"words-{look}", None, "val", 6)] for look in ("day", "words"))
    assert words == [WORDS["foreign"][answer] for answer in day]


@pytest.mark.parametrize(("split", "share"), [("train", 0.9), ("val", 0)])
def test_colours_are_the_usual_ones_in_training_alone(split, share):
    asked = load("scenes-prior", None, split, 200)
    usual = [e.answer == scenes.USUAL[e.prompt.split()[-1][:-1]] for e in asked]
    assert fmean(usual) == pytest.approx(share, abs=0.08 * share)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_drawn_thing_fills_its_box(shape):
    thing = (shape, "blue", "large", (30, 40, 66, 76))
    image = scenes.draw([thing])
    assert scenes.around(thing) == (29, 39, 67, 77)  # what is answered
    assert ImageChops.difference(image, scenes.paper(1)).getbbox() == pytest.approx((30, 40, 66, 76), abs=1.5)


def test_an_expression_names_one_thing_and_no_other():
    rings = [("ring", "red", "small", (10, 10, 30, 30)), ("ring", "blue", "large", (60, 10, 96, 46))]
    plain, related = scenes.expressions([*rings, ("square", "red", "small", (10, 60, 32, 82))], 0)
    assert plain == ["the red ring", "the small ring", "the small red ring"]
    assert "the ring left of the blue ring" in related
    assert not any("left of the square" in text for text in related)  # by a pixel
    assert "the ring above the square" not in related and "the red ring above the square" in related  # two rings are


def test_the_demo_trains_on_three_scenes_in_its_look_for_one_by_day(monkeypatch):
    monkeypatch.setattr(scenes, "in_look", lambda image, look, rng: look)  # rows have the names of looks in place of images
    shown = {source.split(".")[0]: row["images"] for row, source in islice(scenes.rows("scenes", None, "train"), 45)}
    assert [*shown.values()][:8] == [["fog"], ["fog"], ["fog"], ["day"]] * 2


def test_pretraining_asks_for_boxes_by_day_only_and_for_words_in_every_look_that_it_shows(monkeypatch):
    monkeypatch.setattr(scenes, "in_look", lambda image, look, rng: look)
    kinds = {}
    for row, _ in islice(scenes.rows("scenes-pretraining", None, "train"), 150):
        for look in row["images"]:
            kinds.setdefault(look, set()).add(row["kind"])
    assert kinds.pop("day") == {"grounding", "attribute", "naming", "listing"}
    assert kinds == {look: {"attribute", "naming"} for look in scenes.KNOWN}  # and not blur

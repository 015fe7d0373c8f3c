"""The pictures of the suites: which columns, which lines, and what is drawn."""

from PIL import Image

from experiments.charts import KINDS, Panel, attention, blocks, scatter
from harness.figures import BLUE, GREEN, ORANGE


def colours(path):
    return {colour for _, colour in Image.open(path).convert("RGB").getcolors(10**6)}


def test_kinds_have_their_colours_and_other_rows_the_usual_two(tmp_path):
    blocks(tmp_path / "plain.png", "?", [[Panel("boxes", "%", {"a": {"": [0.5, 0.7, None]}})]])
    assert {BLUE, ORANGE} <= colours(tmp_path / "plain.png")  # circles, and the bar of the mean
    kinds = {"fog": {"base": [0.5, 0.6], "Image-LoRA": [0.7]}}
    blocks(tmp_path / "kinds.png", "?", [[Panel("boxes", "%", kinds)], [Panel("empty", ".2f", {"b": {"": [None]}})]])
    assert {KINDS["base"], KINDS["Image-LoRA"]} <= colours(tmp_path / "kinds.png")
    assert KINDS["LoRA"] not in colours(tmp_path / "kinds.png")


def test_a_scatter_has_a_colour_for_each_series(tmp_path):
    series = {"seed 0": [(0, 1), (1, 0)], "seed 1": [(0.5, 0.5)]}
    scatter(tmp_path / "scatter.png", "?", {"one": ("x", "y", series), "two": ("x", "y", {"seed 0": [(1, 1)]})})
    assert {BLUE, ORANGE} <= colours(tmp_path / "scatter.png") and GREEN not in colours(tmp_path / "scatter.png")


def test_a_map_of_attention_is_strong_where_the_weights_are_and_marks_what_is_asked_for(tmp_path):
    image = Image.new("RGB", (100, 100), (90, 90, 90))
    maps = {"base": [("layer 0", [1.0, 0.0, 0.0, 0.0])]}  # 2 x 2 tokens: all attention in the upper left
    attention(tmp_path / "map.png", image, "the ring", (60, 60, 90, 90), maps, side=200)
    picture = Image.open(tmp_path / "map.png").convert("RGB")
    left = picture.width - 20 - 14 - 200
    upper, lower = (picture.getpixel((left + 20, 100 + y)) for y in (20, 180))
    assert upper[0] - upper[2] > 100 and lower[0] == lower[2]  # orange, and grey
    assert picture.getpixel((left + 120, 100 + 150)) == GREEN  # the left edge of the box
    attention(tmp_path / "none.png", image, "how many?", None, maps)
    assert GREEN not in colours(tmp_path / "none.png")

"""The pictures of the suites."""

from PIL import Image

from experiments.charts import COLOURS, curves


def test_a_line_has_one_colour_in_all_panels(tmp_path):
    one, two = {"LoRA": [(1e3, 0.5), (1e4, 0.8)]}, {"LoRA": [(1, 0.5)], "Image-LoRA": [(1, 0.6), (2, 0.7)]}
    curves(tmp_path / "a.png", "?", {"one": ("parameters", "boxes", one)})
    curves(tmp_path / "b.png", "?", {"one": ("parameters", "boxes", one), "two": ("K", "boxes", two)})
    colours = []
    for name in "ab":
        picture = Image.open(tmp_path / f"{name}.png").convert("RGB")
        colours.append({colour for _, colour in picture.getcolors(10**6)} & set(COLOURS[:3]))
    assert colours == [set(COLOURS[:1]), set(COLOURS[:2])]

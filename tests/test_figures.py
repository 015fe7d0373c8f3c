"""The pictures: where Image-LoRA touches attention is drawn as it is."""

from conftest import ROOT
from PIL import Image

from harness.figures import BLUE, GREEN, ORANGE, PALE, PALE_ORANGE, WHITE, method

TOKENS, VISUAL, HEADS, SELECTED = 16, 6, 4, 2  # of the picture's row of tokens, and of its layer


def patches(picture, colour):
    """The filled rectangles of exactly this colour: {(x, y) of the upper left corner: (width, height)}."""
    pixels, (width, height) = picture.load(), picture.size
    found = {}
    for y in range(1, height):
        for x in range(1, width):
            if pixels[x, y] == colour != pixels[x - 1, y] and pixels[x, y - 1] != colour:
                right = next((i for i in range(x, width) if pixels[i, y] != colour), width)
                below = next((j for j in range(y, height) if pixels[x, j] != colour), height)
                found[x, y] = right - x, below - y
    return found


def of_size(found, size):
    return {corner for corner, measured in found.items() if measured == size}


def test_the_picture_of_the_method_touches_the_selected_heads_at_visual_tokens_and_nothing_else(tmp_path):
    method(tmp_path / "method.png")
    picture = Image.open(tmp_path / "method.png").convert("RGB")
    assert picture.size == (1660, 920) and picture.getpixel((30, 30)) == WHITE  # a background for dark pages too
    token, value = (32, 33), (32, 51)
    visual = of_size(patches(picture, GREEN), token)
    text = of_size(patches(picture, PALE), token)
    touched = of_size(patches(picture, ORANGE), value)
    frozen = of_size(patches(picture, PALE), value)
    assert len(visual) == VISUAL and len(visual) + len(text) == TOKENS
    assert len(touched) == SELECTED * VISUAL and len(touched) + len(frozen) == HEADS * TOKENS
    assert {x for x, _ in touched} == {x for x, _ in visual}  # in the columns of the visual tokens
    assert len({y for _, y in touched}) == SELECTED  # in the rows of the selected heads
    assert {x for x, _ in frozen} == {x for x, _ in visual | text}


def test_the_picture_of_the_method_names_its_parts_in_the_files_colours(tmp_path):
    method(tmp_path / "method.png")
    colours = {colour for _, colour in Image.open(tmp_path / "method.png").convert("RGB").getcolors(10**6)}
    assert {BLUE, GREEN, ORANGE, PALE, PALE_ORANGE} <= colours  # heads, visual tokens, update, frozen, adapter


def test_the_committed_picture_is_the_one_that_the_program_draws(tmp_path):
    """Its shapes: letters may differ by a pixel where another library draws them."""
    method(tmp_path / "method.png")
    drawn, committed = (Image.open(f).convert("RGB") for f in (tmp_path / "method.png", ROOT / "docs/method.png"))
    for colour in (GREEN, ORANGE, PALE):
        assert of_size(patches(drawn, colour), (32, 51)) == of_size(patches(committed, colour), (32, 51))
    assert drawn.size == committed.size and (ROOT / "docs/method.png").stat().st_size < 120_000

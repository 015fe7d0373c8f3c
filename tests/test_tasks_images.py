"""Images and videos: each is decoded to what its file says (size, orientation, range) or named; nothing large is decoded."""

import os
import pickle
import struct
import zlib

import pytest
from conftest import picture
from PIL import Image

from parts.files import InputError
from parts.tasks import images
from parts.tasks.images import Visual, image_size, open_image

RESIZED = {  # halves round to even, as the reference does
    ((640, 480), (3136, 401408)): (644, 476), ((20, 20), (3136, 401408)): (56, 56), ((42, 70), (784, 401408)): (56, 56),
    ((4000, 3000), (3136, 401408)): (728, 532), ((5000, 28), (3136, 10000)): (1316, 28),
}  # fmt: skip


def test_images_are_resized_to_multiples_of_28_within_the_limits():
    assert {(size, limits): images.resized_size(*size, 28, *limits) for size, limits in RESIZED} == RESIZED


@pytest.mark.parametrize("form", images.FORMATS)
def test_every_format_is_turned_as_its_file_says_and_has_the_announced_size(tmp_path, form):
    image, exif, file = Image.new("RGB", (80, 40), "red"), Image.Exif(), tmp_path / "a"
    image.paste("blue", (0, 0, 40, 40))
    corner = {1: (79, 39), 2: (0, 0), 3: (0, 0), 4: (79, 0), 5: (0, 79), 6: (0, 79), 7: (0, 0), 8: (39, 0)}  # a red one
    for orientation in (1,) if form in ("GIF", "BMP", "JPEG2000") else range(1, 9):  # those cannot say it
        exif[0x0112] = orientation
        image.save(file, form, exif=exif, quality=95)
        images.file_size.cache_clear()
        opened = open_image(file)
        assert image_size(file) == opened.size == ((40, 80) if orientation > 4 else (80, 40))
        with Image.open(file) as lazy:
            assert image_size(lazy) == opened.size == open_image(lazy).size
        red, _, blue = opened.getpixel(corner[orientation])
        assert red > 200 > blue, orientation


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_any_mode_becomes_rgb_and_what_is_transparent_white(mode):
    image = open_image(Image.new(mode, (30, 20)))
    assert image.mode == "RGB" and (image.getpixel((0, 0)) == (255, 255, 255) or mode not in ("LA", "PA", "RGBA"))


DEEP = [("I;16", 65535), ("I;16", 4095), ("I;16B", 65535), ("I", 65535), ("I", 255), ("F", 1), ("F", 255)]


@pytest.mark.parametrize(("mode", "top"), DEEP)
def test_values_of_more_than_8_bits_are_scaled_by_their_range(tmp_path, mode, top):
    image = Image.new(mode, (2, 1), top)
    image.putpixel((0, 0), top // 2 if top > 1 else 0.5)
    image.save(tmp_path / "a.tif")
    grey, white = (open_image(tmp_path / "a.tif").getpixel((x, 0)) for x in (0, 1))
    assert white == (255, 255, 255) and 126 <= grey[0] <= 128


@pytest.mark.parametrize(("mode", "value"), [("I", -5), ("I", 10**6), ("F", 300.0), ("F", -0.5), ("F", float("nan"))])
def test_values_without_a_usual_range_are_refused(tmp_path, mode, value):
    Image.new(mode, (2, 1), value).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif: values from .*; convert it to 8 bits a channel"):
        open_image(tmp_path / "a.tif")


def test_of_several_pages_the_first_is_taken_with_a_word(tmp_path, capsys):
    picture(64, 48).save(tmp_path / "a.tif", save_all=True, append_images=[picture(30, 20)])
    assert Visual(tmp_path / "a.tif").size == open_image(tmp_path / "a.tif").size == (64, 48)
    assert capsys.readouterr().out == f"note     {tmp_path}/a.tif: has several pages or frames; the first one is taken\n"


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1"
NO_IMAGES = [HEIC, b"", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n", b"<html></html>", b"\xff\xd8\xff\xe0"]


@pytest.mark.parametrize("content", NO_IMAGES)
@pytest.mark.parametrize("use", [image_size, open_image])
def test_what_is_no_image_is_named_whatever_its_name_says(tmp_path, content, use):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"a.jpg: not a complete image in JPEG, PNG, .*; convert others \(HEIC\) to JPEG"):
        use(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(10_000, 5_001), (0, 9), (2**31 - 1, 2)])
@pytest.mark.parametrize("use", [image_size, open_image])
def test_no_image_of_over_50_million_pixels_is_decoded(tmp_path, monkeypatch, size, use):
    picture(64, 48).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", *size)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail(f"decodes {image.size}"))
    with pytest.raises(InputError, match="a.png: "):
        use(tmp_path / "a.png")


def test_nothing_waits_for_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", ".", "absent.png", "a\0.png", "a" * 300):
        with pytest.raises(InputError, match="no such image"):
            open_image(tmp_path / name)


def test_frames_are_spread_evenly_first_and_last_included():
    assert (images.sample(range(3), 8), images.sample(range(1), 8), images.sample(range(9), 1)) == ([0, 1, 2], [0], [0])


def test_visuals_of_the_same_files_or_the_same_objects_have_the_same_key(tmp_path):
    file, drawn, clip = tmp_path / "a.png", picture(60, 40), [f"clip/{i}.jpg" for i in range(3)]
    different = [(file,), (tmp_path / "b.png",), (drawn,), (drawn.copy(),), clip, clip[:2], clip[1:]]
    keys = {Visual(*frames, is_video=is_video).key for frames in different * 2 for is_video in (False, True)}
    assert len(keys) == 2 * len(different)
    assert (str(Visual("a.png")), str(Visual(drawn)), str(Visual(*clip))) == ("a.png", "drawn", "clip/0.jpg")


def test_a_visual_keeps_its_key_and_size_on_its_way_to_another_process():
    visual = Visual(picture(60, 40), picture(60, 40, 1), is_video=True)
    size, copy = visual.size, pickle.loads(pickle.dumps(visual))
    assert copy.frames[0] is not visual.frames[0]
    assert (copy.key, copy.size, copy.is_video) == (visual.key, size, True) and size == (60, 40)

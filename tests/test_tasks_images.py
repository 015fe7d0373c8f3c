"""Images and videos: each file is decoded to what it says (size, orientation, range) or named; nothing large is decoded."""

import os
import pickle
import struct
import zlib

import pytest
from conftest import picture
from PIL import Image
from task_folders import animated

from data import Example
from parts.files import InputError
from parts.tasks.images import (
    MAX_PIXELS,
    Frame,
    Visual,
    image_size,
    open_image,
    resized_size,
    sample,
    video_frames,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)
ENDING = {"JPEG": "jpg", "JPEG2000": "jp2"}


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((640, 480), (3136, 401408), (644, 476)),
        ((20, 20), (3136, 401408), (56, 56)),
        ((4000, 3000), (3136, 401408), (728, 532)),
        ((5000, 28), (3136, 10000), (1316, 28)),
        ((42, 70), (784, 401408), (56, 56)),  # halves round to even, as the reference does
    ],
)
def test_images_are_resized_to_multiples_of_28_within_the_limits(size, limits, expected):
    assert resized_size(*size, 28, *limits) == expected


# -- decoded to what the file says


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "JPEG2000"])
def test_every_format_is_turned_as_its_file_says_and_has_the_announced_size(tmp_path, form):
    for orientation in range(1, 9):
        image, exif = Image.new("RGB", (80, 40), RED), Image.Exif()
        image.paste(BLUE, (0, 0, 40, 40))
        exif[0x0112] = orientation
        file = tmp_path / f"{orientation}.{ENDING.get(form, form.lower())}"
        image.save(file, form, exif=exif, quality=95)
        if form in ("GIF", "BMP", "JPEG2000"):  # cannot say it
            orientation = 1
        size = (40, 80) if orientation > 4 else (80, 40)
        opened = open_image(file)
        assert image_size(file) == opened.size == Visual(file).size == size
        with Image.open(file) as image:
            assert image_size(image) == open_image(image).size == size
        last = {1: (79, 39), 2: (0, 0), 3: (0, 0), 4: (79, 0), 5: (0, 79), 6: (0, 79), 7: (0, 0), 8: (39, 0)}[orientation]
        red, _, blue = opened.getpixel(last)
        assert red > 200 > blue, orientation


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"])
def test_any_mode_becomes_rgb(mode):
    assert open_image(Image.new(mode, (30, 20))).mode == "RGB"


@pytest.mark.parametrize(("mode", "top"), [("I;16", 65535), ("I;16", 4095), ("I;16B", 65535), ("I", 65535), ("I", 255), ("F", 1), ("F", 255)])
def test_values_of_more_than_8_bits_are_scaled_by_their_range(tmp_path, mode, top):
    image = Image.new(mode, (2, 1), top)
    image.putpixel((0, 0), top // 2 if top > 1 else 0.5)
    image.save(tmp_path / "a.tif")
    grey, white = (open_image(tmp_path / "a.tif").getpixel((x, 0)) for x in (0, 1))
    assert white == (255, 255, 255) and 126 <= grey[0] <= 128


@pytest.mark.parametrize(("mode", "value"), [("I", -5), ("I", 10**6), ("F", 300.0), ("F", -0.5)])
def test_values_without_a_usual_range_are_refused(tmp_path, mode, value):
    Image.new(mode, (2, 1), value).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif: values from .*; convert it to 8 bits a channel"):
        open_image(tmp_path / "a.tif")


def test_transparency_becomes_white():
    assert open_image(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_of_several_pages_the_first_is_taken_with_a_word(tmp_path, capsys):
    picture(64, 48).save(tmp_path / "a.tif", save_all=True, append_images=[picture(30, 20)])
    assert Visual(tmp_path / "a.tif").size == (64, 48) and open_image(tmp_path / "a.tif").size == (64, 48)
    assert capsys.readouterr().out == f"note     {tmp_path}/a.tif: has several pages or frames; the first one is taken\n"


# -- refused


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n", b"<html></html>", b"RIFF" + bytes(99)])
def test_what_is_no_image_is_named_whatever_its_name_says(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    for use in (image_size, open_image):
        with pytest.raises(InputError, match="a.png: not a complete image in JPEG, PNG, "):
            use(tmp_path / "a.png")


def test_a_truncated_image_is_named(tmp_path, processor):
    picture(300, 300).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut.jpg: not a complete image"):
        processor([Example([tmp_path / "cut.jpg"], "?")])


def test_a_photograph_in_heic_says_what_to_do(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises(InputError, match="a.heic: not a complete image .*convert a HEIC photograph to JPEG"):
        image_size(tmp_path / "a.heic")


@pytest.mark.parametrize("size", [(10_000, 5_001), (0, 9), (2**31 - 1, 2)])
def test_no_image_of_over_50_million_pixels_is_decoded(tmp_path, monkeypatch, size):
    assert MAX_PIXELS == 50_000_000
    picture(64, 48).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", *size)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail(f"decodes {image.size}"))
    for use in (image_size, open_image):
        with pytest.raises(InputError, match="a.png: "):
            use(tmp_path / "a.png")


def test_nothing_waits_for_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png", "absent.png", "a\0.png", "a" * 300):
        with pytest.raises(InputError, match="no such image"):
            open_image(tmp_path / name)


def test_an_image_with_a_side_ratio_over_200_is_named(tmp_path, processor):
    Image.new("RGB", (2010, 10)).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match="2010 x 10 pixels; one side may be 200 times the other at most"):
        processor([Example([tmp_path / "strip.png"], "?", source="row 3")])
    Image.new("RGB", (2000, 10)).save(tmp_path / "long.png")
    assert processor([Example([tmp_path / "long.png"], "?")]).grids.shape == (1, 3)


# -- videos, and what is shown


def test_frames_are_spread_evenly_first_and_last_included():
    assert sample(20, 8) == [0, 3, 5, 8, 11, 14, 16, 19]
    assert sample(3, 8) == [0, 1, 2] and sample(1, 8) == [0] and sample(9, 1) == [0]


def test_a_frame_of_an_animated_image_is_that_frame(tmp_path, capsys):
    animated(tmp_path / "clip.png", 4)
    frames, count, seconds = video_frames(tmp_path / "clip.png", 4)
    assert count == 4 and seconds == pytest.approx(2.0)
    assert [open_image(frame).tobytes() for frame in frames] == [picture(60, 40, i).tobytes() for i in range(4)]
    assert Visual(*frames, is_video=True).size == (60, 40) and capsys.readouterr().out == ""


def test_a_folder_without_frames_and_a_still_image_are_no_videos(tmp_path):
    with pytest.raises(InputError, match="no frames .* in this folder"):
        video_frames(tmp_path, 8)
    picture(8, 8).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png: a still image, not a video"):
        video_frames(tmp_path / "a.png", 8)


def test_visuals_of_the_same_files_or_the_same_objects_have_the_same_key(tmp_path):
    file, drawn, clip = tmp_path / "a.png", picture(60, 40), [Frame("clip.gif", i) for i in range(3)]
    for frames in ((file,), (str(file),), (drawn,), clip):
        assert Visual(*frames).key == Visual(*frames).key
    others = [Visual(file), Visual(tmp_path / "b.png"), Visual(drawn), Visual(drawn.copy()), Visual(file, is_video=True)]
    others += [Visual(*clip, is_video=True), Visual(*clip[:2], is_video=True), Visual(*clip[1:], is_video=True)]
    assert len({visual.key for visual in others}) == len(others)
    assert (str(Visual("a.png")), str(Visual(drawn)), str(Visual(*clip))) == ("a.png", "drawn", "clip.gif")


def test_a_visual_keeps_its_key_and_size_on_its_way_to_another_process():
    visual = Visual(picture(60, 40), picture(60, 40, 1), is_video=True)
    size, copy = visual.size, pickle.loads(pickle.dumps(visual))
    assert copy.frames[0] is not visual.frames[0]
    assert (copy.key, copy.size, copy.is_video) == (visual.key, size, True) and size == (60, 40)
    assert [open_image(frame).tobytes() for frame in copy.frames] == [frame.tobytes() for frame in visual.frames]

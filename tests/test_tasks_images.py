"""Images and videos: sizes, pixels, frames, and the key of what is shown."""

import pickle

import pytest
from conftest import picture
from PIL import Image
from task_folders import animated

from data import Example
from parts.files import InputError
from parts.tasks.images import (
    Frame,
    Visual,
    image_size,
    open_image,
    resized_size,
    sample,
    video_frames,
)


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


def test_any_mode_becomes_rgb_and_transparency_white():
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"):
        assert open_image(Image.new(mode, (30, 20))).mode == "RGB"
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("I;16", (2, 2), 65535 // 2)).getpixel((0, 0)) == (127, 127, 127)


def test_exif_rotation_is_applied_to_pixels_and_sizes(tmp_path, processor):
    image, file = Image.new("RGB", (80, 40), "red"), tmp_path / "turned.jpg"
    image.paste("blue", (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # hold the camera on its side: turn clockwise by a quarter
    image.save(file, exif=exif, quality=95)
    assert image_size(file) == (40, 80) == open_image(file).size
    top, bottom = open_image(file).getpixel((20, 10)), open_image(file).getpixel((20, 70))
    assert top[2] > 200 > top[0] and bottom[0] > 200 > bottom[2]
    _, h, w = processor.grid(Visual(file))
    assert h > w and len(processor.cut(Visual(file))) == h * w


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_truncated_image_is_named(tmp_path, processor, keep):
    file = tmp_path / "cut.jpg"
    picture(300, 300).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: keep if keep in (0, 10) else len(content) // 2])
    with pytest.raises(InputError, match="cut.jpg: not a complete image"):
        processor([Example([file], "?")])


def test_an_image_with_a_side_ratio_over_200_is_named(tmp_path, processor):
    file = tmp_path / "strip.png"
    Image.new("RGB", (2010, 10)).save(file)
    with pytest.raises(InputError, match="2010 x 10 pixels; one side may be 200 times the other at most"):
        processor([Example([file], "?", source="row 3")])
    Image.new("RGB", (2000, 10)).save(tmp_path / "long.png")
    assert len(processor.cut(Visual(tmp_path / "long.png"))) == 4 * processor.visual_tokens(
        Visual(tmp_path / "long.png")
    )


# -- videos


def test_frames_are_spread_evenly_first_and_last_included():
    assert sample(20, 8) == [0, 3, 5, 8, 11, 14, 16, 19]
    assert sample(3, 8) == [0, 1, 2] and sample(1, 8) == [0] and sample(9, 1) == [0]


def test_a_frame_of_an_animated_image_is_that_frame(tmp_path):
    animated(tmp_path / "clip.png", 4)
    frames, seconds = video_frames(tmp_path / "clip.png", 4)
    assert seconds == pytest.approx(2.0)
    for i, frame in enumerate(frames):
        assert open_image(frame).tobytes() == picture(60, 40, i).tobytes()


def test_a_folder_without_frames_and_a_video_without_any_are_named(tmp_path):
    with pytest.raises(InputError, match="no frames .* in this folder"):
        video_frames(tmp_path, 8)
    with pytest.raises(InputError, match="at least one frame"):
        Visual(is_video=True)


# -- what is shown


def test_visuals_of_the_same_files_or_the_same_objects_have_the_same_key(tmp_path):
    file, drawn = tmp_path / "a.png", picture(60, 40)
    drawn.save(file)
    assert Visual(file).key == Visual(str(file)).key
    assert Visual(drawn).key == Visual(drawn).key
    clip = [Frame("clip.gif", i) for i in range(3)]
    assert Visual(*clip, is_video=True).key == Visual(*clip, is_video=True).key
    copy = drawn.copy()
    others = [Visual(file), Visual(tmp_path / "b.png"), Visual(drawn), Visual(copy), Visual(file, is_video=True)]
    others += [Visual(*clip, is_video=True), Visual(*clip[:2], is_video=True), Visual(*clip[1:], is_video=True)]
    assert len({visual.key for visual in others}) == len(others)


def test_a_visual_keeps_its_key_and_size_on_its_way_to_another_process():
    visual = Visual(picture(60, 40), picture(60, 40, 1), is_video=True)
    size, copy = visual.size, pickle.loads(pickle.dumps(visual))
    assert copy.frames[0] is not visual.frames[0]
    assert (copy.key, copy.size, copy.is_video) == (visual.key, size, True) and size == (60, 40)
    assert [open_image(frame).tobytes() for frame in copy.frames] == [frame.tobytes() for frame in visual.frames]


def test_the_size_of_a_visual_is_asked_once_and_is_that_of_the_open_image(tmp_path, monkeypatch):
    file, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 8
    picture(80, 40).save(file, exif=exif)
    visual = Visual(file)
    assert visual.size == open_image(file).size == (40, 80)
    with Image.open(file) as image:  # a PIL image may carry the tag too
        assert Visual(image).size == open_image(image).size == (40, 80)
    monkeypatch.setattr("parts.tasks.images.image_size", None)
    assert visual.size == (40, 80)


def test_a_visual_is_called_by_its_file_or_drawn():
    assert str(Visual("a.png")) == "a.png" and str(Visual(picture(8, 8))) == "drawn"
    assert str(Visual(Frame("clip.gif", 3), Frame("clip.gif", 5), is_video=True)) == "clip.gif"

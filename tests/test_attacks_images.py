"""Attacks by image files, drawn with a seed: each opens, or ends in one line that names it; nothing hangs or grows."""

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from functools import cache

import pytest
from attacks import MANY
from conftest import ROOT, picture
from local_web import zipped
from PIL import Image
from task_folders import write_lines

from data import load
from parts.files import InputError
from parts.tasks.images import (
    MAX_FRAMES,
    MAX_PIXELS,
    image_size,
    open_image,
    video_frames,
)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@cache
def good_files():
    """{name: bytes}: every format that is read, in its kinds."""
    still, turned = picture(64, 48), Image.Exif()
    turned[0x0112] = 6
    clear, several = (
        still.convert("RGBA"),
        {"save_all": True, "append_images": [picture(64, 48, 1), picture(64, 48, 2)]},
    )
    clear.putalpha(picture(64, 48, 3).convert("L"))
    palette = still.convert("P", palette=Image.Palette.ADAPTIVE)
    return {
        "a.jpg": saved(still, "JPEG"),
        "progressive.jpg": saved(still, "JPEG", progressive=True),
        "turned.jpg": saved(still, "JPEG", exif=turned),
        "cmyk.jpg": saved(still.convert("CMYK"), "JPEG"),
        "phone.jpg": saved(still, "MPO", **several),
        "a.png": saved(still, "PNG"),
        "clear.png": saved(clear, "PNG"),
        "turned.png": saved(still, "PNG", exif=turned),
        "palette.png": saved(palette, "PNG", transparency=3),
        "deep.png": saved(Image.new("I;16", (64, 48), 40000), "PNG"),
        "animated.png": saved(still, "PNG", **several),
        "a.webp": saved(still, "WEBP"),
        "clear.webp": saved(clear, "WEBP", lossless=True),
        "animated.webp": saved(still, "WEBP", **several),
        "a.gif": saved(palette, "GIF"),
        "animated.gif": saved(still, "GIF", **several, disposal=2, transparency=0),
        "a.bmp": saved(still, "BMP"),
        "palette.bmp": saved(palette, "BMP"),
        "a.tif": saved(still, "TIFF"),
        "lzw.tif": saved(clear, "TIFF", compression="tiff_lzw"),
        "deflate.tif": saved(palette, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": saved(still, "TIFF", compression="jpeg"),
        "pages.tif": saved(picture(64, 48), "TIFF", save_all=True, append_images=[picture(64, 48, 1)]),
    }


def flipped(data, draw):
    for _ in range(draw.choice((1, 1, 2, 8, 40))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def flipped_in_the_header(data, draw):
    for _ in range(draw.choice((1, 2, 4))):
        data[draw.randrange(min(len(data), 160))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))


def cut(data, draw):
    del data[draw.randrange(len(data)) :]


def with_a_hole(data, draw):
    start = draw.randrange(len(data))
    del data[start : start + draw.randrange(1, 60)]


def doubled(data, draw):
    start = draw.randrange(len(data))
    data[start:start] = data[start : start + draw.randrange(1, 200)]


def overwritten(data, draw):
    start, size = draw.randrange(len(data)), draw.randrange(1, 60)
    data[start : start + size] = draw.choice((bytes(size), b"\xff" * size, draw.randbytes(size)))


def huge_number(data, draw):
    start = draw.randrange(min(len(data), 200))
    number = draw.choice((0, 0x7F, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, draw.getrandbits(32)))
    data[start : start + 4] = struct.pack(draw.choice("<>") + "I", number)


def other_header(data, draw):
    other, size = draw.choice(list(good_files().values())), draw.choice((4, 8, 12, 30, 64))
    data[:size] = other[:size]


def other_tail(data, draw):
    data[draw.randrange(len(data)) :] = draw.choice(list(good_files().values()))[draw.randrange(100) :]


def noise(data, draw):
    data[draw.choice((2, 4, 8, 16, 32)) :] = draw.randbytes(draw.randrange(400))


DAMAGE = (flipped, flipped_in_the_header, cut, with_a_hole, doubled, overwritten, huge_number, other_header, other_tail)
DAMAGE += (noise,)


def mended(data):
    """A damaged PNG with right checksums, so that the damage is read."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + struct.unpack(">I", data[at : at + 4])[0]
        if end + 4 <= len(data):
            data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return data


def opens(file):
    """Use a file in every way in which the program does."""
    size, image = image_size(file), open_image(file)
    assert image.mode == "RGB" and image.size == size and 0 < size[0] * size[1] <= MAX_PIXELS
    try:
        frames, _ = video_frames(file, 8)
    except InputError as error:
        if "a still image" not in str(error):
            raise
    else:
        assert {open_image(frame).mode for frame in frames} == {"RGB"}


def test_good_files_open(tmp_path):
    for name, content in good_files().items():
        (tmp_path / name).write_bytes(content)
        opens(tmp_path / name)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_file_opens_or_is_named(tmp_path, count, damage):
    draw = random.Random(damage.__name__)
    for i in range(20 if MANY else 2):
        for name, content in good_files().items():
            data, file = bytearray(content), tmp_path / f"{i}-{name}"
            damage(data, draw)
            file.write_bytes(mended(data) if name.endswith("png") and draw.random() < 0.7 else data)
            count.case(file, opens, file)
    assert count.refused > count.worked / 10  # it is damage


def other_formats():
    """{name: bytes} of what is no image, or an image in a format that is not read."""
    forms = ("EPS", "PDF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "IM", "ICNS", "JPEG2000")
    files = {form: saved(picture(64, 64), form) for form in forms}
    return files | {
        "PSD": b"8BPS\0\1" + bytes(6) + b"\0\3" + struct.pack(">IIHH", 48, 64, 8, 3) + bytes(12),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touched) (w) file closefile\nshowpage\n",
        "HTML": b"<html>please log in</html>",
        "archive": zipped({"a.png": "text"}),
        "film": b"\0\0\0\x20ftypisom" + bytes(400),
        "program": b"\x7fELF" + bytes(400),
        "text": b"an image" * 99,
        "nothing": b"",
        "a byte": b"\x89",
        "zeros": bytes(10_000),
        "PNG's first": b"\x89PNG\r\n\x1a\n",
        "JPEG's first": b"\xff\xd8\xff",
        "GIF's first": b"GIF89a",
        "WebP's first": b"RIFF\xff\xff\xff\xffWEBPVP8X",
        "TIFF's first": b"II*\0\x08\0\0\0",
        "BMP's first": b"BM",
    }


def test_other_formats_are_refused_whatever_their_name_says_and_start_no_program(tmp_path, count, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: started.append(args))
    for suffix in ("png", "jpg", "gif", "webp"):
        for i, content in enumerate(other_formats().values()):
            file = tmp_path / f"{i}.{suffix}"
            file.write_bytes(content)
            count.case(f"{file}: not a complete image in JPEG, PNG, ", opens, file)
    assert count.worked == 0 and started == []


def announcing(width, height):
    """{name: a file of every format that says it has this size}."""
    files = {
        name: bytearray(good_files()[name]) for name in ("a.png", "a.jpg", "a.gif", "animated.webp", "a.bmp", "a.tif")
    }
    files["a.png"][16:24] = struct.pack(">II", width, height)
    mended(files["a.png"])
    start = files["a.jpg"].index(b"\xff\xc0") + 5
    files["a.jpg"][start : start + 4] = struct.pack(">HH", min(height, 65535), min(width, 65535))
    files["a.gif"][6:10] = struct.pack("<HH", min(width, 65535), min(height, 65535))
    assert files["animated.webp"][12:16] == b"VP8X"
    for at, side in ((24, width), (27, height)):
        files["animated.webp"][at : at + 3] = struct.pack("<I", min(max(side - 1, 0), 2**24 - 1))[:3]
    files["a.bmp"][18:26] = struct.pack("<II", width, height)
    for tag, side in ((256, width), (257, height)):
        start = files["a.tif"].index(
            struct.pack("<HHI", tag, 4 if struct.pack("<HHI", tag, 4, 1) in files["a.tif"] else 3, 1)
        )
        files["a.tif"][start : start + 12] = struct.pack("<HHII", tag, 4, 1, side)
    return files


SIZES = [(0, 0), (0, 9), (9, 0), (MAX_PIXELS // 1000 + 1, 1000), (9000, 9000), (16383, 16383), (65535, 65535)]
SIZES += [(2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (2**32 - 1, 2**32 - 1)]


def test_a_size_is_refused_before_anything_is_decoded(tmp_path, count, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load_prepare", lambda image: pytest.fail(f"decodes {image.size}"))
    for width, height in SIZES:
        for name, content in announcing(width, height).items():
            file = tmp_path / f"{width}-{height}-{name}"
            file.write_bytes(content)
            count.case(file, image_size, file)
    assert count.refused > 0.7 * (count.worked + count.refused)  # a GIF of no size takes that of its frame


def test_the_line_says_the_size_and_the_limit(tmp_path):
    assert MAX_PIXELS == 50_000_000
    (tmp_path / "a.png").write_bytes(announcing(10_000, 5_001)["a.png"])
    with pytest.raises(InputError, match="a.png: 10000 x 5001 pixels; 1 to 50,000,000 pixels"):
        image_size(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(announcing(2**31 - 1, 2)["a.png"])
    with pytest.raises(InputError, match=r"b.png: Image size \(4294967294 pixels\) exceeds .* 50,000,000 pixels"):
        image_size(tmp_path / "b.png")


def gif(*frames, screen=(1, 1)):
    """A GIF of (left, top, width, height) frames without pixels that are worth anything."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    return head + b"".join(b"," + struct.pack("<HHHHB", *f, 0) + b"\2\2\x44\1\0" for f in frames) + b";"


def test_an_animation_has_a_largest_number_of_frames_and_pixels(tmp_path, count):
    one, large = good_files()["animated.png"], (0, 0, 2000, 2000)
    start = one.index(b"acTL") + 4
    endless = mended(bytearray(one[:start] + struct.pack(">I", 2**31 - 1) + one[start + 4 :]))
    bombs = {
        "frames.gif": gif(*[(0, 0, 1, 1)] * (MAX_FRAMES + 1)),
        "pixels.gif": gif(*[large] * 1251, screen=(2000, 2000)),
        "grows.gif": gif((0, 0, 1, 1), (0, 0, 9000, 9000)),
        "grows-more.gif": gif((0, 0, 1, 1), (65535, 65535, 65535, 65535)),
        "announced.png": endless,
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        count.case(tmp_path / name, video_frames, tmp_path / name, 8)
    assert count.worked == 0


def test_what_is_no_file_is_refused_and_nothing_waits_for_it(tmp_path, count):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    names = ["folder.png", "nowhere.png", "loop.png", "absent.png", "a\0.png", "a" * 300, "folder.png/a.png", "\ud800"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "zero.png").symlink_to("/dev/zero")
        names += ["pipe.png", "zero.png"]
    for name in names:
        for use in (image_size, open_image, lambda file: video_frames(file, 8)):
            if name != "folder.png" or use in (image_size, open_image):
                count.case("no such image", use, tmp_path / name)
    write_lines(tmp_path / "val.jsonl", [{"image": "pipe.png", "prompt": "What?", "answer": "x"}])
    count.case("val.jsonl:1: its image pipe.png is not in", load, "jsonl", tmp_path, "val")
    assert count.worked == 0


LARGEST = """
import io, resource, sys
sys.path.insert(0, sys.argv[1])
from PIL import Image
from parts.tasks.images import MAX_PIXELS, open_image
side, exif = int(MAX_PIXELS**0.5), Image.Exif()
exif[0x0112] = 6
Image.new(sys.argv[3], (side, side)).save(sys.argv[4], sys.argv[2], exif=exif)
"""
OPEN_LARGEST = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from parts.tasks.images import open_image
open_image(sys.argv[4])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(not MANY or sys.platform != "linux", reason="takes half a minute; IMAGELORA_ATTACKS=1 on Linux")
@pytest.mark.parametrize(("form", "mode"), [("PNG", "LA"), ("JPEG", "CMYK"), ("WEBP", "RGBA"), ("TIFF", "RGBA")])
def test_the_largest_image_that_is_read_stays_below_one_gigabyte(tmp_path, form, mode):
    arguments = [str(ROOT), form, mode, str(tmp_path / "largest")]
    subprocess.run([sys.executable, "-c", LARGEST, *arguments], check=True)
    done = subprocess.run([sys.executable, "-c", OPEN_LARGEST, *arguments], check=True, capture_output=True, text=True)
    print(f"\n{form} {mode}: {int(done.stdout) * 1024 / 1e6:.0f} MB")
    assert int(done.stdout) * 1024 < 1e9

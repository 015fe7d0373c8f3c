"""Images and videos: files, sizes (width, height), pixels. A frame is a path, a Frame of an animated file or a PIL image."""

import math
import os
import shlex
import unicodedata
import warnings
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from PIL import Image, ImageOps, ImageSequence

from parts.files import InputError

MAX_RATIO = 200  # of an image's sides: a longer strip cannot be resized to whole patches in a useful way
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ANIMATED = (".gif", ".webp", ".png", ".apng")  # image files that may hold many frames
FILMS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")  # cannot be read here
FRAMES = 8  # taken of a video

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")  # Pillow gives EPS to another program
MAX_PIXELS = 50_000_000  # a file of a few bytes can announce any size; decoded, turned, laid on white, these are 1 GB
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata, and of large images: our limit is lower


class Frame(NamedTuple):
    """One frame of an animated image file (GIF, WebP, PNG)."""

    path: str
    index: int


class Visual:
    """An image, or a video as its frames, of a prompt. key: equal for two Visuals of the same files or the same PIL
    objects."""

    def __init__(self, *frames, is_video=False):
        self.frames, self.is_video = frames, is_video
        self.key = (is_video, *(file_of_frame(frame) or id(frame) for frame in frames))
        self.grids = {}  # see Processor.grid

    @cached_property
    def size(self):
        """(width, height) of the first frame, as `open_image` gives it. Raises InputError for a strip of a useless shape."""
        width, height = size = image_size(self.frames[0])
        if max(size) > MAX_RATIO * min(size):
            raise InputError(f"{self}: {width} x {height} pixels; one side may be {MAX_RATIO} times the other at most")
        return size

    def __str__(self):
        """What messages and reports call it: the file of its first frame, or "drawn" for a PIL image."""
        return (file_of_frame(self.frames[0]) or ("drawn", 0))[0]


def file_of_frame(frame):
    """(path, index in that file) of a path or a Frame; None for a PIL image, which has its pixels in memory."""
    if isinstance(frame, Image.Image):
        return None
    return (str(frame.path), frame.index) if isinstance(frame, Frame) else (str(frame), 0)


def open_image(frame):
    """A path, Frame or PIL image -> PIL image in RGB, turned as its EXIF tag says, transparency on white."""
    if isinstance(frame, Image.Image):
        return to_rgb(ImageOps.exif_transpose(frame), "a drawn image")
    path, index = file_of_frame(frame)
    with opened(path) as file:
        file.seek(index)
        check_size(file, path)  # a frame may be larger than the one before
        ImageOps.exif_transpose(file, in_place=True)  # a copy would take as much memory again
        return to_rgb(file, path)


@contextmanager
def opened(path):
    """An image file, opened by Pillow, of which the header is read. Raises InputError, naming the file, for one that is
    missing, has another format or is too large, and for whatever Pillow objects to inside the block."""
    if not os.path.isfile(path):  # nor a folder, nor a pipe, for which one would wait
        raise InputError(f"{path}: no such image")
    try:
        with Image.open(path, formats=FORMATS) as image:
            check_size(image, path)
            yield image
    except InputError:  # it has its line
        raise
    except Exception as error:  # Pillow has many
        formats = f"{', '.join(FORMATS)}; convert others (HEIC) to JPEG"
        raise InputError(f"{path}: not a complete image in {formats} ({error})") from error


def check_size(image, path):
    """Raises InputError, naming the file, for an image that is empty or too large to be decoded."""
    if not 0 < math.prod(image.size) <= MAX_PIXELS:
        raise InputError(f"{path}: {image.width} x {image.height} pixels; 1 to {MAX_PIXELS:,} are read; resize it")


def to_rgb(image, path):
    """A PIL image -> RGB, transparent pixels white."""
    if image.mode[0] in "IF":
        image = to_8_bits(image, path)
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(clear, mask=clear)
    return image.convert("RGB")


def to_8_bits(image, path):
    """Integers of 16 or 32 bits, or floats, scaled by the smallest usual range that holds all: 0 to 1 (floats), 8, 12 or 16
    bits. Raises InputError if none does."""
    ranges = (1, 255) if image.mode == "F" else (255, 4095, 65535)
    image = image if image.mode == "F" else image.convert("I").convert("F")
    low, high = image.getextrema()
    top = next((top for top in ranges if 0 <= low and high <= top), None)
    if top is None:
        raise InputError(f"{path}: values from {low:g} to {high:g}, not 0 to {ranges}; convert it to 8 bits a channel")
    return image.point(lambda v: v * (255 / top) + 0.5).convert("L")


def image_size(frame):
    """(width, height) of a path, Frame or PIL image, as `open_image` will give it; reads only the header of a file."""
    if isinstance(frame, Image.Image):
        return upright_size(frame)
    return file_size(file_of_frame(frame)[0], isinstance(frame, Frame))


@lru_cache(maxsize=65536)
def file_size(path, is_video=False):
    with opened(path) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO" and not is_video:
            print(f"note     {path}: has several pages or frames; the first one is taken")
        return upright_size(image)


def upright_size(image):
    """The size of a PIL image once it is turned as its EXIF tag says. (Of a TIFF, Pillow announces it.)"""
    on_its_side = image.getexif().get(0x0112) in (5, 6, 7, 8) and image.format != "TIFF"
    return image.size[::-1] if on_its_side else image.size


def resized_size(width, height, factor, min_pixels, max_pixels):
    """The size (width, height) at which the model sees an image: sides in multiples of `factor` (28 pixels, one visual
    token), area within min_pixels and max_pixels, shape kept as well as that allows."""
    w, h = round(width / factor) * factor, round(height / factor) * factor
    if w * h > max_pixels:  # shrink both sides by the same ratio, then round down
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif w * h < min_pixels:  # grow them, then round up
        grow = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return w, h


def within(name, source, root):
    """The path, in the folder `root`, that a row names. Raises InputError, naming the row, for one that would lead out of
    it. Links in the folder are followed: they are its owner's."""
    if not isinstance(name, str):
        raise InputError(f"{source}: a file's name must be a text, got {name!r:.60}")
    path = Path(name.replace("\\", "/"))  # as written on Windows
    if path.is_relative_to(Path(root).absolute()):  # the complete path of a file that is in the folder
        path = path.relative_to(Path(root).absolute())
    parts = PureWindowsPath(path)  # knows drives and shares on every platform
    if parts.anchor or ".." in parts.parts or not parts.parts:
        raise InputError(f"{source}: {name!r:.200} leads out of {root}; name a file in it (links in it are followed)")
    return path


def on_disk(folder, path):
    """folder/path, each part in whichever of Unicode's spellings of accents it exists; None if in none."""
    forms = [(part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)) for part in Path(path).parts]
    files = (Path(folder, *parts) for parts in product(*map(dict.fromkeys, forms)))
    return next((file for file in files if os.path.exists(file)), None)


def find_image(name, source, root, task):
    """The file of an image that a row names, in one of the task's folders of `root`."""
    path = within(name, source, root)
    if file := next(filter(None, (on_disk(Path(root) / folder, path) for folder in task.folders)), None):
        return file
    others = ", ".join(filter(None, task.folders))
    raise InputError(f"{source}: its image {name:.200} is not in {root}{others and f' (nor in {others} of it)'}")


def find_video(name, source, root):
    """The folder of frames or the animated image that a row names. "a.mp4" is looked for as "a", "a.gif", ...; if there is
    only the film, the error says how to cut it into frames."""
    film = within(name, source, root)
    path = film.with_suffix("") if film.suffix.lower() in FILMS else film
    if file := next(filter(None, (on_disk(root, f"{path}{suffix}") for suffix in ("", *ANIMATED))), None):
        return file
    target, film = (shlex.quote(f"{root}/{file}") for file in (path, film if film != path else f"{path}.mp4"))
    hint = f"; make one: mkdir -p {target} && ffmpeg -i {film} -vf fps=2 {target}/%05d.jpg" if len(target) < 300 else ""
    raise InputError(f"{source}: no folder of frames or animated image {path!s:.200}{hint}")


def video_frames(path, wanted):
    """(frames, number of all, seconds or None) of a video: a folder of images in the order of their names, or an animated
    image file. At most `wanted` frames, evenly spread. A folder does not say how long it lasts."""
    if os.path.isdir(path):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES)
        if not files:
            raise InputError(f"{path}: no frames ({', '.join(FRAME_SUFFIXES)}) in this folder")
        return [files[i] for i in sample(len(files), wanted)], len(files), None
    milliseconds = []
    with opened(path) as file:
        for frame in ImageSequence.Iterator(file):  # each says how long it is shown
            check_size(frame, path)
            milliseconds.append(frame.info.get("duration", 0))
    count = len(milliseconds)
    if count == 1:
        raise InputError(f"{path}: a still image, not a video")
    return [Frame(str(path), i) for i in sample(count, wanted)], count, sum(milliseconds) / 1000 or None


def sample(count, wanted):
    """`wanted` numbers spread evenly over range(count), first and last included; all of them if there are fewer."""
    wanted = min(wanted, count)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]

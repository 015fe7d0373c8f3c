"""Images and videos: what is at one place of a prompt, its size, its pixels.

A frame is a path, a Frame of an animated file, or a PIL image. Sizes are (width, height).
"""

import math
import os
import shlex
import struct
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PureWindowsPath

from PIL import Image, ImageOps

from parts.files import InputError

MAX_RATIO = 200  # of an image's sides: a longer strip cannot be resized to whole patches in a useful way
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange width and height
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ANIMATED = (".gif", ".webp", ".png", ".apng")  # image files that may hold many frames
FILMS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")  # cannot be read here
FRAMES = 8  # taken of a video

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows 40 more, and gives EPS to another program
# A file of a few bytes can announce any size, and a pixel takes up to 16 bytes on its way: decoded, turned, laid on white.
# So this many pixels stay below 1 GB. A photo of 48 megapixels is read.
MAX_PIXELS = 50_000_000
MAX_FRAMES = 10_000  # of an animated file, and as many pixels in all as a hundred of the largest images
BROKEN = (  # all that Pillow is known to raise for a broken file; only its own calls are inside `opened`
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(AssertionError, RuntimeError, MemoryError, struct.error, zlib.error),
)
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata, and of large images: our limit is lower


@dataclass(frozen=True)
class Frame:
    """One frame of an animated image file (GIF, WebP, PNG)."""

    path: str
    index: int


class Visual:
    """An image, or a video as its frames, of a prompt.

    key: equal for two Visuals of the same files or the same PIL objects. It is made at once and goes with the Visual into
    other processes, where a PIL object has another id.
    """

    def __init__(self, *frames, is_video=False):
        if not frames:
            raise InputError("an image or a video needs at least one frame")
        self.frames, self.is_video = frames, is_video
        self.key = (is_video, *(file_of_frame(frame) or id(frame) for frame in frames))
        self.grids = {}  # see Processor.grid

    @cached_property
    def size(self):
        """(width, height) of the first frame, as `open_image` gives it. Raises InputError for a strip of a useless shape."""
        width, height = image_size(self.frames[0])
        if max(width, height) > MAX_RATIO * min(width, height):
            size = f"{width} x {height} pixels"
            raise InputError(f"{self}: {size}; one side may be {MAX_RATIO} times the other at most")
        return width, height

    def __str__(self):
        """What messages and reports call it: the file of its first frame, or "drawn" for a PIL image."""
        path, _ = file_of_frame(self.frames[0]) or ("drawn", 0)
        return path


def file_of_frame(frame):
    """(path, index in that file) of a path or a Frame; None for a PIL image, which has its pixels in memory."""
    if isinstance(frame, Image.Image):
        return None
    if isinstance(frame, Frame):
        return str(frame.path), frame.index
    return str(frame), 0


# -- pixels


def open_image(frame):
    """A path, Frame or PIL image -> PIL image in RGB, turned as its EXIF tag says, transparency on white."""
    source = file_of_frame(frame)
    if source is None:
        return to_rgb(ImageOps.exif_transpose(frame))
    path, index = source
    with opened(path) as file:
        file.seek(index)
        check_size(file, path)  # a frame may be larger than the one before
        ImageOps.exif_transpose(file, in_place=True)  # a copy would take as much memory again
        return to_rgb(file)


@contextmanager
def opened(path):
    """An image file, opened by Pillow; its header is read, its pixels are not. Raises InputError, naming the file, for
    one that is missing, has another format or is too large, and for whatever Pillow finds wrong inside the block."""
    if not os.path.isfile(path):  # nor a folder, nor a pipe, for which one would wait
        raise InputError(f"{path}: no such image")
    try:
        with Image.open(path, formats=FORMATS) as image:
            check_size(image, path)
            yield image
    except InputError:  # says it already
        raise
    except Image.DecompressionBombError as error:  # so large that Pillow itself refuses
        raise InputError(f"{path}: {error} At most {MAX_PIXELS:,} pixels are read; resize it") from None
    except BROKEN as error:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise InputError(f"{path}: not a complete image in {formats} ({str(error) or repr(error)})") from None


def check_size(image, path, frames=1):
    """Raises InputError, naming the file, for an image that is empty or too large to be decoded."""
    (width, height), most = image.size, MAX_PIXELS if frames == 1 else 100 * MAX_PIXELS
    if not 0 < width * height * frames <= most or frames > MAX_FRAMES:
        size = f"{width} x {height} pixels" + f" in {frames:,} frames" * (frames > 1)
        raise InputError(f"{path}: {size}; 1 to {most:,} pixels in at most {MAX_FRAMES:,} frames are read; resize it")


def to_rgb(image):
    # 16 bits a pixel: keep the upper 8
    if image.mode.startswith("I;16"):
        image = image.point(lambda v: v / 256).convert("L")
    # transparent: lay it on white
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image.convert("RGB")


# -- sizes


def image_size(frame):
    """(width, height) of a path, Frame or PIL image, as `open_image` will give it; reads only the header of a file."""
    source = file_of_frame(frame)
    if source is None:
        return upright_size(frame)
    path, _ = source
    return file_size(path)


@lru_cache(maxsize=65536)
def file_size(path):
    with opened(path) as image:
        return upright_size(image)


def upright_size(image):
    """The size of a PIL image once it is turned as its EXIF tag says."""
    width, height = image.size
    if image.getexif().get(ORIENTATION, 1) in ON_ITS_SIDE:
        return height, width
    return width, height


def resized_size(width, height, factor, min_pixels, max_pixels):
    """The size (width, height) at which the model sees an image: sides in multiples of `factor` (28 pixels, one visual
    token), area within min_pixels and max_pixels, shape kept as well as that allows."""
    w, h = round(width / factor) * factor, round(height / factor) * factor
    # too large: shrink both sides by the same ratio, then round down
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    # too small: grow them, then round up
    elif w * h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return w, h


# -- names in annotations


def within(name, source, root):
    """The path, in the folder `root`, that an annotation names. Raises InputError, naming the row, for one that would lead
    out of it. Links in the folder are followed: they are its owner's."""
    if not isinstance(name, str):
        raise InputError(f"{source}: a file's name must be a text, got {name!r:.60}")
    path = Path(name)
    if path.is_relative_to(Path(root).absolute()):  # the complete path of a file that is in the folder
        path = path.relative_to(Path(root).absolute())
    parts = PureWindowsPath(str(path))  # knows "/" and "\\", drives and shares, on every platform
    if parts.anchor or ".." in parts.parts or not parts.parts:
        raise InputError(f"{source}: {name!r:.200} leads out of {root}; name a file in it (links there are followed)")
    return path


# -- videos


def find_video(names, source, *folders):
    """The folder of frames or the animated image of a video, by the first of its names that is in one of the folders.
    "a.mp4" is looked for as "a", "a.gif", ...; if there is only the film, the error says how to cut it into frames."""
    names = [within(name, source, folders[0]) for name in names]
    films = [Path(folder) / name for name in names for folder in folders]
    bare = [film.with_suffix("") if film.suffix.lower() in FILMS else film for film in films]
    for path in bare:
        for suffix in ("", *ANIMATED):
            found = path.with_name(path.name + suffix)
            if os.path.exists(found):  # False for what cannot be a name; Path.exists raises
                return found
    films += [path.with_name(path.name + suffix) for path in bare for suffix in FILMS]
    film = next((film for film in films if os.path.isfile(film)), f"{bare[0].name}.mp4")
    target, film = shlex.quote(str(bare[0])), shlex.quote(str(film))
    hint = f"; make one: mkdir -p {target} && ffmpeg -i {film} -vf fps=2 {target}/%05d.jpg"
    hint = hint if len(hint) < 600 else ""
    raise InputError(f"{source}: no folder of frames or animated image {bare[0]!s:.300}{hint}")


def video_frames(path, wanted, rate=None):
    """(frames, seconds or None) of a video: a folder of images in the order of their names, or an animated image file.
    At most `wanted` frames, evenly spread. rate: frames a second of a video that does not say it. Raises InputError for
    a folder without frames and a file with a single one."""
    # a folder: it says nothing about time
    if os.path.isdir(path):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES)
        if not files:
            raise InputError(f"{path}: no frames (.jpg, .png, .webp) in this folder")
        return [files[i] for i in sample(len(files), wanted)], len(files) / rate if rate else None
    # an animated file: each frame says how long it is shown
    with opened(path) as file:
        count, milliseconds = getattr(file, "n_frames", 1), 0
        check_size(file, path, count)
        for i in range(count):
            file.seek(i)
            check_size(file, path)
            milliseconds += file.info.get("duration", 0)
    if count == 1:
        raise InputError(f"{path}: a still image, not a video")
    seconds = milliseconds / 1000 or (count / rate if rate else None)
    return [Frame(str(path), i) for i in sample(count, wanted)], seconds


def sample(count, wanted):
    """`wanted` numbers spread evenly over range(count), first and last included; all of them if there are fewer."""
    wanted = min(wanted, count)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]

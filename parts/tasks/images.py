"""Images and videos: files, sizes (width, height), pixels. An image is a path or a PIL image, a video a list of them."""

import math
import os
import shlex
import unicodedata
import warnings
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path, PureWindowsPath

from PIL import Image, ImageOps

from parts.files import InputError

MAX_RATIO = 200  # of an image's sides: a longer strip cannot be resized to whole patches in a useful way
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FILMS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".gif")  # are cut into frames
FRAMES = 8  # taken of a video

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")  # Pillow gives EPS to another program
MAX_PIXELS = 50_000_000  # a file of a few bytes can announce any size; decoded, turned, laid on white, these are 1 GB
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata, and of large images: our limit is lower


class Visual:
    """An image, or a video as its frames, of a prompt. key: equal for two Visuals of the same files or the same PIL
    objects."""

    def __init__(self, *frames, is_video=False):
        self.frames, self.is_video = frames, is_video
        self.key = (is_video, *(id(frame) if isinstance(frame, Image.Image) else str(frame) for frame in frames))
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
        return "drawn" if isinstance(self.frames[0], Image.Image) else str(self.frames[0])


def open_image(image):
    """A path or PIL image -> PIL image in RGB, turned as its EXIF tag says, transparency on white."""
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image), "a drawn image")
    with opened(image) as file:
        ImageOps.exif_transpose(file, in_place=True)  # a copy would take as much memory again
        return to_rgb(file, image)


@contextmanager
def opened(path):
    """An image file, opened by Pillow, of which the header is read. Raises InputError, naming the file, for one that is
    missing, has another format, is empty or too large, and for whatever Pillow objects to inside the block."""
    if not os.path.isfile(path):  # nor a folder, nor a pipe, for which one would wait
        raise InputError(f"{path}: no such image")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if not 0 < math.prod(image.size) <= MAX_PIXELS:
                raise InputError(f"{path}: {image.width} x {image.height} pixels; 1 to {MAX_PIXELS:,} are read; resize it")
            yield image
    except InputError:  # it has its line
        raise
    except Exception as error:  # Pillow has many
        formats = f"{', '.join(FORMATS)}; convert others (HEIC) to JPEG"
        raise InputError(f"{path}: not a complete image in {formats} ({error})") from error


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


def image_size(image):
    """(width, height) of a path or PIL image, as `open_image` will give it; reads only the header of a file."""
    return upright_size(image) if isinstance(image, Image.Image) else file_size(str(image))


@lru_cache(maxsize=65536)
def file_size(path):
    with opened(path) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":
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


def on_disk(path, folders):
    """The path in the first of the folders that has it, each part in whichever of Unicode's spellings of accents; or None."""
    forms = [(part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)) for part in path.parts]
    files = (Path(folder, *parts) for folder, *parts in product(folders, *map(dict.fromkeys, forms)))
    return next((file for file in files if os.path.exists(file)), None)


def find_image(name, source, root, task):
    """The file of an image that a row names, in one of the task's folders of `root`."""
    if file := on_disk(within(name, source, root), [Path(root) / folder for folder in task.folders]):
        return file
    others = ", ".join(filter(None, task.folders))
    raise InputError(f"{source}: its image {name:.200} is not in {root}{others and f' (nor in {others} of it)'}")


def find_frames(name, source, root):
    """The frames of a video: the images, in the order of their names, in the folder that a row names. "a.mp4" is looked for
    as "a"; without frames, the error says how to cut them out of the film."""
    film = within(name, source, root)
    path = film.with_suffix("") if film.suffix.lower() in FILMS else film
    folder = on_disk(path, [root])
    files = folder.iterdir() if folder and folder.is_dir() else ()
    if frames := sorted(file for file in files if file.suffix.lower() in FRAME_SUFFIXES):
        return frames
    target, film = (shlex.quote(f"{root}/{file}") for file in (path, film if film != path else f"{path}.mp4"))
    hint = f"; make one: mkdir -p {target} && ffmpeg -i {film} -vf fps=2 {target}/%05d.jpg" if len(target) < 300 else ""
    raise InputError(f"{source}: no folder of frames ({', '.join(FRAME_SUFFIXES)}) {path!s:.200}{hint}")


def sample(items, wanted):
    """`wanted` items spread evenly over all of them, first and last included; all if there are fewer."""
    wanted = min(wanted, len(items))
    return [items[round(i * (len(items) - 1) / max(1, wanted - 1))] for i in range(wanted)]

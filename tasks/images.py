"""Image files, animated images and folders of frames: opened, turned, measured."""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageOps

from files import InputError

MAX_RATIO = 200  # of an image's sides: a longer strip cannot be resized to whole patches in a useful way


@dataclass(frozen=True)
class Frame:
    """One frame of an animated image file (GIF, WebP, PNG)."""

    path: str
    index: int


def resized_size(width, height, factor, min_pixels, max_pixels):
    """The size (width, height) at which the model sees an image: sides in multiples of `factor` (28 pixels, one visual
    token), area within min_pixels and max_pixels, shape kept as well as that allows."""
    w, h = round(width / factor) * factor, round(height / factor) * factor
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif w * h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return w, h


@contextmanager
def opened(path):
    """An image file, opened by Pillow; whatever shows that it is not a whole image becomes an InputError naming it."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:  # Pillow's, all of them
        raise InputError(f"{path}: not a whole image ({error})") from None


def open_image(image):
    """A path, Frame or PIL image -> PIL image in RGB, turned as its EXIF tag says, transparency on white."""
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    with opened(image.path if isinstance(image, Frame) else image) as file:
        file.seek(image.index if isinstance(image, Frame) else 0)
        return to_rgb(ImageOps.exif_transpose(file))


def to_rgb(image):
    if image.mode.startswith("I;16"):
        image = image.point(lambda v: v / 256).convert("L")  # 16 bits a pixel: keep the upper 8
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@lru_cache(maxsize=65536)
def file_size(path):
    """(width, height) of an image file as `open_image` will give it; reads the header only."""
    with opened(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation: on its side
        return image.size[::-1] if turned else image.size


def image_key(image):
    """Equal for the same path and for the same PIL object, one picture; for a video of the same frames."""
    if isinstance(image, tuple):
        return tuple(image_key(frame) for frame in image)
    return id(image) if isinstance(image, Image.Image) else str(image)


def image_size(image):
    """(width, height) of a path, Frame or PIL image."""
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).size
    return file_size(str(image.path if isinstance(image, Frame) else image))


def sample(count, wanted):
    """`wanted` places spread evenly over range(count), first and last included; all of them if there are fewer."""
    wanted = min(wanted, count)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]


def video_frames(path, wanted):
    """(frames, seconds or None) of a video: a folder of images in the order of their names, or an animated image file.
    At most `wanted` frames, evenly spread. Raises InputError if there is nothing to see."""
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        if not files:
            raise InputError(f"{path}: no frames (.jpg, .png, .webp) in this folder")
        return [files[i] for i in sample(len(files), wanted)], None
    with opened(path) as file:
        count, milliseconds = getattr(file, "n_frames", 1), 0
        for i in range(count):
            file.seek(i)
            milliseconds += file.info.get("duration", 0)
    return [Frame(str(path), i) for i in sample(count, wanted)], milliseconds / 1000 or None

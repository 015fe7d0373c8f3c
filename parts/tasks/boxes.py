"""Boxes (x1, y1, x2, y2), from the left upper to the right lower corner in pixels, and points: checked, converted between
the image and what the model sees, read from text, scored, drawn."""

import math
import re
from itertools import product
from statistics import median

from parts.files import InputError
from parts.tasks.images import image_size

NUMBER = r"\s*[-+]?(?:\d{1,9}(?:\.\d*)?|\.\d+)\s*"  # of at most nine digits before the point, so that none is infinite
PAIR = rf"(?:\[{NUMBER},{NUMBER}\]|\({NUMBER},{NUMBER}\))"
TURNED = "; did its EXIF orientation turn it? Sizes and boxes are those of the upright image"


class OutsideImage(InputError):
    """A box that does not lie in its image. box, size: which one, and the image's (width, height)."""

    def __init__(self, source, box, size, image):
        turned = TURNED if lies_inside(box, size[::-1]) else ""
        super().__init__(f"{source}: box {box} does not lie in its image {image} of {size[0]} x {size[1]} pixels{turned}")
        self.box, self.size = box, size


def corners(box):
    """(x, y, width, height) -> (x1, y1, x2, y2)."""
    x, y, w, h = box
    return (x, y, x + w, y + h)


def is_box(value):
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(type(n) in (int, float) for n in value)


def check_box(row, source, images):
    """The row's box as (x1, y1, x2, y2), inside its only image but for a pixel of rounding."""
    box = row["bbox"]
    if not is_box(box):
        raise InputError(f"{source}: a box is four numbers [x1, y1, x2, y2], got {box!r:.60}")
    if len(images) != 1:
        raise InputError(f"{source}: a box needs exactly one image, got {len(images)}")
    size = image_size(images[0])
    if max(box) <= 1:
        raise InputError(f"{source}: box {list(box)} looks relative (0 to 1); boxes are in pixels of the image")
    if not lies_inside(box, size):
        raise OutsideImage(source, list(box), size, images[0])
    return tuple(box)


def lies_inside(box, size):
    """Whether the corners are in order and in the image, but for a pixel of rounding."""
    x1, y1, x2, y2 = box
    return -1 <= x1 < x2 <= size[0] + 1 and -1 <= y1 < y2 <= size[1] + 1


def ask_about_units(boxes):
    """A question if the boxes of a file look like other units than pixels from corner to corner, else "". boxes: (box,
    (width, height) of its image) pairs."""
    # x, y, width, height: two or more fail as corners, and (nearly) all fit as sizes
    count, failing = len(boxes), sum(not lies_inside(box, size) for box, size in boxes)
    fitting = sum(lies_inside(corners(box), size) for box, size in boxes)
    if failing >= 2 and fitting >= 0.95 * count:
        asked = f"{failing} of {count} boxes fail as corners, but {fitting} fit as sizes: is this x, y, w, h?"
        return f"{asked} Then write [x, y, x + w, y + h]"
    # parts of the sides: they fill the range to its end, and the images are larger
    end = max((max(box) for box, _ in boxes), default=0)
    for top, unit in ((100, "percent"), (1000, "thousandths")):
        if count >= 4 and 0.8 * top <= end <= top and all(min(size) > 1.5 * top for _, size in boxes):
            asked = f"all {count} boxes end at {end:g}, but the images are larger: are these {unit} of the sides?"
            return f"{asked} Then multiply x by width / {top} and y by height / {top}"
    return ""


def small_targets(boxes, sizes, resized, token):
    """A warning if the model sees the median target smaller than half a visual token, else None. sizes, resized:
    (width, height) of the images and as the model sees them; token: pixels a side of a visual token."""
    sides = []  # the shorter one of each target, as the model sees it
    for (x1, y1, x2, y2), size, seen in zip(boxes, sizes, resized):
        sides.append(min((x2 - x1) * seen[0] / size[0], (y2 - y1) * seen[1] / size[1]))
    if not sides or median(sides) >= token / 2:
        return None
    share = sum(side < token / 2 for side in sides) / len(sides)
    flag = "--max-pixels" if any(math.prod(seen) < math.prod(size) for seen, size in zip(resized, sizes)) else "--min-pixels"
    target = f"the shorter side of the median target is {median(sides):.1f} pixels as the model sees it"
    return f"{target}; {share:.0%} are smaller than half a visual token ({token / 2:g} pixels): raise {flag}"


def box_to_model(box, size, scale, end=1):
    """A box in pixels of an image of (width, height) `size` -> whole numbers on the scale in which the model writes: the
    resized image's pixels for Qwen2.5-VL, 1000 x 1000 for Qwen3-VL. end: how far below the scale the largest number is.
    1: it is the last pixel, as in the converter of Qwen's fine-tuning data; 0: it is the edge."""
    sides = zip(box, [*scale] * 2, [*size] * 2)
    return [max(0, min(round(c * (side / whole)), side - end)) for c, side, whole in sides]


def box_from_model(box, size, scale):
    """A box on the model's scale -> pixels of the original image."""
    return [c * (whole / side) for c, side, whole in zip(box, [*scale] * 2, [*size] * 2)]


def read_numbers(inside):
    """The inside of a bracket, "1, 2.5", as [1.0, 2.5]; [] if it holds anything but numbers."""
    numbers = inside.split(",")
    return [float(n) for n in numbers] if all(re.fullmatch(NUMBER, n) for n in numbers) else []


def parse_box(text):
    """The first bracket in generated text that holds exactly four numbers, as [x1, y1, x2, y2], or None.
    Qwen's own {"bbox_2d": [...]} is read too."""
    brackets = map(read_numbers, re.findall(r"\[([^\[\]]*)\]", text))
    return next((numbers for numbers in brackets if len(numbers) == 4), None)


def parse_point(text):
    """The first bracket, [] or (), that holds exactly two numbers (a point) or exactly four (a box: its centre), as
    [x, y], or None. Two points with a comma between them, "(1, 2), (3, 4)", are the corners of a box."""
    text = re.sub(rf"{PAIR}\s*,\s*{PAIR}", lambda two: f"[{','.join(re.findall(NUMBER, two[0]))}]", text)
    for square, rounded in re.findall(r"\[([^\[\]()]*)\]|\(([^\[\]()]*)\)", text):
        if len(numbers := read_numbers(square or rounded)) in (2, 4):
            return [(a + b) / 2 for a, b in zip(numbers[:2], numbers[-2:])]  # a point is its own centre
    return None


def in_another_scale(box, scale):
    """Whether the model seems to mean other units than those of its scale: all four values at most 1 (relative), or one
    beyond the sides by more than 1 (thousandths instead of pixels, or pixels instead of thousandths)."""
    return max(box) <= 1 or any(c > side + 1 for c, side in zip(box, [*scale] * 2))


def iou(a, b):
    """Intersection over union of two boxes. 0 for a box whose corners are swapped."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def score_iou(text, reference, size, resized):
    """RefCOCO family, accuracy@0.5: right if the IoU with the reference box is at least 0.5. The reference and
    `parsed` are boxes in pixels of the original image."""
    if (box := parse_box(text)) is None:
        return None, 0.0
    box = box_from_model(box, size, resized)
    return box, float(iou(box, reference) >= 0.5)


def score_point(text, reference, size, resized):
    """ScreenSpot family: right if the point is in the reference box (in pixels of the original image), edges included.
    `parsed` is [x, y] in the same pixels. Points on another scale than the model's (0 to 1) are not converted, so they
    count as wrong."""
    if (point := parse_point(text)) is None:
        return None, 0.0
    x, y = (c * whole / side for c, whole, side in zip(point, size, resized))  # * before /, so that edges stay exact
    x1, y1, x2, y2 = reference
    return [x, y], float(x1 <= x <= x2 and y1 <= y <= y2)


def draw_box(pen, box, colour, width=3, dash=0):
    """Draws a box around its pixels, never over them, so that small things stay visible. A white line goes around it.
    pen: PIL's ImageDraw; dash: the length of its dashes, 0 for none."""
    x1, y1, x2, y2 = (round(c) for c in box)
    left, top, right, bottom = min(x1, x2) - width, min(y1, y2) - width, max(x1, x2) + width - 1, max(y1, y2) + width - 1
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=width + 1)
    dash = dash or max(right - left, bottom - top) + 1  # one that is as long as the side
    for x, y in product(range(left, right + 1, 2 * dash), (top, bottom - width + 1)):
        pen.rectangle((x, y, min(x + dash - 1, right), y + width - 1), colour)
    for x, y in product((left, right - width + 1), range(top, bottom + 1, 2 * dash)):
        pen.rectangle((x, y, x + width - 1, min(y + dash - 1, bottom)), colour)

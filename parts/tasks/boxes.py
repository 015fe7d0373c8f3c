"""Boxes and points: checked, converted between the image and what the model sees, read from text, scored.

A box is (x1, y1, x2, y2): its left upper and its right lower corner, in pixels.
"""

import math
import re
from statistics import median, quantiles

from parts.files import InputError
from parts.tasks.images import image_size

# At most nine digits before the point: a model that repeats a digit without end would write an infinite number.
NUMBER = r"\s*[-+]?(\d{1,9}(\.\d*)?|\.\d+)\s*"


class OutsideImage(InputError):
    """A box that does not lie in its image."""


def corners(box):
    """(x, y, width, height) -> (x1, y1, x2, y2)."""
    x, y, w, h = box
    return (x, y, x + w, y + h)


def is_box(value):
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(type(n) in (int, float) for n in value)


def check_box(row, source, images):
    """The row's box as (x1, y1, x2, y2), inside its image but for a pixel of rounding."""
    box = row["bbox"]
    if not is_box(box):
        raise InputError(f"{source}: a box is four numbers [x1, y1, x2, y2], got {box!r:.60}")
    if len(images) != 1:
        raise InputError(f"{source}: a box needs exactly one image, got {len(images)}")
    # one image, of the size that the row says
    width, height = image_size(images[0])
    written = (row.get("width", width), row.get("height", height))
    if written != (width, height):
        turned = "; its EXIF orientation turns the photograph on its side" if written == (height, width) else ""
        size = f"says {written[0]:g} x {written[1]:g} pixels, but {images[0]} has {width} x {height}"
        raise InputError(f"{source}: {size}{turned}; the box would be off")
    # in pixels, corners in order, inside
    if max(box) <= 1:
        raise InputError(f"{source}: box {list(box)} looks relative (0 to 1); boxes are in pixels of the image")
    if not lies_inside(box, width, height):
        outside = f"does not lie in its image {images[0]} of {width} x {height} pixels"
        raise OutsideImage(f"{source}: box {list(box)} {outside}")
    return tuple(box)


def lies_inside(box, width, height):
    """Whether the corners are in order and in the image, but for a pixel of rounding."""
    x1, y1, x2, y2 = box
    return -1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1


def ask_about_units(boxes):
    """A question if the boxes of a file look like other units than pixels from corner to corner, else "". boxes: (box,
    (width, height) of its image) pairs."""
    # x, y, width, height: two or more fail as corners, and (nearly) all fit as sizes
    failing = sum(not lies_inside(box, *size) for box, size in boxes)
    fitting = sum(lies_inside(corners(box), *size) for box, size in boxes)
    if failing >= 2 and fitting >= 0.95 * len(boxes):
        asked = f"{failing} of {len(boxes)} boxes fail as corners, but {fitting} fit as sizes: is this x, y, w, h?"
        return f"{asked} Then write [x, y, x + w, y + h]"
    # parts of the sides: they fill the range to its end, and the images are larger
    largest = max((max(box) for box, _ in boxes), default=0)
    for top, unit in ((100, "percent"), (1000, "thousandths")):
        larger = all(min(size) > 1.5 * top for _, size in boxes)
        if len(boxes) >= 4 and larger and 0.8 * top <= largest <= top:
            asked = f"all {len(boxes)} boxes end at {largest:g}, but the images are larger: are these {unit} of the sides?"
            return f"{asked} Then multiply x by width / {top} and y by height / {top}"
    return ""


def small_targets(boxes, sizes, resized, token):
    """A warning if the model sees the median target smaller than half a visual token, else None. sizes, resized:
    (width, height) of the images and as the model sees them; token: pixels a side of a visual token."""
    sides = []  # the shorter one of each target, as the model sees it
    for (x1, y1, x2, y2), (width, height), (seen_width, seen_height) in zip(boxes, sizes, resized):
        sides.append(min((x2 - x1) * seen_width / width, (y2 - y1) * seen_height / height))
    if not sides or median(sides) >= token / 2:
        return None
    share = sum(side < token / 2 for side in sides) / len(sides)
    shrunk = any(math.prod(seen) < math.prod(size) for seen, size in zip(resized, sizes))
    return (
        f"the shorter side of the median target is {median(sides):.1f} pixels as the model sees it; {share:.0%} are "
        f"smaller than half a visual token ({token / 2:g} pixels): raise {'--max-pixels' if shrunk else '--min-pixels'}"
    )


# -- between the image as it is on disk and as the model sees it


def box_to_model(box, size, scale, end=1):
    """A box in pixels of the original image -> whole numbers on the scale (width, height) in which the model writes: the
    resized image's pixels for Qwen2.5-VL, 1000 x 1000 for Qwen3-VL.

    end: how far below the scale the largest number of a side is. 1: it is the last pixel, as in the converter of Qwen's
    fine-tuning data; 0: it is the edge.
    """
    (width, height), x1, y1, x2, y2 = scale, *box
    sx, sy = width / size[0], height / size[1]

    def number(c, side):
        return max(0, min(round(c), side - end))

    return [number(x1 * sx, width), number(y1 * sy, height), number(x2 * sx, width), number(y2 * sy, height)]


def box_from_model(box, size, scale):
    """A box on the model's scale -> pixels of the original image."""
    sx, sy = size[0] / scale[0], size[1] / scale[1]
    return [box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy]


# -- from text


def read_numbers(inside):
    """The inside of a bracket, "1, 2.5", as [1.0, 2.5]; [] if it holds anything but numbers."""
    numbers = inside.split(",")
    if not all(re.fullmatch(NUMBER, n) for n in numbers):
        return []
    return [float(n) for n in numbers]


def parse_box(text):
    """The first bracket in generated text that holds exactly four numbers, as [x1, y1, x2, y2], or None.
    Qwen's own {"bbox_2d": [...]} is read too."""
    for inside in re.findall(r"\[([^\[\]]*)\]", text):
        numbers = read_numbers(inside)
        if len(numbers) == 4:
            return numbers
    return None


def parse_point(text):
    """The first bracket, [] or (), that holds exactly two numbers (a point) or exactly four (a box: its centre), as
    [x, y], or None. Two points with a comma between them, "(1, 2), (3, 4)", are the corners of a box."""
    brackets = list(re.finditer(r"\[([^\[\]()]*)\]|\(([^\[\]()]*)\)", text))
    found = [read_numbers(bracket[1] or bracket[2] or "") for bracket in brackets]
    for i, numbers in enumerate(found):
        if len(numbers) == 2 and i + 1 < len(found) and len(found[i + 1]) == 2:
            between = text[brackets[i].end() : brackets[i + 1].start()]
            if between.strip() == ",":
                numbers = numbers + found[i + 1]
        if len(numbers) == 2:
            return numbers
        if len(numbers) == 4:
            x1, y1, x2, y2 = numbers
            return [(x1 + x2) / 2, (y1 + y2) / 2]
    return None


def in_another_scale(box, scale):
    """Whether the model seems to mean other units than those of its scale: all four values at most 1 (relative), or one
    beyond the sides by more than 1 (thousandths instead of pixels, or pixels instead of thousandths)."""
    width, height = scale
    return max(box) <= 1 or max(box[0], box[2]) > width + 1 or max(box[1], box[3]) > height + 1


# -- scores


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
    box = parse_box(text)
    if box is None:
        return None, 0.0
    box = box_from_model(box, size, resized)
    return box, float(iou(box, reference) >= 0.5)


def score_point(text, reference, size, resized):
    """ScreenSpot family: right if the point is in the reference box (in pixels of the original image), edges included.
    `parsed` is [x, y] in the same pixels.

    Numbers are taken to be on the model's scale (`resized`). Nothing is guessed about points on another one, 0..1 say:
    they are scored as written, that is, wrong.
    """
    point = parse_point(text)
    if point is None:
        return None, 0.0
    x, y = point
    x, y = x * size[0] / resized[0], y * size[1] / resized[1]  # * before /, so that edges stay exact
    x1, y1, x2, y2 = reference
    return [x, y], float(x1 <= x <= x2 and y1 <= y <= y2)


# -- in a picture


def draw_box(pen, box, colour, width=3, dash=0):
    """Draws a box around its pixels, never over them, so that small things stay visible. A white line goes around it.
    pen: PIL's ImageDraw; dash: the length of its dashes, 0 for none."""
    x1, y1, x2, y2 = (round(c) for c in box)
    left, top, right, bottom = min(x1, x2) - width, min(y1, y2) - width, max(x1, x2) + width - 1, max(y1, y2) + width - 1
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=width + 1)
    if not dash:
        pen.rectangle((left, top, right, bottom), outline=colour, width=width)
        return
    for x in range(left, right + 1, 2 * dash):
        for y in (top, bottom - width + 1):
            pen.rectangle((x, y, min(x + dash - 1, right), y + width - 1), colour)
    for y in range(top, bottom + 1, 2 * dash):
        for x in (left, right - width + 1):
            pen.rectangle((x, y, x + width - 1, min(y + dash - 1, bottom)), colour)


# -- how boxes miss


def compare_boxes(rows):
    """How far predicted boxes are from their references, and how large they are against them; None without rows.

    centre_error: distance of the centres over the diagonal of the image. size_ratio: square root of predicted over
    reference area. A predicted box without area (corners swapped) counts in neither, nor in count.
    """
    if not rows:
        return None
    errors, ratios = [], []
    for row in rows:
        (a1, b1, a2, b2), (x1, y1, x2, y2) = row["parsed"], row["reference"]
        if a2 > a1 and b2 > b1:
            errors.append(math.hypot(a1 + a2 - x1 - x2, b1 + b2 - y1 - y2) / 2 / math.hypot(*row["size"]))
            ratios.append(math.sqrt((a2 - a1) * (b2 - b1) / ((x2 - x1) * (y2 - y1))))
    _, median_error, p90_error = spread(errors)
    p10, median_ratio, p90 = spread(ratios)
    return {
        "count": len(ratios),
        "centre_error": {"median": median_error, "p90": p90_error},
        "size_ratio": {"p10": p10, "median": median_ratio, "p90": p90},
    }


def spread(values):
    """(10th percentile, median, 90th percentile), interpolated linearly between neighbours; three None of nothing."""
    if not values:
        return None, None, None
    if len(values) == 1:
        values = values * 2  # quantiles wants two at least
    tenths = quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[4], tenths[8]

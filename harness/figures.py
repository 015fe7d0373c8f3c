"""The pictures of a run, with Pillow alone: heads.png, curve.png and examples.png; and the axes under every chart.

A "picture" is drawn; an "image" is what the model sees. The colours are those of Okabe and Ito, which people with any
colour vision can distinguish. What matters has also its own line style, frame or word.
"""

import math
from bisect import bisect_left
from statistics import mean

from PIL import Image, ImageDraw, ImageFont, ImageOps

from parts.files import writing
from parts.tasks.boxes import draw_box

BLACK, GREY, WHITE, PALE = (20, 20, 20), (150, 150, 150), (255, 255, 255), (234, 234, 234)
LINES = (225, 225, 225)  # across a chart
ORANGE, BLUE, GREEN, RED = (230, 159, 0), (0, 114, 178), (0, 158, 115), (213, 94, 0)


def canvas(width, height):
    """An empty picture and the pen that draws in it."""
    picture = Image.new("RGB", (width, height), WHITE)
    return picture, ImageDraw.Draw(picture)


def save(picture, path, **options):
    """Write a picture as a PNG file."""
    with writing(path) as part:
        picture.save(part, format="png", **options)


def font(size):
    return ImageFont.load_default(size)


def text_width(text, size):
    """In pixels, rounded up."""
    return math.ceil(font(size).getlength(text))


def wrap(text, size, width, lines):
    """Break a text into at most `lines` lines of `width` pixels. What does not fit ends in an ellipsis."""
    wrapped, rest = [], text.split()
    while rest and len(wrapped) < lines:
        line = rest.pop(0)
        while rest and text_width(f"{line} {rest[0]}", size) <= width:
            line = f"{line} {rest.pop(0)}"
        wrapped.append(shortened(line, size, width))
    if rest:
        wrapped[-1] = shortened(wrapped[-1] + " ...", size, width)
    return wrapped


def shortened(line, size, width):
    """The line, or as many of its letters as fit with an ellipsis."""
    if text_width(line, size) <= width:
        return line
    too_many = bisect_left(range(len(line)), True, key=lambda n: text_width(line[:n] + "...", size) > width)
    return line[: too_many - 1] + "..."


def shade(value):
    """A value from 0 to 1 as a colour from white to dark blue, even in lightness."""
    light, dark = (247, 251, 255), (8, 48, 107)
    return tuple(round(a + (b - a) * value) for a, b in zip(light, dark))


class Axes:
    """The frame of a chart: its ticks and words, and the way from values to pixels.

    frame: (x1, y1, x2, y2) in pixels of the picture. x_range, y_range: the values at its left and right, and at its
    lower and upper edge. log_x: equal ratios of x have equal widths.
    """

    def __init__(self, picture, frame, x_range, y_range, log_x=False, size=16):
        self.picture, self.pen, self.size = picture, ImageDraw.Draw(picture), size
        self.frame, self.x_range, self.y_range, self.log_x = frame, x_range, y_range, log_x

    def at(self, x, y):
        """Values -> pixels."""
        x1, y1, x2, y2 = self.frame
        (left, right), (lower, upper) = self.x_range, self.y_range
        if self.log_x:
            x, left, right = math.log10(x), math.log10(left), math.log10(right)
        return x1 + (x - left) / (right - left) * (x2 - x1), y2 - (y - lower) / (upper - lower) * (y2 - y1)

    def ticks(self, x_form, y_form, count=5):
        """Numbers at both axes, with grey lines across the frame."""
        x1, y1, x2, y2 = self.frame
        for tick in nice_ticks(*self.y_range, count):
            _, y = self.at(self.x_range[0], tick)
            self.pen.line((x1, y, x2, y), LINES)
            self.pen.text((x1 - 8, y), written(tick, y_form), BLACK, font(self.size), anchor="rm")
        for tick in log_ticks(*self.x_range) if self.log_x else nice_ticks(*self.x_range, count):
            x, _ = self.at(tick, self.y_range[0])
            self.pen.line((x, y1, x, y2 + 5), LINES)
            self.pen.text((x, y2 + 9), written(tick, x_form), BLACK, font(self.size), anchor="mt")
        self.pen.line((x1, y1, x1, y2, x2, y2), BLACK)

    def words(self, title, x, y=""):
        """The title above the frame, the names of its axes below it and, upright, left of it."""
        x1, y1, x2, y2 = self.frame
        self.pen.text((x1, y1 - 14), title, BLACK, font(self.size + 2), anchor="ls")
        self.pen.text(((x1 + x2) / 2, y2 + 16 + self.size), x, BLACK, font(self.size), anchor="mt")
        upright(self.picture, (x1 - 40 - 3 * self.size, (y1 + y2) / 2), y, self.size)

    def line(self, points, colour):
        """A line through [(x, y), ...] in values, with a circle at each unless they are many."""
        pixels = [self.at(x, y) for x, y in points]
        self.pen.line(pixels, colour, 2, joint="curve")
        for pixel in pixels if len(pixels) < 50 else ():
            self.pen.circle(pixel, 5, WHITE, colour, 2)


def upright(picture, middle, text, size):
    """Write a text from below to above, around its middle."""
    label, pen = canvas(text_width(text, size) + 8, size + 8)
    pen.text((4, 0), text, BLACK, font(size))
    label = label.rotate(90, expand=True)
    picture.paste(label, (round(middle[0] - label.width / 2), round(middle[1] - label.height / 2)))


def nice_ticks(low, high, count=5):
    """About `count` round numbers from low to high."""
    span = high - low
    step = 10 ** math.floor(math.log10(span / count))
    step = next(step * m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def log_ticks(low, high):
    """1, 2, 5, 10, 20, 50, ... from low to high; where these are many, the powers of ten alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    return [m * 10**power for power in powers for m in digits if low <= m * 10**power <= high]


def written(value, form):
    """A number in words. form: a format of Python, with "%" at its end for a percentage; "k": 20k, 3M, 1G."""
    if form == "k":
        thousands = min(3, math.floor(math.log10(value)) // 3) if value >= 1 else 0
        return f"{value / 1000**thousands:g}" + ("", "k", "M", "G")[thousands]
    return f"{100 * value:{form[:-1]}} %" if form.endswith("%") else f"{value:{form}}"


def head_map(path, scores, heads):
    """Layers x value heads: the shade is the influence, a frame marks the selected ones; and the quota of each layer.

    scores: lists [L][G]; heads: {layer: [heads]}.
    """
    words = f"{sum(map(len, heads.values()))} heads are selected (framed). "
    words += "A layer's quota follows from the sum of its scores; its highest scores fill the quota. "
    words += f"White: 0; darkest: {max(map(max, scores)):.2g} (square-root scale)."
    L, G, left, top = len(scores), len(scores[0]), 90, 190
    cell = max(16, min(44, 1600 // L))
    picture, pen = canvas(max(left + G * cell + 120, 420), top + L * cell + 50)
    pen.text((20, 16), "Influence of value heads", BLACK, font(24))
    for i, line in enumerate(wrap(words, 16, picture.width - 40, 5)):
        pen.text((20, 54 + 21 * i), line, BLACK, font(16))
    head_grid(pen, (left, top), cell, scores, heads)
    for h in range(G):
        pen.text((left + (h + 0.5) * cell, top - 8), str(h), BLACK, font(min(16, cell)), anchor="mb")
    pen.text((left + G * cell + 12, top - 8), "quota", BLACK, font(16), anchor="lb")
    pen.text((left + G * cell / 2, top + L * cell + 8), "value head", BLACK, font(16), anchor="mt")
    upright(picture, (33, top + L * cell / 2), "layer", 16)
    save(picture, path)


def head_grid(pen, corner, cell, scores, heads):
    """The cells of a head map, with the number of each layer on their left and its quota on their right."""
    left, top = corner
    largest = max(max(map(max, scores)), 0) or 1.0
    for layer, row in enumerate(scores):
        y, selected = top + layer * cell, heads.get(layer, [])
        pen.text((left - 12, y + cell / 2), str(layer), BLACK, font(min(16, cell)), anchor="rm")
        quota = str(len(selected))
        pen.text((left + len(row) * cell + 30, y + cell / 2), quota, BLACK, font(min(16, cell)), anchor="mm")
        for h, score in enumerate(row):
            x = left + h * cell
            frame = (x, y, x + cell - 3, y + cell - 3)
            pen.rectangle(frame, shade(math.sqrt(max(score, 0) / largest)))
            if h in selected:
                pen.rectangle(frame, outline=ORANGE, width=max(3, cell // 10))


def curve(path, losses, evaluations):
    """Two panels, one below the other. losses: [(step, training loss)]; evaluations: [(step, accuracy)]."""
    picture, _ = canvas(860, 700)
    window = max(1, len(losses) // 50)  # a running mean, so that the trend is seen through the noise
    near = [losses[max(0, i - window) : i + 1] for i in range(len(losses))]
    smooth = [(some[-1][0], mean(loss for _, loss in some)) for some in near]
    x_range = 0, max(1, *(step for step, _ in losses + evaluations))
    highest = 1.05 * max((loss for _, loss in smooth), default=0) or 1
    panels = (
        ("training loss (running mean)", smooth, (0, highest), "g", BLUE),
        ("accuracy on the first held-out rows", evaluations, (0, 1), "g%", ORANGE),
    )
    for i, (title, points, y_range, form, colour) in enumerate(panels):
        if points:
            axes = Axes(picture, (90, 60 + 340 * i, 830, 280 + 340 * i), x_range, y_range)
            axes.ticks("g", form)
            axes.words(title, "step")
            axes.line(points, colour)
    save(picture, path)


STYLES = {"reference": (GREEN, 8), "base": (ORANGE, 5, 9), "tuned": (BLUE, 2)}  # of a box: colour, line width, dash


def examples(path, items, columns=4, side=300):
    """A grid of images, each with the reference's, the base model's and the tuned model's answer.

    items: dicts with "image" (PIL) and "caption". Their "reference", "base" and "tuned" are a box in pixels of the
    image, a text, or None for an answer without a box; any of them may be missing. "right": {"base" or "tuned": whether
    the answer is right}.
    """
    columns, gap, top = min(columns, len(items)), 16, 60
    images = [ImageOps.contain(item["image"], (side, side)) for item in items]
    texts = [text_lines(item, side - 20) for item in items]
    heights = [image.height + 40 + 21 * len(lines) for image, lines in zip(images, texts)]
    rows = [max(heights[i : i + columns]) for i in range(0, len(items), columns)]
    picture, pen = canvas(max(columns * (side + gap) + gap, 560), top + sum(rows))

    # Whose box is drawn how.
    x = gap + 8
    names = [name for name in STYLES if any(name in item for item in items)]
    for name in names:
        draw_box(pen, (x, 20, x + 34, 42), *STYLES[name])
        pen.text((x + 50, 31), name, BLACK, font(18), anchor="lm")
        x += 100 + text_width(name, 18)

    # The images with their boxes, then the words below them.
    for i, (item, image, lines) in enumerate(zip(items, images, texts)):
        x, y = gap + i % columns * (side + gap), top + sum(rows[: i // columns])
        scale = image.width / item["image"].width
        picture.paste(image, (x, y))
        for name in names:
            answer = item.get(name)
            if answer is not None and not isinstance(answer, str):
                box = [min(max(c * scale, 0), limit) for c, limit in zip(answer, image.size * 2)]
                draw_box(pen, (x + box[0], y + box[1], x + box[2], y + box[3]), *STYLES[name])
        for j, (line, right) in enumerate(lines):
            middle = y + image.height + 24 + 21 * j
            pen.text((x + 20 * (right is not None), middle), line, BLACK, font(16), anchor="lm")
            if right is not None:
                tick_or_cross(pen, x, middle, right)
    save(picture, path)


def text_lines(item, width):
    """What stands below an image: [(line, whether the answer in it is right, or None)]."""
    lines = [(line, None) for line in wrap(item["caption"], 16, width, 2)]
    for name in STYLES:
        answer, right = item.get(name), item.get("right", {}).get(name)
        if isinstance(answer, str):
            lines.append((shortened(f"{name}: {' '.join(answer.split())}", 16, width), right))
        elif name in item and answer is None:
            lines.append((f"{name}: no box", right))
        elif right is not None:
            lines.append((name, right))
    return lines


def tick_or_cross(pen, x, y, right):
    if right:
        pen.line([(x, y), (x + 4, y + 5), (x + 12, y - 6)], GREEN, 3)
    else:
        pen.line((x + 1, y - 5, x + 11, y + 5), RED, 3)
        pen.line((x + 1, y + 5, x + 11, y - 5), RED, 3)

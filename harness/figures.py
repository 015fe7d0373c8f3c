"""The pictures of a run, with Pillow alone: heads.png, curve.png and examples.png; and the axes under every chart.

A "picture" is drawn; an "image" is what the model sees. The colours are those of Okabe and Ito, which people with any
colour vision can distinguish. What matters has also its own line style, frame or word.
"""

import math
import textwrap
from functools import cache
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont, ImageOps

from parts.files import writing
from parts.tasks.boxes import draw_box
from parts.tasks.images import open_image

BLACK, GREY, WHITE, PALE = (20, 20, 20), (150, 150, 150), (255, 255, 255), (225, 225, 225)
ORANGE, BLUE, GREEN, RED = (230, 159, 0), (0, 114, 178), (0, 158, 115), (213, 94, 0)
LIGHT, DARK = (247, 251, 255), (8, 48, 107)  # white and dark blue, between which a colour is even in lightness
ROUND = [m * 10.0**power for power in range(-9, 15) for m in (1, 2, 5)]
LETTER = 0.5  # mean width of a letter, in heights of its font

font = cache(ImageFont.load_default)  # font(size)


def canvas(width, height):
    """An empty picture and the pen that draws in it."""
    picture = Image.new("RGB", (width, height), WHITE)
    return picture, ImageDraw.Draw(picture)


def save(picture, path):
    """Write a picture as a PNG file."""
    with writing(path) as part:
        picture.save(part, format="png")


def label(pen, corner, words, size=16, anchor="la"):
    """Write words in black. anchor: which of their corners is given, as Pillow names them."""
    pen.text(corner, str(words), BLACK, font(size), anchor=anchor)


def wrap(text, size, width, lines):
    """Break a text into at most `lines` lines of about `width` pixels. What does not fit ends in an ellipsis."""
    return textwrap.wrap(text, int(width / (LETTER * size)), max_lines=lines, placeholder=" ...")


def chart(pen, frame, title, x_name, lines, log_x=False):
    """Draw lines [(colour, [(x, y), ...]), ...] in a frame (x1, y1, x2, y2), with a circle at each point unless they are
    many, and round numbers at both axes. log_x: equal ratios of x have equal widths."""
    x1, y1, x2, y2 = frame
    scale = math.log10 if log_x else float
    xs, ys = zip(*(point for _, points in lines for point in points))
    left, right = with_margin([scale(x) for x in xs])
    lower, upper = with_margin(ys)

    def at(x, y):
        """Values -> pixels."""
        return x1 + (scale(x) - left) / (right - left) * (x2 - x1), y2 - (y - lower) / (upper - lower) * (y2 - y1)

    for tick in ticks(lower, upper):
        _, y = at(xs[0], tick)
        pen.line((x1, y, x2, y), PALE)
        label(pen, (x1 - 8, y), f"{tick:g}", anchor="rm")
    for tick in ticks(left, right, log_x):
        x, _ = at(tick, lower)
        pen.line((x, y1, x, y2 + 5), PALE)
        label(pen, (x, y2 + 9), f"{tick:g}", anchor="mt")
    pen.line((x1, y1, x1, y2, x2, y2), BLACK)
    label(pen, (x1, y1 - 14), title, 18, "ls")
    label(pen, ((x1 + x2) / 2, y2 + 32), x_name, anchor="mt")
    for colour, points in lines:
        pixels = [at(x, y) for x, y in points]
        pen.line(pixels, colour, 2, joint="curve")
        for pixel in pixels if len(pixels) < 50 else ():
            pen.circle(pixel, 5, WHITE, colour, 2)


def with_margin(values):
    """Their range and a bit more."""
    margin = 0.06 * (max(values) - min(values)) or 0.5
    return min(values) - margin, max(values) + margin


def ticks(low, high, log=False):
    """About five round numbers from low to high; log: 1, 2, 5, 10, ... or, if many, powers of ten from 10^low to 10^high."""
    if log:
        return [n for n in (ROUND if high - low < 3 else ROUND[::3]) if low <= math.log10(n) <= high]
    step = next(n for n in ROUND if (high - low) / 6 <= n)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def head_map(path, scores, heads):
    """Layers x value heads: the shade is the influence, a frame marks the selected ones; and the quota of each layer.
    scores: lists [L][G]; heads: {layer: [heads]}."""
    L, G, left, top = len(scores), len(scores[0]), 90, 190
    cell, largest = max(16, min(44, 1600 // L)), max(max(map(max, scores)), 0) or 1.0
    picture, pen = canvas(max(left + G * cell + 120, 420), top + L * cell + 20)
    words = f"{sum(map(len, heads.values()))} value heads are selected (framed): the highest scores of each layer fill its "
    words += f"quota, which follows from their sum. White: 0; darkest: {largest:.2g} (square-root scale)."
    label(pen, (20, 16), "Influence of value heads", 24)
    label(pen, (20, 54), "\n".join(wrap(words, 16, picture.width - 40, 5)))
    label(pen, (left - 12, top - 8), "layer", anchor="rb")
    label(pen, (left + G * cell + 12, top - 8), "quota", anchor="lb")
    for h in range(G):
        label(pen, (left + (h + 0.5) * cell, top - 8), h, min(16, cell), "mb")
    for layer, row in enumerate(scores):
        y, selected = top + layer * cell, heads.get(layer, [])
        label(pen, (left - 12, y + cell / 2), layer, min(16, cell), "rm")
        label(pen, (left + G * cell + 30, y + cell / 2), len(selected), min(16, cell), "mm")
        for h, score in enumerate(row):
            frame = (left + h * cell, y, left + h * cell + cell - 3, y + cell - 3)
            share = min(1.0, math.sqrt(max(score, 0) / largest))
            pen.rectangle(frame, tuple(round(a + (b - a) * share) for a, b in zip(LIGHT, DARK)))
            if h in selected:
                pen.rectangle(frame, outline=ORANGE, width=max(3, cell // 10))
    save(picture, path)


def curve(path, losses, accuracies):
    """Two panels, one below the other. losses: [(step, training loss)], of every step; accuracies: [(step, accuracy)]."""
    picture, pen = canvas(860, 700)
    size = len(losses) // 50 + 1  # steps whose mean is a point, so that the trend is seen through the noise
    blocks = [losses[i : i + size] for i in range(0, len(losses), size)]
    means = [(block[-1][0], fmean(loss for _, loss in block)) for block in blocks]
    percent = [(step, 100 * accuracy) for step, accuracy in accuracies if math.isfinite(accuracy)]
    panels = [("training loss (averaged)", means, BLUE), ("accuracy on held-out rows, in %", percent, ORANGE)]
    for i, (title, points, colour) in enumerate(panels):
        if points:
            chart(pen, (90, 60 + 340 * i, 830, 280 + 340 * i), title, "step", [(colour, points)])
    save(picture, path)


STYLES = {"reference": (GREEN, 8), "base": (ORANGE, 5, 9), "tuned": (BLUE, 2)}  # of a box: colour, line width, dash
TICK, CROSS = ((0, 0), (4, 5), (12, -6)), ((1, -5), (11, 5), (6, 0), (1, 5), (11, -5))
EDGE, TOP = 10, 60  # around the image of a tile; above all tiles


def examples(path, items, side=300):
    """A grid of images, each with the reference's, the base model's and the tuned model's answer.
    items: dicts with "image" (a file or PIL) and "caption". Their "reference", "base" and "tuned" are a box or a point in
    pixels of the image, a text, or None for an answer that cannot be read; any of them may be missing. "scores": {"base"
    or "tuned": from 0 to 1}."""
    tiles = [tile(item, side) for item in items]
    rows = [tiles[i : i + 4] for i in range(0, len(tiles), 4)]
    heights = [max(drawn.height for drawn in row) for row in rows]
    picture, pen = canvas(max(len(rows[0]) * tiles[0].width, 560), TOP + sum(heights))
    names = [name for name in STYLES if any(name in item for item in items)]
    for i, name in enumerate(names):  # whose box is drawn how
        draw_box(pen, (24 + 170 * i, 20, 58 + 170 * i, 42), *STYLES[name])
        label(pen, (74 + 170 * i, 31), name, 18, "lm")
    for i, row in enumerate(rows):
        for j, drawn in enumerate(row):
            picture.paste(drawn, (j * drawn.width, TOP + sum(heights[:i])))
    save(picture, path)


def tile(item, side):
    """An image with its boxes, and below it what is asked for and the answers, with a tick or a cross."""
    original = open_image(item["image"])
    image = ImageOps.contain(original, (side, side))
    framed = ImageOps.expand(image, EDGE, WHITE)
    lines = [(line, None) for line in wrap(item["caption"], 16, side, 2)]
    for name in (name for name in STYLES if name in item):
        answer, score = item[name], item.get("scores", {}).get(name)
        words = f"{name}: {'none' if answer is None else answer}"
        if isinstance(answer, (list, tuple)):
            corners = zip([*answer] * (4 // len(answer)), image.size * 2)  # a point is a box without area
            box = [EDGE + min(max(c * image.width / original.width, 0), limit) for c, limit in corners]
            draw_box(ImageDraw.Draw(framed), box, *STYLES[name])
            words = "" if score is None else name
        lines += [(line, score) for line in wrap(words, 16, side - 20, 1)]

    picture, pen = canvas(framed.width, framed.height + 21 * len(lines) + 20)
    picture.paste(framed, (0, 0))
    for i, (line, score) in enumerate(lines):
        x, y = EDGE, framed.height + 21 * i + 12
        if score is not None:
            points, colour = (TICK, GREEN) if score >= 0.5 else (CROSS, RED)
            pen.line([(x + dx, y + dy) for dx, dy in points], colour, 3)
            x += 20
        label(pen, (x, y), line, anchor="lm")
    return picture

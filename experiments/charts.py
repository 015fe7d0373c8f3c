"""The pictures of the suites, with Pillow alone.

blocks        rows of a table, a circle for each seed and a bar for their mean, columns beside each other
scatter       one number of each head against another
attention     where an answer looks in an image
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from PIL import Image

from harness.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    canvas,
    font,
    nice_ticks,
    outlined,
    save,
    text_width,
    wrap,
)

COLOURS = (BLUE, ORANGE, GREEN, (204, 121, 167))  # of series, in their order; a mean has the second
KINDS = {"base": GREY, "Image-LoRA": BLUE, "LoRA": ORANGE}  # series that have the same colour in every picture
TITLE, TEXT, SMALL, LINE = 26, 22, 19, 40  # sizes of letters, height of a row
WIDTHS = {1: 620, 2: 420, 3: 320}  # of a panel, by the number of panels beside each other; more: 260
CAPTION = "circle: one seed; bar: the mean of the seeds"


@dataclass(frozen=True)
class Panel:
    """One column: {row: {series: [value of each seed]}}. A series is one of KINDS, or "" where a row has only one."""

    title: str
    form: str  # how a number is written; "%": as a percentage
    rows: dict


def written(value, form):
    return f"{100 * value:.1f} %" if form == "%" else f"{value:{form}}"


def tick_text(value, form):
    return f"{100 * value:g} %" if form == "%" else f"{value:g}"


def blocks(path, title, panels):
    """Draw [[Panel, ...], ...]: the panels of a block have the same rows and stand beside each other."""
    left = 40 + max(text_width(name, TEXT) for block in panels for panel in block for name in panel.rows)
    widths = [left + len(block) * (width_of(block) + 110) for block in panels]
    heights = [70 + LINE * len(block[0].rows) + 60 for block in panels]
    shown = {name for block in panels for panel in block for row in panel.rows.values() for name in row}
    named = [name for name in KINDS if name in shown]
    picture, pen = canvas(max(max(widths), 1000), 90 + 40 * bool(named) + sum(heights) + 40)

    # What the picture asks, and which colour is what.
    for i, line in enumerate(wrap(title, TITLE, picture.width - 40, 2)):
        pen.text((20, 16 + 34 * i), line, BLACK, font(TITLE))
    x, y = 24, 90
    for name in named:
        pen.rectangle((x, y, x + 24, y + 20), KINDS[name])
        pen.text((x + 34, y + 10), name, BLACK, font(TEXT), anchor="lm")
        x += 70 + text_width(name, TEXT)

    y += 40 * bool(named)
    for block, height in zip(panels, heights):
        for i, name in enumerate(block[0].rows):
            pen.text((left - 16, y + 70 + LINE * (i + 0.5)), name, BLACK, font(TEXT), anchor="rm")
        for i, panel in enumerate(block):
            dots(pen, panel, left + i * (width_of(block) + 110), y + 70, width_of(block))
        y += height
    pen.text((20, picture.height - 34), CAPTION, GREY, font(SMALL))
    save(picture, path)


def width_of(block):
    return WIDTHS.get(len(block), 260)


def dots(pen, panel, left, top, width):
    """One panel: in each row its series, on an axis that all rows share."""
    found = [v for row in panel.rows.values() for values in row.values() for v in numbers(values)]
    low, high = min(found, default=0), max(found, default=1)
    edge = 0.06 * (high - low) or 0.02
    low, high, bottom = low - edge, high + edge, top + LINE * len(panel.rows)

    def at(value):
        return left + (value - low) / (high - low) * width

    for i, line in enumerate(wrap(panel.title, TEXT, width + 90, 2)):
        pen.text((left, top - 62 + 27 * i), line, BLACK, font(TEXT))
    for tick in nice_ticks(low, high, 4):
        pen.line((at(tick), top, at(tick), bottom), (225, 225, 225))
        pen.text((at(tick), bottom + 8), tick_text(tick, panel.form), BLACK, font(SMALL), anchor="mt")
    for i, row in enumerate(panel.rows.values()):
        y = top + LINE * (i + 0.5)
        for name, values in row.items():
            values = numbers(values)
            for value in values:
                pen.ellipse((at(value) - 6, y - 6, at(value) + 6, y + 6), outline=KINDS.get(name, BLUE), width=2)
            if values:
                m = mean(values)
                pen.line((at(m), y - 14, at(m), y + 14), KINDS.get(name, ORANGE), width=5)
                if not name:
                    pen.text((left + width + 14, y), written(m, panel.form), BLACK, font(SMALL), anchor="lm")


def numbers(values: Iterable):
    return [v for v in values if v is not None]


def scatter(path, title, panels):
    """Draw {panel title: (name of x, name of y, {series: [(x, y), ...]})} beside each other."""
    side, gap, top = 420, 130, 130
    picture, pen = canvas(gap + len(panels) * (side + gap), top + side + 150)
    for i, line in enumerate(wrap(title, TITLE, picture.width - 40, 2)):
        pen.text((20, 16 + 34 * i), line, BLACK, font(TITLE))
    for i, (name, (of_x, of_y, series)) in enumerate(panels.items()):
        left = gap + i * (side + gap)
        pen.text((left, top - 10), name, BLACK, font(TEXT), anchor="ls")
        points(pen, series, left, top, side)
        pen.text((left + side / 2, top + side + 44), of_x, BLACK, font(SMALL), anchor="mt")
        upright, upright_pen = canvas(text_width(of_y, SMALL) + 8, 26)
        upright_pen.text((4, 0), of_y, BLACK, font(SMALL))
        upright = upright.rotate(90, expand=True)
        picture.paste(upright, (left - 108, round(top + (side - upright.height) / 2)))
        x = left
        for label, colour in zip(series, COLOURS):
            pen.ellipse((x, top + side + 84, x + 14, top + side + 98), colour)
            pen.text((x + 22, top + side + 91), label, BLACK, font(SMALL), anchor="lm")
            x += 50 + text_width(label, SMALL)
    save(picture, path)


def points(pen, series, left, top, side):
    """One panel of `scatter`: axes with ticks, and a point for each pair of numbers."""
    xs, ys = zip(*(pair for pairs in series.values() for pair in pairs))
    ranges = []
    for values in (xs, ys):
        edge = 0.06 * (max(values) - min(values)) or 0.05
        ranges.append((min(values) - edge, max(values) + edge))
    (x1, x2), (y1, y2) = ranges

    def at(x, y):
        return left + (x - x1) / (x2 - x1) * side, top + side - (y - y1) / (y2 - y1) * side

    for tick in nice_ticks(y1, y2, 4):
        _, y = at(x1, tick)
        pen.line((left, y, left + side, y), (225, 225, 225))
        pen.text((left - 8, y), f"{tick:g}", BLACK, font(SMALL), anchor="rm")
    for tick in nice_ticks(x1, x2, 4):
        x, _ = at(tick, y1)
        pen.line((x, top + side, x, top + side + 6), BLACK)
        pen.text((x, top + side + 12), f"{tick:g}", BLACK, font(SMALL), anchor="mt")
    pen.line((left, top, left, top + side, left + side, top + side), BLACK)
    for pairs, colour in zip(series.values(), COLOURS):
        for pair in pairs:
            x, y = at(*pair)
            pen.ellipse((x - 6, y - 6, x + 6, y + 6), outline=colour, width=2)


def attention(path, image, caption, box, maps, side=200):
    """Where an answer looks in an image: a line of maps for each model, {model: [(title, weights), ...]}, with one
    weight for each visual token, row by row on a square grid. The stronger the colour, the more; each map has its own
    scale. box: what is asked for, in pixels of the image, outlined in green; or None."""
    columns = max(len(line) for line in maps.values())
    left, top = 40 + max(text_width(name, TEXT) for name in maps), 100
    picture, pen = canvas(left + columns * (side + 14) + 20, top + len(maps) * (side + 44))
    pen.text((20, 14), "Where the answer looks", BLACK, font(TITLE))
    words = f"{caption}. Orange: much attention; each map has its own scale."
    pen.text((20, 54), words + " Green: what is asked for." * (box is not None), BLACK, font(SMALL))
    scale = side / max(image.size)
    pale = Image.blend(
        image.convert("L").convert("RGB").resize((side, side)), Image.new("RGB", (side, side), "white"), 0.4
    )
    heat = Image.new("RGB", pale.size, (213, 94, 0))
    for i, (name, line) in enumerate(maps.items()):
        y = top + i * (side + 44)
        pen.text((left - 16, y + side / 2), name, BLACK, font(TEXT), anchor="rm")
        for j, (title, weights) in enumerate(line):
            x, grid = left + j * (side + 14), math.isqrt(len(weights))
            strength = Image.new("L", (grid, grid))
            strength.putdata([round(200 * w / (max(weights) or 1)) for w in weights])
            strength = strength.resize(pale.size, Image.Resampling.NEAREST)
            picture.paste(Image.composite(heat, pale, strength), (x, y))
            if box is not None:
                outlined(pen, [edge * scale + start for edge, start in zip(box, (x, y, x, y))], GREEN, 3)
            pen.text((x, y + side + 6), title, BLACK, font(SMALL))
    save(picture, path)


def curves(path, title, panels):
    scatter(path, title, panels)

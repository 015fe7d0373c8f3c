"""The pictures of the suites, with Pillow alone.

blocks        rows of a table, a circle for each seed and a bar for their mean, columns beside each other
scatter       one number of each head against another
curves        accuracies against a cost
attention     where an answer looks in an image
"""

import math
from dataclasses import dataclass
from itertools import cycle
from statistics import mean

from PIL import Image

from harness import figures
from harness.figures import BLACK, BLUE, GREEN, GREY, ORANGE, Axes, font, text_width
from parts.tasks.boxes import draw_box

COLOURS = (BLUE, ORANGE, GREEN, (204, 121, 167), (86, 180, 233), (213, 94, 0), BLACK)  # of series, in their order
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


def headed(title, width, height):
    """An empty picture with a title of at most two lines."""
    picture, pen = figures.canvas(width, height)
    for i, line in enumerate(figures.wrap(title, TITLE, width - 40, 2)):
        pen.text((20, 16 + 34 * i), line, BLACK, font(TITLE))
    return picture, pen


def blocks(path, title, panels):
    """Draw [[Panel, ...], ...]: the panels of a block have the same rows and stand beside each other."""
    names = [name for block in panels for panel in block for name in panel.rows]
    left = 40 + max(text_width(name, TEXT) for name in names)
    shown = {name for block in panels for panel in block for row in panel.rows.values() for name in row}
    kinds = {name: (colour, colour) for name, colour in KINDS.items() if name in shown}
    heights = [130 + LINE * len(block[0].rows) for block in panels]
    widths = [left + len(block) * (WIDTHS.get(len(block), 260) + 110) for block in panels]
    top = 130 if kinds else 90
    picture, pen = headed(title, max(*widths, 1000), top + sum(heights) + 40)
    figures.legend(pen, 24, 100, kinds, TEXT)
    for block, height in zip(panels, heights):
        for i, name in enumerate(block[0].rows):
            pen.text((left - 16, top + 70 + LINE * (i + 0.5)), name, BLACK, font(TEXT), anchor="rm")
        width = WIDTHS.get(len(block), 260)
        for i, panel in enumerate(block):
            dots(picture, panel, left + i * (width + 110), top + 70, width)
        top += height
    pen.text((20, picture.height - 34), CAPTION, GREY, font(SMALL))
    figures.save(picture, path)


def dots(picture, panel, left, top, width):
    """One panel: a row's circles and bars, on an axis that all rows share."""
    count = len(panel.rows)
    frame = (left, top, left + width, top + LINE * count)
    values = [value for row in panel.rows.values() for seeds in row.values() for value in seeds if value is not None]
    axes = Axes(picture, frame, around(values), (count, 0), size=SMALL)
    for i, line in enumerate(figures.wrap(panel.title, TEXT, width + 90, 2)):
        axes.pen.text((left, top - 62 + 27 * i), line, BLACK, font(TEXT))
    axes.ticks(x_form="g%" if panel.form == "%" else "g", count=4)
    for i, row in enumerate(panel.rows.values()):
        for name, seeds in row.items():
            seeds = [value for value in seeds if value is not None]
            for value in seeds:
                axes.mark(value, i + 0.5, KINDS.get(name, BLUE))
            if seeds:
                x, y = axes.at(mean(seeds), i + 0.5)
                axes.pen.line((x, y - 14, x, y + 14), KINDS.get(name, ORANGE), width=5)
            if seeds and not name:
                words = figures.written(mean(seeds), ".1f%" if panel.form == "%" else panel.form)
                axes.pen.text((left + width + 14, y), words, BLACK, font(SMALL), anchor="lm")


def around(values):
    """A range that holds all values, with a margin; 0 to 1 for none."""
    low, high = min(values, default=0), max(values, default=1)
    margin = 0.06 * (high - low) or 0.02
    return low - margin, high + margin


def scatter(path, title, panels, joined=False):
    """Draw {panel title: (name of x, name of y, {series: [(x, y), ...]})} beside each other. joined: a series is a line of
    accuracies against a cost, which has a logarithmic axis."""
    side, gap, top = 420, 130, 130
    picture, pen = headed(title, gap + len(panels) * (side + gap), top + side + 150)
    names = dict.fromkeys(label for _, _, series in panels.values() for label in series)
    colours = dict(zip(names, cycle(COLOURS)))
    figures.legend(pen, 40, top + side + 110, {label: (colour, None) for label, colour in colours.items()}, SMALL)
    for i, (name, (x_name, y_name, series)) in enumerate(panels.items()):
        left = gap + i * (side + gap)
        xs, ys = zip(*(pair for pairs in series.values() for pair in pairs))
        x_range = (0.8 * min(xs), 1.25 * max(xs)) if joined else around(xs)
        axes = Axes(picture, (left, top, left + side, top + side), x_range, around(ys), joined, SMALL)
        axes.ticks(*("k", "g%") if joined else ("g", "g"), count=4)
        axes.words(name, x_name, y_name)
        for label, pairs in series.items():
            if joined:
                axes.line(pairs, colours[label])
            for x, y in pairs:
                axes.mark(x, y, colours[label])
    figures.save(picture, path)


def curves(path, title, panels):
    """Accuracies against a cost: panels as above, their points joined."""
    scatter(path, title, panels, joined=True)


def attention(path, image, caption, box, maps, side=200):
    """Where an answer looks in an image: a line of maps for each model, {model: [(title, weights), ...]}, with one
    weight for each visual token, row by row on a square grid. The stronger the colour, the more; each map has its own
    scale. box: what is asked for, in pixels of the image, outlined in green; or None."""
    columns = max(len(line) for line in maps.values())
    left, top = 40 + max(text_width(name, TEXT) for name in maps), 100
    picture, pen = headed("Where the answer looks", left + columns * (side + 14) + 20, top + len(maps) * (side + 44))
    words = f"{caption}. Orange: much attention; each map has its own scale."
    pen.text((20, 54), words + " Green: what is asked for." * (box is not None), BLACK, font(SMALL))
    scale = side / max(image.size)
    pale = image.convert("L").convert("RGB").resize((side, side))
    pale = Image.blend(pale, Image.new("RGB", pale.size, "white"), 0.4)
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
                draw_box(pen, [edge * scale + start for edge, start in zip(box, (x, y, x, y))], GREEN, 3)
            pen.text((x, y + side + 6), title, BLACK, font(SMALL))
    figures.save(picture, path)

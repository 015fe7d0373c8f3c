"""Every picture the program draws, with Pillow alone: the head map, the training curve, boxes on images.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; what matters is also said by line
style, outline or words.
"""

import itertools
import math

from PIL import Image, ImageDraw, ImageFont

BLACK, GREY, WHITE = (20, 20, 20), (150, 150, 150), (255, 255, 255)
ORANGE, BLUE, GREEN = (230, 159, 0), (0, 114, 178), (0, 158, 115)


def font(size):
    return ImageFont.load_default(size)


def text_width(text, size):
    return math.ceil(font(size).getlength(text))


def wrap(text, size, width, lines):
    """Break a text into at most `lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
    wrapped, rest = [], text.split()
    while rest and len(wrapped) < lines:
        line = rest.pop(0)
        while rest and text_width(f"{line} {rest[0]}", size) <= width:
            line = f"{line} {rest.pop(0)}"
        wrapped.append(line)
    if rest:
        wrapped[-1] += " ..."
    for i, line in enumerate(wrapped):
        while text_width(line, size) > width and len(line) > 4:
            line = line.removesuffix(" ...").removesuffix("...")[:-1] + "..."
        wrapped[i] = line
    return wrapped


def shade(value):
    """0 .. 1 -> white to dark blue, even in lightness."""
    light, dark = (247, 251, 255), (8, 48, 107)
    return tuple(round(a + (b - a) * value) for a, b in zip(light, dark))


def head_map(path, scores, heads):
    """Layers x value heads, shaded by influence (square root, relative to the largest), selected heads outlined.

    scores: list of lists [L][G], or None where heads were not scored; heads: {layer: [heads]}.
    """
    picked = {(layer, h) for layer, hs in heads.items() for h in hs}
    if scores is None:
        layers, count = max(layer for layer, _ in picked) + 1, max(h for _, h in picked) + 1
        scores = [[0.0] * count for _ in range(layers)]
    L, G, left, top = len(scores), len(scores[0]), 90, 100
    cell = max(16, min(44, 1600 // L))
    largest = max(max(row) for row in scores) or 1.0
    scale_words, bar = "score (square-root scale)", 240
    width = max(left + G * cell + 40, left + bar + 14 + text_width(scale_words, 15) + 20)
    height = top + L * cell + 110
    image = Image.new("RGB", (width, height), WHITE)
    pen = ImageDraw.Draw(image)
    pen.text((20, 16), "Influence of value heads", BLACK, font(24))
    pen.text((20, 48), f"{len(picked)} of {L * G} heads selected (outlined)", BLACK, font(17))
    for layer in range(L):
        y = top + layer * cell
        pen.text((left - 12, y + cell / 2), str(layer), BLACK, font(min(16, cell)), anchor="rm")
        for h in range(G):
            x = left + h * cell
            pen.rectangle((x, y, x + cell - 2, y + cell - 2), shade(math.sqrt(scores[layer][h] / largest)))
            if (layer, h) in picked:
                pen.rectangle((x, y, x + cell - 2, y + cell - 2), outline=ORANGE, width=max(3, cell // 10))
    for h in range(G):
        pen.text((left + (h + 0.5) * cell, top - 8), str(h), BLACK, font(min(16, cell)), anchor="mb")
    pen.text((left + G * cell / 2, top + L * cell + 8), "value head", BLACK, font(16), anchor="mt")
    label = Image.new("RGB", (60, 22), WHITE)
    ImageDraw.Draw(label).text((30, 11), "layer", BLACK, font(16), anchor="mm")
    image.paste(label.rotate(90, expand=True), (22, top + L * cell // 2 - 30))
    y = height - 52
    for i in range(bar):
        pen.line((left + i, y, left + i, y + 14), shade(i / bar))
    pen.rectangle((left, y, left + bar, y + 14), outline=GREY)
    pen.text((left, y + 18), "0", BLACK, font(15), anchor="mt")
    pen.text((left + bar, y + 18), f"{largest:.2g}", BLACK, font(15), anchor="mt")
    pen.text((left + bar + 14, y + 7), scale_words, BLACK, font(15), anchor="lm")
    image.save(path)


def nice_ticks(low, high, count=5):
    """About `count` round numbers from low to high."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / count))
    step = next(step * m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def plot(pen, frame, xs, ys, x_range, y_range, title, colour, percent=False, dots=False):
    """One panel: axes with ticks and a line (or dots joined by a line) in the pixels of frame (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = frame

    def at(x, y):
        px = x1 + (x - x_range[0]) / max(x_range[1] - x_range[0], 1e-9) * (x2 - x1)
        return px, y2 - (y - y_range[0]) / max(y_range[1] - y_range[0], 1e-9) * (y2 - y1)

    pen.text((x1, y1 - 14), title, BLACK, font(18), anchor="ls")
    for tick in nice_ticks(*y_range):
        y = at(0, tick)[1]
        pen.line((x1, y, x2, y), (225, 225, 225))
        pen.text((x1 - 8, y), f"{100 * tick:.0f} %" if percent else f"{tick:g}", BLACK, font(15), anchor="rm")
    for tick in nice_ticks(*x_range):
        x = at(tick, 0)[0]
        pen.line((x, y2, x, y2 + 5), BLACK)
        pen.text((x, y2 + 9), f"{tick:g}", BLACK, font(15), anchor="mt")
    pen.text(((x1 + x2) / 2, y2 + 32), "step", BLACK, font(15), anchor="mt")
    pen.line((x1, y1, x1, y2, x2, y2), BLACK)
    points = [at(x, y) for x, y in zip(xs, ys)]
    if len(points) > 1:
        pen.line(points, colour, width=2, joint="curve")
    if dots:
        for x, y in points:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), colour)


def curve(path, losses, evaluations):
    """losses: [(step, training loss)]; evaluations: [(step, accuracy)]. Two panels, one above the other."""
    image = Image.new("RGB", (860, 700), WHITE)
    pen = ImageDraw.Draw(image)
    steps = [s for s, _ in losses + evaluations]
    x_range = (0, max(steps, default=1) or 1)
    if losses:
        xs, ys = zip(*losses)
        window = max(1, len(ys) // 50)  # a running mean, so that the trend is seen through the noise
        smooth = [sum(ys[max(0, i - window) : i + 1]) / len(ys[max(0, i - window) : i + 1]) for i in range(len(ys))]
        plot(
            pen, (90, 60, 830, 280), xs, smooth, x_range, (0, max(smooth) * 1.05), "training loss (running mean)", BLUE
        )
    if evaluations:
        xs, ys = zip(*evaluations)
        plot(
            pen,
            (90, 400, 830, 620),
            xs,
            ys,
            x_range,
            (0, 1),
            "accuracy on held-out rows",
            ORANGE,
            percent=True,
            dots=True,
        )
    image.save(path)


def outlined(pen, box, colour, width, dash=0):
    """A box whose line has a white edge, so that it is seen on any picture; dash > 0 breaks the line."""
    x1, y1, x2, y2 = box
    x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    for edge, ink in ((1, WHITE), (0, colour)):
        if not dash:
            pen.rectangle((x1 - edge, y1 - edge, x2 + edge, y2 + edge), outline=ink, width=width + 2 * edge)
            continue
        for a, b in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
            length = math.dist(a, b)
            for start in range(0, int(length), 2 * dash):
                ends = [start / length, min(start + dash, length) / length]
                line = [(a[0] + (b[0] - a[0]) * e, a[1] + (b[1] - a[1]) * e) for e in ends]
                pen.line(line, ink, width=width + 2 * edge)


def examples(path, items, columns=4, side=300):
    """A grid of pictures with the reference, the base model's and the tuned model's answer.

    items: dicts with "image" (PIL), "caption", and "reference", "before", "after": a box in pixels of the image, a
    text, or None for none (before or after may be missing altogether).
    """
    columns = min(columns, len(items))
    styles = {"reference": (GREEN, 7), "before": (ORANGE, 3, 7), "after": (BLUE, 3)}  # colour, line width, dash
    shown = [name for name in styles if any(name in item for item in items)]
    foot, gap, top = 88, 16, 60
    scales = [side / max(item["image"].size) for item in items]
    heights = [round(item["image"].height * scale) for item, scale in zip(items, scales)]
    rows = [max(heights[i : i + columns]) + foot for i in range(0, len(items), columns)]
    sheet = Image.new("RGB", (max(columns * (side + gap) + gap, 560), top + sum(rows)), WHITE)
    pen = ImageDraw.Draw(sheet)
    x = gap
    for name in shown:
        outlined(pen, (x, 20, x + 34, 42), *styles[name])
        pen.text((x + 44, 31), name, BLACK, font(18), anchor="lm")
        x += 60 + text_width(name, 18) + 24
    for i, item in enumerate(items):
        x, y, scale = gap + i % columns * (side + gap), top + sum(rows[: i // columns]), scales[i]
        image = item["image"].resize([max(1, round(c * scale)) for c in item["image"].size])
        sheet.paste(image, (x, y))
        lines = [(line, BLACK) for line in wrap(item["caption"], 16, side, 2)]
        for name in shown:
            answer = item.get(name)
            if isinstance(answer, str):
                lines.append((wrap(f"{name}: {answer}", 16, side, 1)[0], BLACK))
            elif answer is not None:
                box = [c * scale for c in answer]
                box = [min(max(c, 0), limit - 1) for c, limit in zip(box, image.size * 2)]
                outlined(pen, [box[0] + x, box[1] + y, box[2] + x, box[3] + y], *styles[name])
            elif name in item:
                lines.append((f"{name}: no box", GREY))
        for j, (line, colour) in enumerate(lines[:4]):
            pen.text((x, y + image.height + 6 + 21 * j), line, colour, font(16))
    sheet.save(path)


def dots(path, title, panels):
    """Panels below each other, each a title and rows of dots (one a seed) with their mean as a bar:
    panels [(title, {row: [number or None, ...]})]."""
    left = 30 + max(text_width(name, 17) for _, values in panels for name in values)
    line, width, top, bottom = 34, 560, 60, 60
    heights = [top + line * len(values) + bottom for _, values in panels]
    image = Image.new("RGB", (left + width + 110, 60 + sum(heights)), WHITE)
    pen = ImageDraw.Draw(image)
    for i, part in enumerate(wrap(title, 20, left + width + 80, 2)):
        pen.text((20, 14 + 26 * i), part, BLACK, font(20))
    for (name, values), y in zip(panels, itertools.accumulate(heights, initial=60)):
        pen.text((left, y + 22), name, BLACK, font(16))
        dot_rows(pen, values, left, y + top, width, line)
    image.save(path)


def dot_rows(pen, values, left, top, width, line):
    found = [v for vs in values.values() for v in vs if v is not None]
    low, high = min(found, default=0), max(found, default=1)
    edge = 0.05 * (high - low) + 0.02
    low, high, bottom = low - edge, high + edge, top + line * len(values)

    def at(value):
        return left + (value - low) / (high - low) * width

    for tick in nice_ticks(low, high, 8):
        pen.line((at(tick), top, at(tick), bottom), (225, 225, 225))
        pen.text((at(tick), bottom + 8), f"{tick:.2f}", BLACK, font(15), anchor="mt")
    for i, (name, numbers) in enumerate(values.items()):
        y, numbers = top + line * (i + 0.5), [v for v in numbers if v is not None]
        pen.text((left - 14, y), name, BLACK, font(17), anchor="rm")
        for number in numbers:
            pen.ellipse((at(number) - 5, y - 5, at(number) + 5, y + 5), outline=BLUE, width=2)
        if numbers:
            m = sum(numbers) / len(numbers)
            pen.line((at(m), y - 12, at(m), y + 12), ORANGE, width=4)
            pen.text((left + width + 14, y), f"{m:.2f}", BLACK, font(16), anchor="lm")


def attention(path, picture, caption, maps, side=180):
    """Attention over a picture, a row for each model: maps {row: [(title, weights of its visual tokens), ...]}, the
    tokens row by row on a square grid. Bright is attended to; each map is scaled to its own largest weight."""
    columns, left, top = max(len(row) for row in maps.values()), 30 + max(text_width(name, 17) for name in maps), 80
    image = Image.new("RGB", (left + columns * (side + 12) + 20, top + len(maps) * (side + 40)), WHITE)
    pen = ImageDraw.Draw(image)
    pen.text((20, 16), "Where the answer looks", BLACK, font(24))
    pen.text((20, 48), caption, BLACK, font(17))
    picture = picture.convert("L").convert("RGB").resize((side, side))
    for i, (name, row) in enumerate(maps.items()):
        y = top + i * (side + 40)
        pen.text((left - 14, y + side / 2), name, BLACK, font(17), anchor="rm")
        for j, (title, weights) in enumerate(row):
            x, grid = left + j * (side + 12), math.isqrt(len(weights))
            light = Image.new("L", (grid, grid))
            light.putdata([round(255 * w / (max(weights) or 1)) for w in weights])
            light = light.resize((side, side), Image.Resampling.NEAREST)
            image.paste(
                Image.composite(picture, Image.blend(picture, Image.new("RGB", picture.size), 0.75), light), (x, y)
            )
            pen.text((x, y + side + 6), title, BLACK, font(15))
    image.save(path)

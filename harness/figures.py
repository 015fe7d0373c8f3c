"""The pictures of a run, and that of the method, with Pillow alone.

    method        where Image-LoRA touches attention: `python -m harness.figures docs/method.png`
    head_map      the influence of every value head, the selected ones outlined
    curve         the training loss and the accuracy
    costs         accuracies of several seeds against a cost
    examples      images with the reference's box and the models' boxes

A "picture" is what is drawn here; an "image" is what the model sees. The colours are those of Okabe and Ito, which
people with any colour vision can distinguish. What matters is also said by line style, outline or words.
"""

import math
import re
import sys
from statistics import mean, stdev

from PIL import Image, ImageDraw, ImageFont

from parts.files import writing
from parts.tasks.boxes import draw_box

BLACK, GREY, WHITE, PALE = (20, 20, 20), (150, 150, 150), (255, 255, 255), (234, 234, 234)
LINES = (225, 225, 225)  # across a chart
ORANGE, BLUE, GREEN, PALE_ORANGE = (230, 159, 0), (0, 114, 178), (0, 158, 115), (252, 240, 214)


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
        wrapped.append(line)
    if rest:
        wrapped[-1] += " ..."
    for i, line in enumerate(wrapped):
        while text_width(line, size) > width and len(line) > 4:
            line = line.removesuffix(" ...").removesuffix("...")[:-1] + "..."
        wrapped[i] = line
    return wrapped


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

    def ticks(self, x_form=None, y_form=None, count=5):
        """Numbers at both axes, with grey lines across the frame; of an axis without a form: nothing."""
        x1, y1, x2, y2 = self.frame
        if y_form:
            for tick in nice_ticks(*self.y_range, count):
                _, y = self.at(self.x_range[0], tick)
                self.pen.line((x1, y, x2, y), LINES)
                self.pen.text((x1 - 8, y), written(tick, y_form), BLACK, font(self.size), anchor="rm")
        if x_form:
            for tick in log_ticks(*self.x_range) if self.log_x else nice_ticks(*self.x_range, count):
                x, _ = self.at(tick, self.y_range[0])
                self.pen.line((x, y1, x, y2 + 5), LINES)
                self.pen.text((x, y2 + 9), written(tick, x_form), BLACK, font(self.size), anchor="mt")
        self.pen.line((x1, y1, x1, y2, x2, y2), BLACK)

    def words(self, title="", x="", y=""):
        """The title above the frame, the names of its axes below it and, upright, left of it."""
        x1, y1, x2, y2 = self.frame
        self.pen.text((x1, y1 - 14), title, BLACK, font(self.size + 2), anchor="ls")
        self.pen.text(((x1 + x2) / 2, y2 + 16 + self.size), x, BLACK, font(self.size), anchor="mt")
        if y:
            upright(self.picture, (x1 - 40 - 3 * self.size, (y1 + y2) / 2), y, self.size)

    def line(self, points, colour, width=2):
        """A line through [(x, y), ...] in values."""
        self.pen.line([self.at(x, y) for x, y in points], colour, width, joint="curve")

    def mark(self, x, y, colour, inside=None, radius=6):
        """A circle at a value. inside: the colour that fills it; None leaves it open."""
        circle(self.pen, *self.at(x, y), radius, colour, inside)


def circle(pen, x, y, radius, colour, inside=None):
    """A circle around a pixel."""
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), inside, colour, 2)


def legend(pen, x, y, names, size):
    """A circle and a name for each of {name: (colour, colour inside or None)}, in a row that begins at (x, y)."""
    for name, (colour, inside) in names.items():
        circle(pen, x + 7, y, 7, colour, inside)
        pen.text((x + 22, y), name, BLACK, font(size), anchor="lm")
        x += 56 + text_width(name, size)


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
    ticks = [m * 10**power for power in powers for m in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks if len(ticks) < 9 else [tick for tick in ticks if math.log10(tick) % 1 == 0]


def written(value, form):
    """A number in words. form: a format of Python, with "%" at its end for a percentage; "k": 20k, 3M, 1G."""
    if form == "k":
        thousands = min(3, math.floor(math.log10(value)) // 3) if value >= 1 else 0
        return f"{value / 1000**thousands:g}" + ("", "k", "M", "G")[thousands]
    return f"{100 * value:{form[:-1]}} %" if form.endswith("%") else f"{value:{form}}"


def head_map(path, scores, heads):
    """Layers x value heads: the shade is the influence (square root, relative to the largest), outlined the selected.

    scores: lists [L][G], or None where heads were not scored; heads: {layer: [heads]}.
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
    picture, pen = canvas(width, height)
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
    upright(picture, (33, top + L * cell / 2), "layer", 16)
    y = height - 52
    for i in range(bar):
        pen.line((left + i, y, left + i, y + 14), shade(i / bar))
    pen.rectangle((left, y, left + bar, y + 14), outline=GREY)
    pen.text((left, y + 18), "0", BLACK, font(15), anchor="mt")
    pen.text((left + bar, y + 18), f"{largest:.2g}", BLACK, font(15), anchor="mt")
    pen.text((left + bar + 14, y + 7), scale_words, BLACK, font(15), anchor="lm")
    save(picture, path)


def curve(path, losses, evaluations):
    """Two panels, one below the other. losses: [(step, training loss)]; evaluations: [(step, accuracy)]."""
    picture, _ = canvas(860, 700)
    last = max(step for step, _ in losses + evaluations)
    if losses:
        window = max(1, len(losses) // 50)  # a running mean, so that the trend is seen through the noise
        near = [losses[max(0, i - window) : i + 1] for i in range(len(losses))]
        smooth = [(some[-1][0], mean(loss for _, loss in some)) for some in near]
        highest = max(loss for _, loss in smooth)
        axes = Axes(picture, (90, 60, 830, 280), (0, max(last, 1)), (0, 1.05 * highest or 1))
        axes.ticks("g", "g")
        axes.words("training loss (running mean)", "step")
        axes.line(smooth, BLUE)
    if evaluations:
        axes = Axes(picture, (90, 400, 830, 620), (0, max(last, 1)), (0, 1))
        axes.ticks("g", "g%")
        axes.words("accuracy on the first held-out rows", "step")
        axes.line(evaluations, ORANGE)
        for step, accuracy in evaluations:
            axes.mark(step, accuracy, ORANGE, ORANGE)
    save(picture, path)


def costs(path, title, x_title, base, series):
    """Accuracy against cost: a mark for the mean of the seeds, a bar for -+ one standard deviation.

    base: the accuracy of the frozen model, a dashed line; series: {name: (colour, filled, {label: (cost, [accuracy of
    each seed])})}. The cost has a logarithmic axis. Marks that are not filled have their labels below.
    """
    picture, pen = canvas(860, 530)
    points = [point for _, _, of_series in series.values() for point in of_series.values()]
    prices = [cost for cost, _ in points]
    highest = max(max(values) for _, values in points)
    x_range, y_range = (0.7 * min(prices), 1.6 * max(prices)), (base - 0.02, highest + 0.03)
    axes = Axes(picture, (80, 110, 830, 450), x_range, y_range, log_x=True)

    # The axes, and the frozen model.
    pen.text((20, 16), title, BLACK, font(22))
    inside = {name: colour if filled else WHITE for name, (colour, filled, _) in series.items()}
    legend(pen, 80, 74, {name: (series[name][0], inside[name]) for name in series}, 17)
    axes.ticks(",", "g%")
    axes.words(x=x_title)
    (left, y), (right, _) = axes.at(x_range[0], base), axes.at(x_range[1], base)
    for x in range(round(left), round(right), 16):
        pen.line((x, y, x + 8, y), BLACK, 2)
    pen.text((right, y - 8), f"frozen model, {100 * base:.1f} %", BLACK, font(16), anchor="rs")

    # Each series: its points joined by a line.
    for name, (colour, filled, of_series) in series.items():
        axes.line([(cost, mean(values)) for cost, values in of_series.values()], colour)
        for label, (cost, values) in of_series.items():
            middle, deviation = mean(values), stdev(values)
            (x, low), (_, high) = axes.at(cost, middle - deviation), axes.at(cost, middle + deviation)
            pen.line((x, low, x, high), colour, 3)
            for end in (low, high):
                pen.line((x - 6, end, x + 6, end), colour, 3)
            axes.mark(cost, middle, colour, inside[name], radius=7)
            if filled:
                pen.text((x, high - 8), label, BLACK, font(16), anchor="ms")
            else:
                pen.text((x, low + 8), label, BLACK, font(16), anchor="mt")
    save(picture, path, optimize=True)


def examples(path, items, columns=4, side=300):
    """A grid of images, each with the reference's, the base model's and the tuned model's answer.

    items: dicts with "image" (PIL) and "caption". Their "reference", "base" and "tuned" are a box in pixels of the
    image, a text, or None for an answer without a box; "base" or "tuned" may be missing.
    """
    columns = min(columns, len(items))
    styles = {"reference": (GREEN, 8), "base": (ORANGE, 5, 9), "tuned": (BLUE, 2)}  # colour, line width, dash
    shown = [name for name in styles if any(name in item for item in items)]
    foot, gap, top = 104, 16, 60
    scales = [side / max(item["image"].size) for item in items]
    heights = [round(item["image"].height * scale) for item, scale in zip(items, scales)]
    rows = [max(heights[i : i + columns]) + foot for i in range(0, len(items), columns)]
    picture, pen = canvas(max(columns * (side + gap) + gap, 560), top + sum(rows))
    x = gap
    for name in shown:
        draw_box(pen, (x, 20, x + 34, 42), *styles[name])
        pen.text((x + 44, 31), name, BLACK, font(18), anchor="lm")
        x += 60 + text_width(name, 18) + 24
    for i, item in enumerate(items):
        x, y, scale = gap + i % columns * (side + gap), top + sum(rows[: i // columns]), scales[i]
        image = item["image"].resize([max(1, round(c * scale)) for c in item["image"].size])
        picture.paste(image, (x, y))
        lines = [(line, BLACK) for line in wrap(item["caption"], 16, side, 2)]
        for name in shown:
            answer = item.get(name)
            if isinstance(answer, str):
                lines.append((wrap(f"{name}: {answer}", 16, side, 1)[0], BLACK))
            elif answer is not None:
                box = [c * scale for c in answer]
                box = [min(max(c, 0), limit - 1) for c, limit in zip(box, image.size * 2)]
                draw_box(pen, [box[0] + x, box[1] + y, box[2] + x, box[3] + y], *styles[name])
            elif name in item:
                lines.append((f"{name}: no box", GREY))
        for j, (line, colour) in enumerate(lines[:4]):
            pen.text((x, y + image.height + 6 + 21 * j), line, colour, font(16))
    save(picture, path)


def symbols(pen, x, y, text, size, colour=BLACK):
    """Write a formula around (x, y): _ lowers what follows it, ^ raises it, ~ goes over it ("~V^(h)")."""
    parts = re.findall(r"([_^~]?)(\([^)]*\)|(?<=[_^~]).|[^_^~]+)", text)
    sizes = [round(0.62 * size) if mark in ("_", "^") else size for mark, _ in parts]
    x -= sum(font(s).getlength(part) for (_, part), s in zip(parts, sizes)) / 2
    for (mark, part), s in zip(parts, sizes):
        middle = x + font(s).getlength(part) / 2
        base = y + size * (0.36 + {"_": 0.16, "^": -0.4}.get(mark, 0))
        pen.text((middle, base), part, colour, font(s), anchor="ms")
        if mark == "~":
            pen.text((middle, base - 0.5 * size), "~", colour, font(s), anchor="ms")
        x += font(s).getlength(part)


def box(pen, frame, text, colour=GREY, size=32):
    """A box with a formula in its middle: grey is frozen, orange is what Image-LoRA adds."""
    pen.rounded_rectangle(frame, 12, PALE if colour == GREY else PALE_ORANGE, colour, 4)
    symbols(pen, (frame[0] + frame[2]) / 2, (frame[1] + frame[3]) / 2, text, size)


def arrow(pen, *points, colour=GREY):
    """A line through points that lie beside or below each other, with a head at its end."""
    (x1, y1), (x2, y2) = points[-2:]
    dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
    x, y = x2 - 16 * dx, y2 - 16 * dy  # where the head begins
    pen.line([*points[:-1], (x, y)], colour, 5, joint="curve")
    pen.polygon([(x2, y2), (x - 10 * dy, y + 10 * dx), (x + 10 * dy, y - 10 * dx)], colour)


def method(path):
    """Where Image-LoRA touches attention. Left: the four paths of a layer. Right: its values, heads x tokens."""
    picture, pen = canvas(1660, 920)
    pen.rounded_rectangle((8, 8, 1651, 911), 24, outline=GREY, width=3)

    # left: queries and keys decide who is looked at, values what is taken from there
    pen.text((60, 46), "One attention layer", BLACK, font(36))
    box(pen, (60, 160, 470, 220), "X")
    for x, name, end in ((110, "q", 430), (240, "k", 430), (410, "v", 590)):
        arrow(pen, (x, 220), (x, 290))
        arrow(pen, (x, 350), (x, end))
        box(pen, (x - 50, 290, x + 50, 350), name, ORANGE if name == "v" else GREY)
    box(pen, (60, 430, 290, 490), "softmax(q k)", size=30)
    arrow(pen, (175, 490), (175, 590))
    for x, y, words in ((190, 532, "who is"), (190, 560, "looked at"), (398, 440, "what"), (398, 468, "is taken")):
        pen.text((x, y), words, BLACK, font(24), anchor="lm" if x < 200 else "rm")
    box(pen, (60, 590, 470, 650), "weighted sum of values", size=30)
    arrow(pen, (265, 650), (265, 710))
    box(pen, (215, 710, 315, 770), "o")
    for start, end in ((292, 150), (348, 770)):  # the value path, enlarged
        pen.line((464, start, 545, end), ORANGE, 3)

    # right: a column is a token, a row a value head
    left, top, cell, row, selected = 812, 330, 36, 64, (1, 3)
    pen.text((575, 46), "Its values: a column is a token, a row is a head", BLACK, font(36))
    x = left
    for name, count in (("system", 3), ("visual tokens", 6), ("question", 4), ("answer", 3)):
        visual = name == "visual tokens"
        pen.text((x + count * cell / 2, 138), name, GREEN if visual else BLACK, font(25), anchor="mm")
        for i in range(count):
            pen.rectangle((x, 162, x + cell - 5, 194), GREEN if visual else PALE)
            pen.text((x + cell / 2 - 2, 222), str(int(visual)), GREEN if visual else GREY, font(28), anchor="mm")
            for h in range(4):
                touched = visual and h in selected
                pen.rectangle((x, top + h * row, x + cell - 5, top + h * row + 50), ORANGE if touched else PALE)
            x += cell
        if visual:
            middle = x - count * cell / 2
    right = x - 5
    symbols(pen, left - 26, 178, "X", 30)
    symbols(pen, left - 26, 222, "M", 30, GREEN)

    # the frozen weights come from the left, the update from the right
    arrow(pen, (left - 46, 178), (620, 178), (620, top))
    box(pen, (575, top, 665, top + 4 * row - 14), "W_V")
    arrow(pen, (middle, 242), (middle, 282), (1565, 282), (1565, top + row), colour=ORANGE)
    symbols(pen, 1485, 258, "M X", 30)
    box(pen, (1530, top + row, 1600, top + 4 * row - 14), "A", ORANGE)
    for h in range(4):
        y = top + h * row + 25
        pen.text((left - 20, y), f"head {h}", BLUE if h in selected else GREY, font(25), anchor="rm")
        arrow(pen, (665, y), (700, y))
        if h in selected:
            arrow(pen, (1530, y), (1496, y), colour=ORANGE)
            box(pen, (1412, y - 25, 1496, y + 25), f"B^({h})", ORANGE)
            arrow(pen, (1412, y), (right + 8, y), colour=ORANGE)
    pen.text((620, top + 4 * row + 18), "frozen", BLACK, font(25), anchor="mm")
    pen.text((1506, top + 4 * row + 18), "trained", BLACK, font(25), anchor="mm")

    symbols(pen, 1090, 672, "~V^(h)  =  X W_V^(h)  +  s M X A B^(h)", 44)
    for x, colour, words in ((720, PALE, "the frozen value, unchanged"), (1130, ORANGE, "the frozen value + update")):
        pen.rectangle((x, 738, x + 31, 769), colour)
        pen.text((x + 46, 754), words, BLACK, font(25), anchor="lm")
    caption = "Image-LoRA changes the values of visual tokens in the selected heads. "
    caption += "q, k, o and all other values stay frozen."
    pen.line((60, 812, 1600, 812), PALE, 3)
    pen.text((830, 858), caption, BLACK, font(27), anchor="mm")
    save(picture, path, optimize=True)


if __name__ == "__main__":
    method(sys.argv[1])

"""The pictures of the suites: accuracies against a cost or a budget, a line for each method."""

from itertools import cycle

from harness import figures
from harness.figures import BLACK, BLUE, GREEN, GREY, ORANGE, Axes

COLOURS = (BLUE, ORANGE, GREEN, (204, 121, 167), (86, 180, 233), (213, 94, 0), BLACK, GREY)  # of lines, in their order
SIDE, GAP, TOP = 420, 130, 100  # of a panel; between panels; above them


def curves(path, title, panels):
    """Draw {panel title: (name of x, name of y, {line: [(x, y), ...]})} beside each other. x has a logarithmic axis."""
    lines = dict.fromkeys(name for _, _, series in panels.values() for name in series)
    colours = dict(zip(lines, cycle(COLOURS)))
    picture, pen = figures.canvas(GAP + len(panels) * (SIDE + GAP), TOP + SIDE + 110 + 34 * len(lines))
    pen.text((20, 16), title, BLACK, figures.font(26))
    for i, (name, (x_name, y_name, series)) in enumerate(panels.items()):
        left = GAP + i * (SIDE + GAP)
        xs, ys = zip(*(point for points in series.values() for point in points))
        margin = 0.06 * (max(ys) - min(ys)) or 0.02
        ranges = (0.8 * min(xs), 1.25 * max(xs)), (min(ys) - margin, max(ys) + margin)
        axes = Axes(picture, (left, TOP, left + SIDE, TOP + SIDE), *ranges, log_x=True, size=19)
        axes.ticks("k", "g%", count=4)
        axes.words(name, x_name, y_name)
        for line, points in series.items():
            axes.line(points, colours[line])
    for i, (line, colour) in enumerate(colours.items()):
        y = TOP + SIDE + 110 + 34 * i
        pen.circle((GAP + 7, y), 6, "white", colour, 2)
        pen.text((GAP + 22, y), line, BLACK, figures.font(19), anchor="lm")
    figures.save(picture, path)

"""The picture of the suite `cost`: boxes against a cost, a line for each method."""

from itertools import cycle

from harness import figures
from harness.figures import BLACK, BLUE, GREEN, GREY, ORANGE, Axes

COLOURS = (BLUE, ORANGE, GREEN, (204, 121, 167), (86, 180, 233), (213, 94, 0), BLACK, GREY)  # of lines, in their order
SIDE, GAP, TOP = 420, 130, 100  # of a panel; between panels; above them


def curves(path, panels):
    """Draw {cost: {line: [(cost, boxes), ...]}} beside each other, the same lines in all. Costs have a logarithmic axis."""
    colours = dict(zip(next(iter(panels.values())), cycle(COLOURS)))
    picture, pen = figures.canvas(GAP + len(panels) * (SIDE + GAP), TOP + SIDE + 110 + 34 * len(colours))
    figures.label(pen, (20, 16), "What boxes cost", 26)
    for i, (cost, series) in enumerate(panels.items()):
        left = GAP + i * (SIDE + GAP)
        series = {line: [(x, 100 * boxes) for x, boxes in points] for line, points in series.items()}
        xs, ys = zip(*(point for points in series.values() for point in points))
        margin = 0.06 * (max(ys) - min(ys)) or 2
        ranges = (0.8 * min(xs), 1.25 * max(xs)), (min(ys) - margin, max(ys) + margin)
        axes = Axes(pen, (left, TOP, left + SIDE, TOP + SIDE), *ranges, log_x=True, size=19)
        axes.show(f"boxes (%) against {cost}", cost, count=4)
        for line, points in series.items():
            axes.line(points, colours[line])
    for i, (line, colour) in enumerate(colours.items()):
        y = TOP + SIDE + 110 + 34 * i
        pen.circle((GAP + 7, y), 6, "white", colour, 2)
        figures.label(pen, (GAP + 22, y), line, 19, "lm")
    figures.save(picture, path)

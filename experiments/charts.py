"""The picture of the suite `cost`: boxes against a cost, a line for each method."""

from itertools import cycle

from harness import figures
from harness.figures import BLACK, BLUE, GREEN, GREY, ORANGE, RED

COLOURS = (BLUE, ORANGE, GREEN, (204, 121, 167), (86, 180, 233), RED, BLACK, GREY)  # of lines, in their order
SIDE, GAP, TOP = 420, 130, 100  # of a panel; between panels; above them


def curves(path, panels):
    """Draw {cost: {line: [(cost, boxes), ...]}} beside each other, the same lines in all. Costs have a logarithmic axis."""
    colours = dict(zip(next(iter(panels.values())), cycle(COLOURS)))
    picture, pen = figures.canvas(GAP + len(panels) * (SIDE + GAP), TOP + SIDE + 110 + 34 * len(colours))
    figures.label(pen, (20, 16), "What boxes cost", 26)
    for i, (cost, series) in enumerate(panels.items()):
        left, lines = GAP + i * (SIDE + GAP), []
        for name, points in series.items():
            lines.append((colours[name], [(x, 100 * boxes) for x, boxes in points]))
        figures.chart(pen, (left, TOP, left + SIDE, TOP + SIDE), f"boxes (%) against {cost}", cost, lines, log_x=True)
    for i, (name, colour) in enumerate(colours.items()):
        y = TOP + SIDE + 110 + 34 * i
        pen.circle((GAP + 7, y), 6, "white", colour, 2)
        figures.label(pen, (GAP + 22, y), name, 19, "lm")
    figures.save(picture, path)

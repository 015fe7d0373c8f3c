"""Look at a data set before a model does: python -m parts.tasks NAME=FOLDER

Checks every row and decodes every image; lists all that are wrong (exit code 2) and draws the first into runs/rows.png.
"""

import argparse
import signal
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from parts.files import InputError, writing
from parts.tasks import TASKS, read_rows, scenes
from parts.tasks.boxes import draw_box
from parts.tasks.images import Visual, open_image
from parts.tasks.rows import all_checked

SHOWN, COLUMNS, SIDE = 12, 4, 320


def check(name, root, split):
    """(good examples, errors of the bad ones) of a split; every image is decoded, once."""
    decoded = set()

    def look(example):
        for visual in map(Visual, sum(example.get("videos", []), example["images"])):
            if visual.size and visual.key not in decoded:
                open_image(*visual.frames)
                decoded.add(visual.key)

    rows, folder = read_rows(name, root, split, limit=100 if name in scenes.DRAWN else None)
    return all_checked(rows, TASKS[name], folder, look)


def picture(examples):
    """The images of some examples in a grid, each with its box and what is asked."""
    grid = Image.new("RGB", (COLUMNS * SIDE, -(-len(examples) // COLUMNS) * SIDE), "white")
    pen = ImageDraw.Draw(grid)
    for i, example in enumerate(examples):
        image = open_image(example["images"][0])
        scale = (SIDE - 40) / max(image.size)
        x, y = i % COLUMNS * SIDE + 10, i // COLUMNS * SIDE + 30
        pen.text((x, y - 22), (example["caption"] or example["prompt"])[:45], "black", font_size=13)
        grid.paste(image.resize([max(1, round(side * scale)) for side in image.size]), (x, y))
        if not isinstance(example["answer"], str):
            draw_box(pen, [start + c * scale for start, c in zip((x, y, x, y), example["answer"])], (0, 158, 115))
    return grid


def main(argv=None):
    parser = argparse.ArgumentParser("python -m parts.tasks", description=__doc__.partition("\n")[0])
    parser.add_argument("data", metavar="NAME=FOLDER", help="data set, and where its files are")
    parser.add_argument("--split", help="of the rows (default: train; of a FILE all rows)")
    args = parser.parse_args(argv)
    name, _, root = args.data.partition("=")
    try:
        good, bad = check(name, root or None, args.split or ("test" if Path(root).is_file() else "train"))
        for example in good[:SHOWN]:
            print(f"{example['source']}: {example['prompt']!r} -> {example['answer']!r}")
        if shown := [example for example in good if example["images"]][:SHOWN]:
            with writing("runs/rows.png") as part:
                picture(shown).save(part, "png")
            print("drawn in runs/rows.png")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{len(good)} rows are good, {len(bad)} are bad", *bad, sep="\n")
    sys.exit(2 if bad else 0)


if __name__ == "__main__":
    signal.signal(getattr(signal, "SIGPIPE", signal.SIGTERM), signal.SIG_DFL)  # "| head -1" ends it without a word
    main()

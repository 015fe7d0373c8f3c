"""Rows of a data set, checked, printed and drawn, before any training: python -m parts.tasks NAME=FOLDER"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from parts.files import InputError
from parts.tasks import default_root, load
from parts.tasks.boxes import draw_box
from parts.tasks.images import open_image

SIDE = 320  # pixels of a tile
ACROSS = 4


def tile(row):
    """The only image of a row, with its box."""
    image = open_image(row["images"][0])
    scale = SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    if not isinstance(row["answer"], str):
        draw_box(ImageDraw.Draw(image), [c * scale for c in row["answer"]], "red")
    return image


def show(name, folder, split, out):
    """Print twelve rows, and draw those with one image into OUT/rows.png."""
    rows = load(name, default_root(name, folder), split, 12)
    for row in rows:
        print(f"{row['source']}: {row['prompt']!r} -> {row['answer']!r}")
    drawn = [tile(row) for row in rows if len(row["images"]) == 1]
    if drawn:
        sheet = Image.new("RGB", (ACROSS * SIDE, -(-len(drawn) // ACROSS) * SIDE), "white")
        for i, image in enumerate(drawn):
            sheet.paste(image, (i % ACROSS * SIDE, i // ACROSS * SIDE))
        out.mkdir(parents=True, exist_ok=True)
        sheet.save(out / "rows.png")
        print(f"drawn in {out / 'rows.png'}")


def main(argv=None):
    parser = argparse.ArgumentParser(usage="python -m parts.tasks NAME=FOLDER [flags]", description=__doc__)
    parser.add_argument("data", metavar="NAME=FOLDER", help="data set, and where its files are")
    parser.add_argument("--split", default="train", help="of the rows (default: train)")
    parser.add_argument("--out", type=Path, default=Path("runs/rows"), help="folder of the picture (default: runs/rows)")
    args = parser.parse_args(argv)
    name, _, folder = args.data.partition("=")
    try:
        show(name, folder or None, args.split, args.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

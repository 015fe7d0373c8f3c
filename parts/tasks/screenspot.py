"""ScreenSpot-Pro and ScreenSpot-v2: find a control in a screenshot.

    {"img_filename": "autocad_windows/screenshot_1.png", "img_size": [3840, 2160], "bbox": [1240, 64, 1273, 97],
     "instruction": "draw a circle", "ui_type": "icon", "group": "CAD"}

files    Pro (hub data set likaixin/ScreenSpot-Pro): annotations/*.json, images in images/; boxes x1, y1, x2, y2
         v2 (hub data set OS-Copilot/ScreenSpot-v2): screenspot_{desktop,mobile,web}_v2.json with "data_type" for
         "ui_type", images in screenspotv2_image/; boxes x, y, width, height
prompt   GROUNDING_PROMPT with TARGET; learnt is the box
splits   test is everything; train and val are ours (`in_split`, by the image)
metric   the point, or the centre of the box, is in the target; counted by text and icon, and by group or platform
"""

from parts.files import InputError
from parts.tasks.boxes import corners
from parts.tasks.rows import entries, in_split, rows_of

NAMES, IMAGES = ("screenspot-pro", "screenspot-v2"), ("", "images", "screenspotv2_image")
TARGET = 'the element for the command "{}"'  # in GROUNDING_PROMPT


def rows(name, root, split):
    pattern = "annotations/*.json" if name == "screenspot-pro" else "screenspot_*_v2.json"
    files = sorted(root.glob(pattern))
    if not files:
        raise InputError(f"{root}: no {pattern} here; parts/tasks/screenspot.py says where to get it")

    def row_of(row):
        if not in_split(split, row["img_filename"]):
            return
        target = {"image": row["img_filename"], "sent": TARGET.format(row["instruction"]), "metric": "point"}
        if name == "screenspot-pro":
            target |= dict(zip(("width", "height"), row["img_size"]))
            yield target | {"bbox": row["bbox"], "kind": row["ui_type"], "group": row["group"]}
        else:
            yield target | {"bbox": corners(row["bbox"]), "kind": row["data_type"], "group": file.stem.split("_")[1]}

    for file in files:
        yield from rows_of(entries(file), row_of, f"a row of {name}")

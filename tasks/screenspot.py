"""ScreenSpot-Pro and ScreenSpot-v2: find a control in a screenshot."""

from files import InputError
from tasks.boxes import corners
from tasks.rows import json_rows, ours, reading

SCREENSPOT_PROMPT = 'In this UI screenshot, what is the position of the element corresponding to the command "{}"?'


def screenspot(name, root, split):
    """ScreenSpot-Pro: root/annotations/*.json with "img_filename", "img_size", "bbox" x1 y1 x2 y2, "instruction",
    "ui_type" (text or icon), "group"; ScreenSpot-v2: root/screenspot_{desktop,mobile,web}_v2.json with "bbox" x y w h,
    "data_type", "data_source"; images in root/images (or root/screenspotv2_image). SeeClick's prompt. Metric: the point,
    or the centre of the box, lies in the target. Splits: see `ours`; counted by text and icon, and by group."""
    pro = name == "screenspot-pro"
    files = sorted((root / "annotations").glob("*.json") if pro else root.glob("screenspot_*_v2.json"))
    if not files:
        raise InputError(f"{root}: no {'annotations/*.json' if pro else 'screenspot_*_v2.json'} here; see the README")
    if split not in ("train", "val", "test"):
        raise InputError(f"{name}: no split {split!r}; present: train, val, test")
    for file in files:
        for row, source in json_rows(file):
            with reading(source, name):
                found = {"image": row["img_filename"], "prompt": SCREENSPOT_PROMPT.format(row["instruction"])}
                found |= {"bbox": row["bbox"] if pro else corners(row["bbox"]), "metric": "point"}
                found |= {"kind": row["ui_type" if pro else "data_type"]}
                found |= {"group": row["group"] if pro else file.stem.split("_")[1]}
                found |= dict(zip(("width", "height"), row["img_size"])) if pro else {}
            if split in ("test", ours(found["image"])):
                yield found, source

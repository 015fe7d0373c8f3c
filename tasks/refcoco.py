"""RefCOCO, RefCOCO+, RefCOCOg: find what a phrase describes."""

import pickle
import re

from files import InputError, read_json
from tasks.boxes import corners, parse_box
from tasks.rows import json_rows, reading

REFCOCO_FILES = {  # data set -> its REFER pickle, and what its JSON files are called
    "refcoco": ("refs(unc).p", ("refcoco",)),
    "refcoco+": ("refs(unc).p", ("refcoco+", "refcocop")),
    "refcocog": ("refs(umd).p", ("refcocog",)),
}


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers and strings. A pickle can name any function to be called while it is read; this one
    refuses every name, so that a data file cannot run code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks to run {module}.{name}")


def read_pickle(file):
    try:
        with open(file, "rb") as f:
            return PlainUnpickler(f, encoding="utf-8", errors="replace").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise InputError(f"{file}: not a pickle of plain data ({error}); refused") from None


def refer_rows(folder, pickle_name, split):
    """The original REFER layout: refs(unc).p has the expressions, instances.json (COCO style) the boxes."""
    refs, instances = read_pickle(folder / pickle_name), read_json(folder / "instances.json")
    present = sorted({ref["split"] for ref in refs})
    if split not in present:
        raise InputError(f"{folder / pickle_name}: no split {split!r}; present: {', '.join(present)}")
    boxes = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
    images = {image["id"]: image for image in instances["images"]}
    for ref in refs:
        if ref["split"] == split:
            source = f"{folder / pickle_name}, ref {ref['ref_id']}"
            if ref["ann_id"] not in boxes or ref["image_id"] not in images:
                raise InputError(f"{source}: annotation {ref['ann_id']} is not in instances.json")
            image = images[ref["image_id"]]
            for sentence in ref["sentences"]:
                # the file_name of a ref carries a suffix that its image's name lacks, so the id names the image
                row = {"image": f"COCO_train2014_{ref['image_id']:012d}.jpg", "sent": sentence["sent"]}
                row |= {"bbox": corners(boxes[ref["ann_id"]]), "width": image["width"], "height": image["height"]}
                yield row, source


def refcoco_row(row, source):
    """The JSON forms of the RefCOCO family -> one. Qwen-VL's evaluation: {"image", "sent", "bbox" x1 y1 x2 y2};
    VLM-R1's: {"image", "problem", "solution" x1 y1 x2 y2} and {"image", "conversations"}; and the annotations
    {"img_id", "sents", "bbox" x y w h}."""
    with reading(source, "RefCOCO"):
        if "conversations" in row:
            question, answer = (turn["value"] for turn in row["conversations"])
            return {"image": row["image"], "sent": described(question), "bbox": parse_box(answer)}
        if "problem" in row:
            return {"image": row["image"], "sent": described(row["problem"]), "bbox": row["solution"]}
        if "img_id" in row:
            image = re.sub(r"_\d+$", "", row["img_id"]) + ".jpg"
            return row | {"image": image, "sent": row["sents"], "bbox": corners(row["bbox"])}
        size = {key: row[key] for key in ("width", "height") if key in row}
        return size | {key: row[key] for key in ("image", "sent", "bbox")}


def described(question):
    """VLM-R1 wraps each expression in its own prompt: take what stands behind "describes:"."""
    return re.sub(r".*describes:\s*", "", question.replace("<image>", ""), flags=re.DOTALL).strip()


def refcoco(name, root, split):
    """RefCOCO, RefCOCO+, RefCOCOg: REFER's folder (root/refcoco/refs(unc).p, instances.json) or the JSON files
    root/refcoco_<split>.json or .jsonl of VLM-R1 and Qwen-VL; images in root/images/train2014 or root/train2014."""
    pickle_name, prefixes = REFCOCO_FILES[name]
    if (root / name / pickle_name).exists():
        yield from refer_rows(root / name, pickle_name, split)
        return
    found = {
        file.stem.removeprefix(f"{prefix}_"): file
        for prefix in prefixes
        for suffix in ("json", "jsonl")
        for file in sorted(root.glob(f"{prefix}_*.{suffix}"))
    }
    if not found:
        raise InputError(
            f"{root}: no {name} here; put {name}/{pickle_name} and {name}/instances.json of REFER "
            f"(github.com/lichengunc/refer), or {prefixes[-1]}_<split>.json of VLM-R1 (hub data set omlab/VLM-R1, "
            f"rec_jsons_processed.zip), into this folder and COCO's train2014 images into {root}/images/train2014"
        )
    if split not in found:
        raise InputError(f"{root}: no split {split!r} of {name}; present: {', '.join(sorted(found))}")
    for row, source in json_rows(found[split]):
        yield refcoco_row(row, source), source

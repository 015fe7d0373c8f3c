"""RefCOCO, RefCOCO+, RefCOCOg: find what a phrase describes.

    {"image": "train2014/COCO_train2014_000000581857.jpg", "sent": "the lady with the blue shirt",
     "bbox": [103, 299, 238, 476]}

files    fetched into a cache folder; or in your own: REFER's NAME/refs(unc).p and NAME/instances.json
         (github.com/lichengunc/refer), or NAME_<split>.json or .jsonl of VLM-R1 (hub data set omlab/VLM-R1, unpacked
         as it is: rec_jsons_processed/) or of Qwen-VL (data/NAME/); COCO's images in one of IMAGES
prompt   GROUNDING_PROMPT, also that of your own boxes and of the drawn scenes
splits   train, val, testA (people), testB (things); RefCOCOg: train, val, test (umd)
metric   accuracy@0.5: the predicted box and the reference have an IoU of at least 0.5
"""

import pickle
import re
from itertools import product
from pathlib import PurePosixPath

from parts.files import InputError, read_json, reading
from parts.tasks.boxes import corners, parse_box
from parts.tasks.rows import entries, file_of, rows_of

FILES = {  # name -> its REFER pickle, and how its JSON files begin
    "refcoco": ("refs(unc).p", ("refcoco",)),
    "refcoco+": ("refs(unc).p", ("refcoco+", "refcocop")),
    "refcocog": ("refs(umd).p", ("refcocog",)),
}
COCO = ("train2014", "coco/train2014", "coco2014/train2014", "images/mscoco/images/train2014")
IMAGES = (*COCO, *(f"../{folder}" for folder in COCO), "data/coco2014/train2014", "images/train2014", "")  # may be beside


def rows(name, root, split):
    """Rows of REFER's folder if it exists, else of the JSON file of the split."""
    pickle_name, prefixes = FILES[name]
    for folder in (root / name, root):  # the folder of REFER, or of this one set in it
        if folder.name == name and (folder / pickle_name).exists():
            return refer_rows(folder, pickle_name, split)
    folders = ("", "rec_jsons_processed/", f"{name}/", f"data/{name}/")
    patterns = [f"{folder}{prefix}_*.json{l}" for folder, prefix, l in product(folders, prefixes, ("l", ""))]
    hint = f"put {name}/{pickle_name} and {name}/instances.json of REFER (github.com/lichengunc/refer), or VLM-R1's files "
    hint += f"(hub: omlab/VLM-R1, rec_jsons_processed.zip), into it and COCO's train2014 images into {root}/images/train2014"
    return rows_of(entries(file_of(root, split, hint, *patterns)), row_of, f"a row of {name}")


def row_of(row):
    """The four JSON forms of the family -> one."""
    if "conversations" in row:  # VLM-R1, to train
        ask, answer = (turn["value"] for turn in row["conversations"])
        yield target(row["image"], ask, parse_box(answer), row)
    elif "problem" in row:  # VLM-R1, to evaluate
        yield target(row["image"], row["problem"], row["solution"], row)
    elif "img_id" in row:  # the annotations themselves: the box is x, y, width, height
        yield target(re.sub(r"_\d+$", "", row["img_id"]) + ".jpg", row["sents"], corners(row["bbox"]), row)
    else:  # Qwen-VL's evaluation
        yield target(row["image"], row["sent"], row["bbox"], row)


def target(image, sent, box, sizes):
    """The lists name other folders than those in which COCO's images are, so the name alone counts. VLM-R1 puts each phrase
    into its own prompt, which ends in "describes:"."""
    phrase = sent.replace("<image>", "").rpartition("describes:")[2].strip()
    size = {key: sizes[key] for key in ("width", "height") if key in sizes}
    return {"image": PurePosixPath(image).name, "sent": phrase, "bbox": box} | size


def refer_rows(folder, pickle_name, split):
    """refs(unc).p has the phrases, instances.json (as COCO's) the boxes: x, y, width, height."""
    file, instances_file = folder / pickle_name, folder / "instances.json"
    with reading(file, "a pickle of plain data, the references of REFER; refused"), open(file, "rb") as pickled:
        refs = PlainData(pickled, encoding="utf-8", errors="replace").load()
        present = sorted({ref["split"] for ref in refs})
    if split not in present:
        raise InputError(f"{file}: no split {split!r}; present: {', '.join(present)}")
    with reading(instances_file, "annotations as COCO's"):
        instances = read_json(instances_file)
        boxes = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
        images = {image["id"]: image for image in instances["images"]}

    def row_of(ref):
        # the file_name of a ref has a suffix that its image's name has not, so the id names the image
        name = f"COCO_train2014_{ref['image_id']:012d}.jpg"
        for sentence in ref["sentences"] if ref["split"] == split else ():
            yield target(name, sentence["sent"], corners(boxes[ref["ann_id"]]), images[ref["image_id"]])

    return rows_of(((ref, f"{file}, item {i}") for i, ref in enumerate(refs)), row_of, "a reference of REFER")


class PlainData(pickle.Unpickler):
    """A pickle is a program that can call any function. This one looks none up: lists, dicts, numbers, texts remain."""

    def find_class(self, module, name):
        raise ValueError(f"it asks for {module}.{name}")

"""A small hand-made folder of each data set, as a user has it."""

import json
import pickle
from functools import partial

from conftest import ROOT, picture

from parts.tasks import TASKS


def write_lines(file, rows):
    write(file, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(file, value):
    write(file, json.dumps(value))


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def draw(folder, *names, size):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(*size, i).save(folder / name)


def make_frames(folder, count):
    draw(folder, *(f"{i:05d}.jpg" for i in range(count)), size=(60, 40))


VLM_R1 = "Please provide the bounding box coordinate of the region this sentence describes: {}."  # in its files
COCO = [f"COCO_train2014_{i:012d}.jpg" for i in range(3)]
BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}  # who split it
SIZE = {"width": 100, "height": 80}


def make_coco(folder):
    draw(folder, *COCO, size=(100, 80))


def make_refcoco(root, name="refcoco", folder=""):
    """As VLM-R1 has it: the files of its zip in the root, or in `folder` there."""
    make_coco(root / "train2014")
    train, asked, start = [], [], root / folder / name.replace("+", "p")
    for i in range(6):
        question, box, image = VLM_R1.format(f"the {i} thing"), [i, 10, i + 30, 50], COCO[i % 3]
        talk = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": str(box)}]
        train.append({"image": f"coco/train2014/{image}", "conversations": talk})
        asked.append({"image": f"train2014/{image}", "problem": question, "solution": box, "normal_caption": ""})
    write_lines(start.with_name(f"{start.name}_train.jsonl"), train)
    for split in ("val", "test") if name == "refcocog" else ("val", "testA", "testB"):
        write_json(start.with_name(f"{start.name}_{split}.json"), asked[:3])


def make_refer(root, name="refcoco"):
    """REFER's folder, the original: boxes are x, y, width, height."""
    make_coco(root / "images/mscoco/images/train2014")
    refs = []
    for i, split in enumerate(("train", "val", "test" if name == "refcocog" else "testA")):
        sentences = [{"sent_id": i, "sent": sent, "raw": sent.upper()} for sent in (f"the {i} thing", f"thing {i}")]
        ref = {"ref_id": i, "ann_id": 10 + i, "image_id": i, "category_id": 1, "split": split, "sentences": sentences}
        refs.append(ref | {"file_name": f"{COCO[i][:-4]}_{10 + i}.jpg"})
    images = [{"id": i, "file_name": "x.jpg"} | SIZE for i in range(3)]
    boxes = [{"id": 10 + i, "image_id": i, "bbox": [i, 10, 30, 40], "category_id": 1} for i in range(3)]
    write_json(root / name / "instances.json", {"images": images, "annotations": boxes})
    (root / name / f"refs({BY[name]}).p").write_bytes(pickle.dumps(refs, protocol=2))


def make_qwen_vl(root, name="refcoco"):
    """Qwen-VL's evaluation: everything in the folder data."""
    make_coco(root / "data/coco2014/train2014")
    rows = []
    for i, image in enumerate(COCO):
        row = {"image": f"data/coco2014/train2014/{image}", "sent": f"the {i} thing", "bbox": [i, 10.0, i + 30.0, 50.0]}
        rows.append(row | SIZE)
    write_lines(root / f"data/{name}/{name}_val.jsonl", rows)


def make_folder(root, name):
    """A folder of folders.json: its images, and its files; a row with "{i}" in it stands for several."""
    files = dict(FOLDERS[name])
    times, images = files.pop("times"), files.pop("images")

    def several(value):
        text = json.dumps(value)
        return [json.loads(text.replace("{i}", str(i))) for i in range(times if "{i}" in text else 1)]

    for file, size in (pair for item in images.items() for pair in several(item)):
        draw(root, file, size=size)
    for file, content in files.items():
        rows = [row for each in content for row in several(each)] if isinstance(content, list) else content
        {".csv": write, ".json": write_json, ".jsonl": write_lines}[(root / file).suffix](root / file, rows)


FOLDERS = json.loads((ROOT / "tests/folders.json").read_text(encoding="utf-8"))
MAKERS = {name: partial(make_folder, name=name) for name in FOLDERS if name in TASKS}
MAKERS |= {name: partial(make_refcoco, name=name) for name in BY}

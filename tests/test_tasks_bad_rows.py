"""Bad input of every kind: one line that names the file, the row or the value."""

import json
import shutil

import pytest
from conftest import picture
from task_folders import write_json, write_lines

from data import load
from parts.files import InputError


def jsonl_of(tmp_path, *rows):
    picture(100, 80).save(tmp_path / "a.png")
    (tmp_path / "val.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return tmp_path


GOOD = {"image": "a.png", "sent": "cup", "bbox": [1, 2, 30, 40]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", r"val.jsonl:2: not JSON"),
        ([1, 2], r"val.jsonl:2: expected an object"),
        (GOOD | {"bbox": [1, 2, 3]}, r"val.jsonl:2: a box is four numbers .* got \[1, 2, 3\]"),
        (GOOD | {"bbox": [1, 2, "3", 4]}, r"val.jsonl:2: a box is four numbers"),
        (GOOD | {"bbox": None}, r"val.jsonl:2: a box is four numbers"),
        (GOOD | {"bbox": [10, 20, 300, 40]}, r"val.jsonl:2: box \[10, 20, 300, 40\] does not lie in its image .*a.png"),
        (GOOD | {"bbox": [30, 20, 10, 40]}, r"val.jsonl:2: box .* does not lie in its image"),
        (GOOD | {"image": "b.png"}, r"val.jsonl:2: its image b.png is not in"),
        (GOOD | {"width": 640, "height": 480}, r"val.jsonl:2: says 640 x 480 pixels, but .*a.png has 100 x 80"),
        ({"image": "a.png", "sent": "cup"}, r'val.jsonl:2: needs a text "answer" or a "bbox"'),
        ({"image": "a.png", "answer": "x"}, r'val.jsonl:2: needs a text "prompt" or "sent"'),
        ({"images": "a.png", "prompt": "cup", "answer": "x"}, r'val.jsonl:2: "images" must be a list'),
        ({"sent": "cup", "bbox": [1, 2, 3, 4]}, r"val.jsonl:2: a box needs exactly one image, got 0"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    root = jsonl_of(tmp_path, GOOD, row)
    with pytest.raises(InputError, match=message):
        load("jsonl", root, "val")


def test_a_row_that_is_not_utf8_is_named(tmp_path):
    root = jsonl_of(tmp_path, GOOD)
    (root / "val.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "x"}')
    with pytest.raises(InputError, match="val.jsonl:1: not JSON"):
        load("jsonl", root, "val")


def test_a_bad_row_of_each_format_is_named(tmp_path):
    bad = {
        "screenspot-pro": ("annotations/a.json", json.dumps([{"img_filename": "a.png"}]), "test"),
        "screenspot-v2": ("screenspot_web_v2.json", json.dumps([{"img_filename": "a.png", "bbox": 3}]), "test"),
        "textvqa": ("TextVQA_0.5.1_val.json", json.dumps({"data": [{"image_id": "a"}]}), "val"),
        "nextqa": ("val.csv", "video,question,answer,type,a0,a1,a2,a3,a4\nv,why,7,CW,a,b,c,d,e\n", "val"),
        "vilp": ("vilp.jsonl", json.dumps({"question": "a"}), "test"),
        "gsm8k": ("test.jsonl", json.dumps({"question": "a"}), "test"),
        "llava": ("val.json", json.dumps([{"image": "a.png", "conversations": [{"from": "gpt", "value": ""}]}]), "val"),
    }
    for name, (file, text, split) in bad.items():
        root = tmp_path / name
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
        with pytest.raises(InputError, match=f"{file.split('/')[-1]}(, row 1|:1|:2): "):
            load(name, root, split)
        with pytest.raises(InputError):  # and an empty folder says what is missing
            load(name, tmp_path, split)


def test_a_relative_box_is_an_error_not_a_guess(tmp_path):
    picture(60, 60).save(tmp_path / "a.png")
    write_lines(tmp_path / "val.jsonl", [{"image": "a.png", "sent": "it", "bbox": [0.1, 0.1, 0.5, 0.6]}])
    with pytest.raises(InputError, match=r"val.jsonl:1: box .* looks relative"):
        load("jsonl", tmp_path, "val")


def test_an_image_in_a_later_turn_is_refused_not_lost(tmp_path):
    picture(60, 60).save(tmp_path / "a.png")
    turns = [("human", "Hello."), ("gpt", "Hello."), ("human", "<image>\nWhat is it?"), ("gpt", "a ring")]
    row = {"image": "a.png", "conversations": [{"from": who, "value": said} for who, said in turns]}
    write_json(tmp_path / "train.json", [row])
    with pytest.raises(InputError, match="train.json, row 1: <image> in a later turn"):
        load("llava", tmp_path, "train")


def test_unknown_data_sets_and_splits_list_the_known_ones(tmp_path, shared):
    root = jsonl_of(tmp_path, GOOD)
    with pytest.raises(InputError, match="unknown data set 'cocoref'; known: refcoco, .*jsonl"):
        load("cocoref", root, "val")
    with pytest.raises(InputError, match="no such split; present: val"):
        load("jsonl", root, "train")
    with pytest.raises(InputError, match="no refcoco here; put .* into this folder"):
        load("refcoco", root, "val")
    with pytest.raises(InputError, match="no split 'train'; present: testA, testB, val"):
        load("refcoco", shared / "refcoco-mini", "train")
    with pytest.raises(InputError, match="no split 'dev'; present: train, val, test"):
        load("scenes", None, "dev", 3)


def test_an_annotation_without_its_image_names_both(shared, tmp_path):
    shutil.copytree(shared / "refcoco-mini/refcoco", tmp_path / "refcoco")
    with pytest.raises(InputError, match=r"refs\(unc\).p, ref 0: its image COCO_train2014_000000000716.jpg is not in"):
        load("refcoco", tmp_path, "val")

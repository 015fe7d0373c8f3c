"""Each data set in the format of its makers, by hand and small: what is asked, what is learnt, and what is refused."""

import json
import shutil
from collections import Counter

import pytest
import task_folders as folders
from conftest import picture
from short_run import lines_of, run
from task_folders import MAKERS, write_json, write_lines

from data import load
from parts import tasks
from parts.files import InputError, read_json
from parts.tasks import TASKS, Task, score
from parts.tasks.answers import prediction
from parts.tasks.boxes import box_to_model
from parts.tasks.images import resized_size
from parts.tasks.rows import BOX_ANSWER, json_rows

LOCATE = "Locate {} in this image and output the bbox coordinates in JSON format."
PRESS = LOCATE.format('the element for the command "press 0"')
CHOICES = "why did the boy, in red, run?\nA. to play\nB. to eat\nC. to rest\nD. to see\nE. to go"
CHOICES += "\nAnswer with the option's letter from the given choices directly."
STEPS = 'How many, 0?\nThink step by step, and write the final number after "####" at the end.'
SOLUTION = "She has 3 + 4 = 7 nuts.\nThat is 7 * 1000 = $7,000.\n#### 7,000"  # without the calculator's marks
ASK = {"prompt": "What?", "answer": "x"}
BOX, CONTROL = (0, 10, 30, 50), (20, 10, 60, 30)
PLAIN, BY_PLATFORM = [("", "")], [("text", "desktop"), ("icon", "mobile"), ("text", "web")]
NUMBER = "what number?\nAnswer the question using a single word or phrase."
BALL = "Please answer with one word: A ball is round. What shape is ball 0?"
TEN = ["nine", "9", "nine", "the nine", "9", "9.", "ten", "nine", "9", "9"]
REFCOCO = ({"train": 6, "val": 3, "testA": 3, "testB": 3}, LOCATE.format("the 0 thing"), BOX, None, PLAIN)
EXPECTED = {  # name: (rows of each split; of the last one, the first prompt, answer and reference; kinds and groups in order)
    "refcoco": REFCOCO,
    "refcoco+": REFCOCO,
    "refcocog": ({"train": 6, "val": 3, "test": 3}, *REFCOCO[1:]),
    "screenspot-pro": ({"train": 9, "val": 1, "test": 10}, PRESS, CONTROL, None, [("text", "CAD"), ("icon", "CAD")]),
    "screenspot-v2": ({"train": 11, "val": 1, "test": 12}, PRESS, CONTROL, None, BY_PLATFORM),
    "textvqa": ({"train": 1, "val": 2}, NUMBER, "9", TEN, PLAIN),
    "nextqa": ({"train": 1, "val": 3}, CHOICES, "B", None, [("CW", "causal"), ("TN", "temporal")]),  # TP counts as TN
    "vilp": ({"train": 69, "val": 21, "test": 90}, BALL, "circle", None, [("prior", ""), ("score", "")]),
    "gsm8k": ({"train": 4, "test": 4}, STEPS, SOLUTION, "7000", PLAIN),
    "jsonl": ({"train": 2, "val": 4}, "What is it?", "a ring", None, PLAIN),
    "llava": ({"train": 1, "val": 3}, "What is it?", "a ring", None, PLAIN),
}


@pytest.mark.parametrize("name", sorted(TASKS.keys() - tasks.scenes.DRAWN.keys()))
def test_the_official_format_is_read(name, tmp_path, processor):
    MAKERS[name](tmp_path)
    counts, prompt, answer, reference, kinds = EXPECTED[name]
    splits = {split: load(name, tmp_path, split) for split in counts}
    assert {split: len(rows) for split, rows in splits.items()} == counts
    *_, last = splits.values()
    assert (last[0].prompt, last[0].answer, last[0].reference) == (prompt, answer, reference)
    assert list(dict.fromkeys((e.kind, e.group) for e in last)) == kinds
    for example in [e for rows in splits.values() for e in rows]:  # the answer learnt from every row scores 1
        made = prediction(example, processor.answer_text(example), processor)
        assert (made["score"], made["failed"]) == (1, False), made


BAD = {
    "refcoco": ("refcoco_val.json", [{"image": "a.png"}], "val"),
    "screenspot-pro": ("annotations/a.json", [{"img_filename": "a.png"}], "test"),
    "screenspot-v2": ("screenspot_web_v2.json", [{"img_filename": "a.png", "bbox": 3}], "test"),
    "textvqa": ("TextVQA_0.5.1_val.json", {"data": [{"image_id": "a", "question": "?", "answers": [1]}]}, "val"),
    "nextqa": ("val.csv", "video,question,answer,type,a0,a1,a2,a3,a4\nv,why,7,CW,a,b,c,d,e\n", "val"),
    "vilp": ("vilp.jsonl", {"question": "a"}, "test"),
    "gsm8k": ("test.jsonl", {"question": "a"}, "test"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_of_each_format_is_named_and_an_empty_folder_says_what_is_missing(name, tmp_path):
    file, content, split = BAD[name]
    with pytest.raises(InputError, match=f"{tmp_path}"):
        load(name, tmp_path, split)
    folders.write(tmp_path / file, content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=f"{file}(, row 1|:1|:2): not a row of "):
        load(name, tmp_path, split)


MISSING = {  # data set, split: what the line says
    ("cocoref", "val"): "unknown data set 'cocoref'; there are refcoco, .*jsonl",
    ("refcoco", "test"): "no split 'test'; present: testA, testB, train, val; .*--eval-split",
    ("scenes", "dev"): "no split 'dev'; present: train, val",
    ("jsonl", "val"): "no .*jsonl here; write val.jsonl; docs/datasets.md has recipes",
    ("llava", "nowhere"): "nowhere: no such file or folder",
}


@pytest.mark.parametrize(("name", "split"), MISSING)
def test_unknown_data_sets_splits_and_files_list_those_that_exist(tmp_path, name, split):
    folders.make_refcoco(tmp_path / "refcoco")
    (tmp_path / "jsonl").mkdir()
    with pytest.raises(InputError, match=MISSING[name, split]):
        load(name, tmp_path / (split if split == "nowhere" else name), split, 3)


def test_a_limit_takes_an_even_sample_of_files_in_some_order_and_else_the_first_rows(tmp_path):
    assert {name for name, task in TASKS.items() if task.even} == {"screenspot-pro", "screenspot-v2", "jsonl", "llava"}
    MAKERS["screenspot-v2"](tmp_path)
    platforms = [e.group for e in load("screenspot-v2", tmp_path, "test", limit=6)]
    assert platforms == ["desktop", "desktop", "mobile", "mobile", "web", "web"]
    folders.make_refcoco(tmp_path)  # whose images are fetched: few rows, few images
    assert [e.images[0].name[-6:] for e in load("refcoco", tmp_path, "train", limit=2)] == ["00.jpg", "01.jpg"]


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_every_layout_of_the_refcoco_family_loads_as_it_is_unpacked(name, tmp_path):
    folders.make_refcoco(tmp_path / "flat", name)
    folders.make_refcoco(tmp_path / "zip", name, folder="rec_jsons_processed")  # VLM-R1's zip, beside COCO's images
    folders.make_refer(tmp_path / "refer", name)
    folders.make_qwen_vl(tmp_path / "qwen", name)
    three = {(f"0{i}.jpg", (i, 10, i + 30, 50)) for i in range(3)}
    for root in ("flat", "zip", "zip/rec_jsons_processed", "refer", "qwen", "qwen/data", f"qwen/data/{name}"):
        rows = load(name, tmp_path / root, "val")
        assert all(e.prompt == LOCATE.format(e.caption) for e in rows)
        expected = {("01.jpg", (1, 10, 31, 50))} if root == "refer" else three  # its val is one image with two phrases
        assert {(e.images[0].name[-6:], e.answer) for e in rows} == expected
    shutil.move(tmp_path / "refer", tmp_path / "data")  # REFER's zip, unpacked in data/
    assert [e.caption for e in load(name, tmp_path / "data" / name, "val")] == ["the 1 thing", "thing 1"]


def test_the_json_forms_of_the_refcoco_family_agree(tmp_path):
    folders.make_folder(tmp_path, "five forms")
    rows = [(e.prompt, e.caption, e.answer) for e in load("refcoco+", tmp_path, "val")]
    assert rows == [(LOCATE.format("the red cup"), "the red cup", (10, 20, 40, 60))] * 5


@pytest.mark.parametrize(("split", "count"), [("val", 10834), ("testA", 5657), ("testB", 5095)])
def test_the_real_refcoco_annotations_parse_and_every_box_is_right_after_it_was_resized_and_clamped(shared, split, count):
    rows = list(TASKS["refcoco"].rows("refcoco", shared / "refcoco-annotations", split))
    assert len(rows) == count
    for row, source in rows:
        size = (row["width"], row["height"])
        resized = resized_size(*size, 28, 3136, 401408)
        answer = BOX_ANSWER.format(box_to_model(row["bbox"], size, resized))
        assert score("iou", answer, row["bbox"], size, resized)["score"] == 1, source


def test_the_real_photographs_gsm8k_and_screenspot_parse_completely(shared):
    refer = {("refcoco", "testA"): 36, ("refcoco+", "testB"): 12, ("refcocog", "test"): 8}
    assert {key: len(load(key[0], shared / "refcoco-mini", key[1])) for key in refer} == refer
    rows = load("gsm8k", shared / "gsm8k", "test")
    assert len(rows) == 1319 and all(e.reference.lstrip("-").replace(".", "", 1).isdigit() for e in rows)
    rows = [row for row, _ in TASKS["screenspot-v2"].rows("screenspot-v2", shared / "screenspot", "test")]
    assert Counter(row["group"] for row in rows) == {"desktop": 334, "mobile": 501, "web": 437}
    assert [len(load("jsonl", shared / "coco-photos", split)) for split in ("train", "val")] == [245, 215]


def test_nextqa_has_the_clock_of_its_table(tmp_path):
    MAKERS["nextqa"](tmp_path)
    file = tmp_path / "val.csv"
    file.write_text(file.read_text(), encoding="utf-8-sig")  # with a byte order mark
    assert [e.fps for e in load("nextqa", tmp_path, "val")] == [8 / 10] * 3  # 8 of 300 frames at 30 a second


@pytest.mark.parametrize(("count", "bad"), [(10, 1), (10, 2), (1, 1)])
def test_a_target_over_the_edge_of_its_image_costs_its_row_but_many_cost_the_data_set(tmp_path, capsys, count, bad):
    MAKERS["screenspot-pro"](tmp_path)
    file = tmp_path / "annotations/autocad_windows.json"
    rows = read_json(file)[:count]
    write_json(file, [row | {"bbox": [180, 10, 230, 30]} for row in rows[:bad]] + rows[bad:])
    if (count, bad) == (10, 1):
        assert len(load("screenspot-pro", tmp_path, "test")) == 9
        assert "skipped  1 of 10 rows: " in capsys.readouterr().out
        return
    with pytest.raises(InputError, match="box .180, 10, 230, 30. does not lie in its image"):
        load("screenspot-pro", tmp_path, "test")


LEAD_OUT = ["../secret.png", "images/../../secret.png", "link/../secret.png", "FULL", "/proc/self/cwd/secret.png", "..", "/"]
LEAD_OUT += ["..\\secret.png", "C:\\secret.png", "C:secret.png", "\\\\host\\share\\secret.png", "//?/C:/secret.png", "."]
LEAD_NOWHERE = ["%2e%2e/secret.png", "~/secret.png", "file://FULL", "secret.png\0", "\0", "a" * 5000, "http://x/secret.png"]


@pytest.mark.parametrize("name", [*LEAD_OUT, *LEAD_NOWHERE, 3, True, ["a.png"], {"a": 1}])
def test_no_name_in_an_annotation_leads_out_of_the_root(tmp_path, name):
    why = {"refcoco": "", "llava": "leads out of" if name in LEAD_OUT else ""}
    root = tmp_path / "root"
    (root / "link").mkdir(parents=True)
    picture(60, 60).save(tmp_path / "secret.png")
    name = name.replace("FULL", str(tmp_path / "secret.png")) if isinstance(name, str) else name
    write_json(root / "refcoco_val.json", [{"image": name, "sent": "cup", "bbox": [1, 2, 30, 40]}])
    write_json(root / "val.json", [ASK | {"videos": [name]}])
    for data, reason in why.items():
        with pytest.raises(InputError, match=f"val.json, row 1: .*{reason}") as error:
            load(data, root, "val")
        assert len(str(error.value)) < 2000


def test_what_an_owner_linked_into_the_root_or_put_beside_it_is_used(tmp_path):
    for folder in ("data/root", "linked"):
        (tmp_path / folder).mkdir(parents=True)
        picture(60, 60).save(tmp_path / folder / "inside.png")
    root = tmp_path / "data/root"
    (root / "link").symlink_to(tmp_path / "linked", target_is_directory=True)
    (root.parent / "train2014").symlink_to(tmp_path / "linked", target_is_directory=True)
    names = ("inside.png", str(root / "inside.png"), "link/inside.png", "./inside.png", "link\\inside.png")
    write_lines(root / "val.jsonl", [ASK | {"image": name} for name in names])
    assert all(e.images[0].is_file() for e in load("jsonl", root, "val"))
    write_json(root / "refcoco_val.json", [{"image": "coco/inside.png", "sent": "cup", "bbox": [1, 2, 30, 40]}])
    assert load("refcoco", root, "val")[0].images[0].samefile(tmp_path / "linked/inside.png")


def loud_rows(name, root, split):
    for row, source in json_rows(root / f"{split}.jsonl"):
        yield {"image": row["file"], "prompt": "Which colour?", "answer": row["colour"], "metric": "loud"}, source


def score_loud(text, reference, *_):
    return text, float(text == reference.upper())


def test_a_data_set_with_its_own_metric_and_split_is_two_functions_and_a_line(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "loud", Task(loud_rows, {"loud": score_loud}, eval_split="test"))
    picture(60, 60).save(tmp_path / "a.png")
    for split in ("train", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [{"file": "a.png", "colour": c} for c in ("red", "blue")])
    report = run(checkpoint, tmp_path / "run", f"--data=loud={tmp_path}", f"--eval=loud={tmp_path}", "--steps=1")
    rows = lines_of(tmp_path / "run/predictions.jsonl")
    assert report["tuned"]["accuracy"] == 0 and {row["metric"] for row in rows} == {"loud"}
    assert {row["reference"] for row in rows} == {"red", "blue"} and all("test.jsonl" in row["source"] for row in rows)

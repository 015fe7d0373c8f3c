"""Each data set in the format of its makers, by hand and small: counts, prompts, kinds; and what is learnt is right."""

import re
import shutil
import subprocess

import pytest
from conftest import picture
from task_folders import (
    MAKERS,
    make_gsm8k,
    make_nextqa,
    make_qwen_vl,
    make_refcoco,
    make_refer,
    make_screenspot_pro,
    make_screenspot_v2,
    write_json,
)

from data import Processor, load
from harness.encodings import load_examples
from harness.evaluate import prediction
from parts.files import InputError, read_json
from parts.tasks import TASKS, score
from parts.tasks.boxes import box_to_model
from parts.tasks.images import resized_size
from parts.tasks.rows import BOX_ANSWER

LOCATE = "Locate {} in this image and output the bbox coordinates in JSON format."
ONE_WORD = "what number, 0?\nAnswer the question using a single word or phrase."
CHOICES = "why did the boy, in red, run?\nA. to play\nB. to eat\nC. to rest\nD. to see\nE. to go"
CHOICES += "\nAnswer with the option's letter from the given choices directly."
STEPS = 'How many, 0?\nThink step by step, and write the final number after "####" at the end.'
REFCOCO = {"train": 6, "val": 3, "testA": 3, "testB": 3}
EXPECTED = {  # name: (rows of each split, the first prompt of the last split, its kinds and groups)
    "refcoco": (REFCOCO, LOCATE.format("the 0 thing"), {("", "")}),
    "refcoco+": (REFCOCO, LOCATE.format("the 0 thing"), {("", "")}),
    "refcocog": ({"train": 6, "val": 3, "test": 3}, LOCATE.format("the 0 thing"), {("", "")}),
    "screenspot-pro": (
        {"train": 7, "val": 3, "test": 10},
        LOCATE.format('the element for the command "press 0"'),
        {("text", "CAD"), ("icon", "CAD")},
    ),
    "screenspot-v2": (
        {"train": 11, "val": 1, "test": 12},
        LOCATE.format('the element for the command "press 0"'),
        {(kind, platform) for kind in ("text", "icon") for platform in ("desktop", "mobile", "web")},
    ),
    "textvqa": ({"train": 4, "val": 4}, ONE_WORD, {("", "")}),
    "nextqa": ({"train": 3, "val": 3}, CHOICES, {("CW", "causal"), ("TN", "temporal")}),
    "vilp": (
        {"train": 69, "val": 21, "test": 90},
        "Please answer with one word: A ball is round. What shape is ball 0?",
        {("prior", ""), ("score", "")},
    ),
    "gsm8k": ({"train": 4, "test": 4}, STEPS, {("", "")}),
    "jsonl": ({"train": 4, "val": 4}, "What is it?", {("", "")}),
    "llava": ({"train": 3, "val": 3}, "What is it?", {("", "")}),
}


def test_every_data_set_has_its_expectations():
    assert EXPECTED.keys() == MAKERS.keys()


@pytest.mark.parametrize("name", MAKERS)
def test_counts_prompts_and_kinds_of_the_official_format(name, tmp_path):
    MAKERS[name](tmp_path)
    counts, prompt, kinds = EXPECTED[name]
    splits = {split: load(name, tmp_path, split) for split in counts}
    assert {split: len(rows) for split, rows in splits.items()} == counts
    last = splits[list(counts)[-1]]
    assert last[0].prompt == prompt and {(e.kind, e.group) for e in last} == kinds


@pytest.mark.parametrize("name", MAKERS)
def test_the_answer_that_is_learnt_from_every_row_scores_one(name, tmp_path, processor):
    MAKERS[name](tmp_path)
    for split in EXPECTED[name][0]:
        for example in load(name, tmp_path, split):
            made = prediction(example, processor.answer_text(example), processor)
            assert (made["score"], made["failed"]) == (1, False), made


@pytest.mark.parametrize("split", ["val", "testA", "testB"])
def test_every_real_refcoco_box_is_right_after_it_was_resized_and_clamped(shared, split):
    for row in read_json(shared / f"refcoco-annotations/refcoco_{split}.json"):
        size, (x, y, w, h) = (row["width"], row["height"]), row["bbox"]
        resized, box = resized_size(*size, 28, 3136, 401408), (x, y, x + w, y + h)
        answer = BOX_ANSWER.format(box_to_model(box, size, resized))
        assert score("iou", answer, box, size, resized)["score"] == 1, row


# -- where the files are


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_every_layout_of_the_refcoco_family_loads_as_it_is_unpacked(name, tmp_path):
    make_refcoco(tmp_path / "flat", name)
    make_refcoco(tmp_path / "zip", name, folder="rec_jsons_processed")  # VLM-R1's zip, beside COCO's images
    make_refer(tmp_path / "refer", name)
    make_qwen_vl(tmp_path / "qwen", name)
    roots = ["flat", "zip", "zip/rec_jsons_processed", "refer", "qwen", "qwen/data", f"qwen/data/{name}"]
    boxes = {}
    for root in roots:
        rows = load(name, tmp_path / root, "val")
        assert all(e.images[0].is_file() and e.prompt == LOCATE.format(e.caption) for e in rows)
        boxes[root] = {(e.images[0].name[-6:], e.answer) for e in rows}
    one = {("01.jpg", (1, 10, 31, 50))}
    assert boxes.pop("refer") == one  # its val is one image with two phrases
    assert all(found == {("00.jpg", (0, 10, 30, 50)), *one, ("02.jpg", (2, 10, 32, 50))} for found in boxes.values())
    (tmp_path / "data").mkdir()
    shutil.move(tmp_path / "refer" / name, tmp_path / "data" / name)  # REFER's zip, unpacked in data/
    shutil.move(tmp_path / "refer/images", tmp_path / "data/images")
    assert [e.caption for e in load(name, tmp_path / "data" / name, "val")] == ["the 1 thing", "thing 1"]


def test_a_table_with_a_byte_order_mark_loads(tmp_path):
    make_nextqa(tmp_path)
    file = tmp_path / "val.csv"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(load("nextqa", tmp_path, "val")) == 3
    file.write_bytes(file.read_bytes() + b"caf\xe9\n")
    with pytest.raises(InputError, match="val.csv: not a table of NExT-QA"):
        load("nextqa", tmp_path, "val")


def test_a_gsm8k_file_with_a_byte_order_mark_loads(tmp_path):
    make_gsm8k(tmp_path)
    file = tmp_path / "test.jsonl"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(load("gsm8k", tmp_path, "test")) == 4


def test_the_command_that_makes_frames_of_a_film_works_as_it_is_printed(tmp_path, monkeypatch):
    """ffmpeg does not make folders, so the command does. Here a stand-in for ffmpeg writes the first frame."""
    root = tmp_path / "a folder"
    make_nextqa(root)
    (root / "videos/4010069382.gif").unlink()
    (root / "videos/4010069382.mp4").write_bytes(b"a film")
    picture(60, 40).save(tmp_path / "frame.jpg")
    program = tmp_path / "ffmpeg"
    program.write_text(f'#!/bin/sh\n[ -f "$2" ] && cp "{tmp_path}/frame.jpg" "$(printf "$5" 1)"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(InputError) as error:
        load("nextqa", root, "val")
    command = re.search(r"make one: (.*)", str(error.value))[1]
    subprocess.run(command, shell=True, check=True)
    assert len(load("nextqa", root, "val")) == 3


# -- ScreenSpot


def test_a_limit_takes_an_even_sample_of_screenspot(tmp_path):
    make_screenspot_v2(tmp_path)
    rows = load("screenspot-v2", tmp_path, "test", limit=6)
    assert [e.group for e in rows] == ["desktop", "desktop", "mobile", "mobile", "web", "web"]


def test_files_that_may_be_in_some_order_are_sampled_evenly_the_others_from_their_start(tmp_path):
    assert {name for name, task in TASKS.items() if task.even} == {"screenspot-pro", "screenspot-v2", "jsonl", "llava"}
    make_refcoco(tmp_path)  # whose images are fetched: few rows, few images
    assert [e.images[0].name[-6:] for e in load("refcoco", tmp_path, "train", limit=2)] == ["00.jpg", "01.jpg"]


def test_an_even_sample_of_the_real_screenspot_has_every_platform(shared):
    """The first 500 rows hold no web page."""
    rows = [row["group"] for row, _ in TASKS["screenspot-v2"].rows("screenspot-v2", shared / "screenspot", "test")]
    assert TASKS["screenspot-v2"].even and "web" not in rows[:500] and "web" in rows


def outside(root, count, bad):
    make_screenspot_pro(root)
    file = root / "annotations/autocad_windows.json"
    rows = read_json(file)[:count]
    for row in rows[:bad]:
        row["bbox"] = [180, 10, 230, 30]
    write_json(file, rows)


def test_a_target_over_the_edge_of_its_image_costs_its_row_not_the_data_set(tmp_path, capsys):
    outside(tmp_path / "one", 10, 1)
    assert len(load("screenspot-pro", tmp_path / "one", "test")) == 9
    said = capsys.readouterr().out
    assert "skipped  1 of 10 rows, box over the edge of the image: " in said and "autocad_windows.json, row 1" in said
    for count, bad in ((10, 2), (1, 1)):  # many: then something else is wrong
        outside(tmp_path / f"{count}", count, bad)
        with pytest.raises(InputError, match="box .180, 10, 230, 30. does not lie in its image"):
            load("screenspot-pro", tmp_path / f"{count}", "test")


def test_targets_too_small_to_see_are_warned_of_when_they_are_read(tmp_path, processor, capsys):
    make_screenspot_pro(tmp_path)  # targets of 40 x 20 pixels
    for limit, warned in ((50176, False), (7840, True)):
        small = Processor(processor.config, processor.tokenizer, processor.preprocessor, 784, limit)
        load_examples(small, "screenspot-pro", tmp_path, "test", 0)
        said = capsys.readouterr().out
        assert ("warning  screenspot-pro test: the shorter side of the median target is" in said) == warned
        assert ("raise --max-pixels" in said) == warned

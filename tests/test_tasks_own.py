"""Your own rows: every form that is read, what is refused by name, how one file is split, what a look at it shows."""

import json
import os
import subprocess
import sys
import unicodedata

import pytest
from conftest import ROOT, picture
from PIL import Image
from task_folders import make_frames, write_json, write_lines

from data import load
from harness.encodings import load_examples
from parts.files import InputError
from parts.tasks.__main__ import main as look
from parts.tasks.own import METRICS


@pytest.fixture
def root(tmp_path):
    """A folder with two images and a folder of 20 frames."""
    for name in "ab":
        picture(100, 80, ord(name)).save(tmp_path / f"{name}.png")
    make_frames(tmp_path / "clips/7", 20)
    return tmp_path


def jsonl(root, *rows):
    write_lines(root / "val.jsonl", rows)
    return load("jsonl", root, "val")


def llava(root, *rows):
    write_json(root / "val.json", list(rows))
    return load("llava", root, "val")


FORMS = json.loads((ROOT / "tests/own_rows.json").read_text())  # that people have
ASK = {"prompt": "What?", "answer": "x"}
BOX = {"image": "a.png", "sent": "the cup", "bbox": [10, 20, 60, 70]}


def shown(processor, example):
    """An example as the model reads it."""
    return processor.tokenizer.decode(list(processor.tokens(example).ids), skip_special_tokens=False)


def test_rows_have_no_one_or_several_images_where_the_prompt_says(root, processor):
    pair = {"images": ["a.png", "b.png"], "answer": "the first"}
    rows = [pair | {"prompt": "Is <image> or <image> older?"}, pair | {"prompt": "<image>\n<image> Which?"}]
    none, one, inside, before = jsonl(root, ASK, ASK | {"image": "a.png"}, *rows)
    assert [len(e.images) for e in (none, one, inside, before)] == [0, 1, 2, 2] and inside.source.endswith("val.jsonl:3")
    text = shown(processor, inside)
    assert "user\nIs <|vision_start|>" in text and "<|vision_end|> or <|vision_start|>" in text and "<image>" not in text
    assert before.prompt == "Which?"  # images come first anyway


def test_a_video_is_a_folder_of_frames_also_under_the_name_of_its_film(root, processor):
    videos = {"video": "clips/7"}, {"video": "clips/7.mp4", "fps": 5}, {"videos": ["clips/7.gif"], "seconds": 4}
    folder, film, gif = jsonl(root, *(ASK | video for video in videos))
    assert [frame.stem for frame in folder.videos[0]] == [f"{i:05d}" for i in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert (folder.fps, film.fps, gif.fps) == (8 / 10, 8 / 4, 8 / 4) and folder.videos == film.videos == gif.videos
    (both,) = jsonl(root, ASK | {"image": "a.png", "video": "clips/7", "prompt": "Is <image> in <video>?"})
    text = shown(processor, both)
    assert text.index("<|image_pad|>") < text.index("<|vision_end|> in <|vision_start|>") < text.index("<|video_pad|>")


@pytest.mark.parametrize("form", FORMS["conversations"])
@pytest.mark.parametrize("load_rows", [jsonl, llava])
def test_every_answer_of_a_conversation_is_a_row_after_the_turns_before_it(root, form, load_rows, processor):
    *_, last = load_rows(root, FORMS["conversations"][form])
    assert [image.name for image in last.images] == ["a.png", "b.png"]
    assert (last.prompt, last.answer, last.history) == ("And now?", "the second", (("Which?", "the first"),))
    text = shown(processor, last)
    assert text.count("<|vision_start|>") == 2 and text.rindex("<|vision_end|>Which?") > 0
    assert "assistant\nthe first<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>" in text


def test_a_system_turn_is_in_place_of_the_models_own_line(root, processor):
    turns = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant")]
    for row in ({"messages": turns}, ASK | {"system": "SYSTEM"}):
        assert shown(processor, *jsonl(root, row)).startswith("<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_may_name_its_metric_and_reference(root, metric):
    reference = {"iou": [10, 20, 60, 70], "vqa": ["red"] * 4}.get(metric, "#### 42")
    (e,) = jsonl(root, ASK | {"image": "a.png", "metric": metric, "reference": reference})
    assert (e.metric, e.reference, e.answer) == (metric, reference, "x")


@pytest.mark.parametrize(("message", "row"), json.loads((ROOT / "tests/bad_rows.json").read_text()))
def test_a_bad_row_is_named_by_file_and_line_with_what_is_wrong(root, message, row):
    line = row if isinstance(row, str) else json.dumps(row)
    (root / "val.jsonl").write_text(f"{json.dumps(ASK)}\n{line}")
    with pytest.raises(InputError, match=f"val.jsonl:2: .*{message}") as error:
        load("jsonl", root, "val")
    assert len(str(error.value).splitlines()) == 1


def test_names_may_have_either_spelling_of_accents_and_the_bars_of_windows(root):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for folder, name in ((composed, apart), (apart, composed)):
        (root / folder).mkdir()
        picture(20, 20).save(root / folder / f"caf{name}.png")
        for row in (f"{folder}/caf{folder}.png", f".\\{name}\\caf{name}.png"):
            assert jsonl(root, ASK | {"image": row})[0].images[0].is_file()


XYWH = [[10, 10, 40, 40], [60, 50, 30, 20], [70, 20, 20, 60]]
PARTS_OF_SIDES = [[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.9, 0.7], [0.2, 0.6, 0.3, 0.95], [0.05, 0.1, 0.2, 0.2]]
UNITS = {  # what is asked: the boxes
    ":1 and on: 2 of 3 boxes fail as corners, but 3 fit as sizes: is this x, y, w, h?": XYWH,
    ":1 and on: all 4 boxes end at 95, .*: are these percent": [[c * 100 for c in box] for box in PARTS_OF_SIDES],
    ":1 and on: all 4 boxes end at 950, .*: are these thousandths": [[c * 1000 for c in box] for box in PARTS_OF_SIDES],
}


@pytest.mark.parametrize("question", UNITS)
def test_a_file_of_boxes_in_another_unit_is_asked_about(root, question):
    Image.new("RGB", (4000, 3000)).save(root / "large.png")
    image = "a.png" if UNITS[question] is XYWH else "large.png"
    rows = [BOX | {"image": image, "sent": f"{i}", "bbox": box} for i, box in enumerate(UNITS[question])]
    with pytest.raises(InputError, match=question):
        jsonl(root, *rows)
    if image == "large.png":
        assert len(jsonl(root, *rows[:3])) == 3  # few may be so by chance
        assert len(jsonl(root, *rows, BOX | {"image": image, "bbox": [3000, 2000, 3500, 2500]})) == 5


def test_a_phrase_with_several_boxes_in_one_image_is_warned_of(root, capsys):
    jsonl(root, BOX, BOX | {"image": "b.png"}, BOX | {"bbox": [5, 5, 30, 30]})
    assert "warning  1 phrases have several boxes in one image" in capsys.readouterr().out


def test_boxes_in_the_text_of_answers_beyond_what_the_model_sees_are_warned_of(root, processor, capsys):
    boxes = ("[5, 5, 50, 50]", "[900, 5, 999, 50]")
    write_lines(root / "mine.jsonl", [ASK | {"image": "a.png", "answer": box} for box in boxes])
    load_examples(processor, "jsonl", root / "mine.jsonl", "test", 0)
    assert f"warning  jsonl test: {root}/mine.jsonl:2 and 0 others: a box in the answer" in capsys.readouterr().out


# -- one file in two parts


@pytest.fixture
def forty(tmp_path):
    for i in range(40):
        picture(30, 30, i).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("alone", ["train.jsonl", "mine.jsonl"])
def test_without_a_val_file_a_tenth_of_the_images_is_held_out_with_all_that_is_asked_about_them(forty, capsys, alone):
    rows, file = [ASK | {"image": f"{i}.png", "prompt": f"{k}?"} for i in range(40) for k in range(3)], forty / alone
    where = forty if alone == "train.jsonl" else file
    write_lines(file, rows)
    parts = {split: load("jsonl", where, split) for split in ("train", "val")}
    names = {split: {e.images[0].name for e in rows} for split, rows in parts.items()}
    assert names["val"] == {"3.png", "14.png", "22.png", "37.png"}  # by their checksums
    assert (len(parts["val"]), len(parts["train"])) == (12, 108) and not names["val"] & names["train"]
    assert f"split    {file}: val is 12 of its 120 rows; without a val file" in capsys.readouterr().out
    write_lines(file, rows[::-1])  # the order of the rows does not matter
    assert {e.images[0].name for e in load("jsonl", where, "val")} == names["val"]
    write_lines(forty / "val.jsonl", rows[:1])
    assert len(load("jsonl", forty, "val")) == 1  # a val file is all that is held out


ALIKE = {  # how two rows are about the same image or video
    "pairs": lambda root, i: ({"image": f"{i}.png"}, {"images": [f"{i // 2 * 2}.png", f"{i // 2 * 2 + 1}.png"]}),
    "a chain": lambda root, i: ({"images": [f"{i}.png", f"{i + 1}.png"]},),
    "./": lambda root, i: ({"image": f"{i}.png"}, {"image": f"./{i}.png"}),
    "bars": lambda root, i: ({"image": f"sub/{i}.png"}, {"image": f"sub\\{i}.png"}),
    "accents": lambda root, i: ({"image": f"sub/\xe9{i}.png"}, {"image": f"sub/e\u0301{i}.png"}),
    "complete path": lambda root, i: ({"image": f"{i}.png"}, {"image": f"{root}/{i}.png"}),
    "film": lambda root, i: ({"video": f"clips/{i}"}, {"videos": [f"clips/{i}.mp4"]}),
}


@pytest.mark.parametrize("alike", ALIKE)
def test_no_image_is_on_both_sides_of_a_split_however_rows_and_names_connect_them(forty, alike):
    for i in range(20):
        for file in (f"sub/{i}.png", f"sub/\xe9{i}.png", f"clips/{i}/1.png"):
            (forty / file).parent.mkdir(parents=True, exist_ok=True)
            (forty / file).write_bytes((forty / f"{i}.png").read_bytes())
    write_lines(forty / "mine.jsonl", [ASK | row for i in range(20) for row in ALIKE[alike](forty, i)])
    files = {}
    for split in ("train", "val"):
        examples = load("jsonl", forty / "mine.jsonl", split)
        files[split] = {str(file) for e in examples for file in sum(e.videos, e.images)}
    assert files["val"] and files["train"] and not files["val"] & files["train"]


def test_questions_about_a_single_image_cannot_be_held_out_but_texts_can(forty):
    write_lines(forty / "mine.jsonl", [ASK | {"image": name} for name in ("1.png", "./1.png")])
    assert len(load("jsonl", forty / "mine.jsonl", "train")) == 2
    with pytest.raises(InputError, match="mine.jsonl: its rows share their images, .*put a val file beside it"):
        load("jsonl", forty / "mine.jsonl", "val")
    write_lines(forty / "text.jsonl", [{"prompt": f"{i}?", "answer": "x"} for i in range(20)])
    assert [len(load("jsonl", forty / "text.jsonl", split)) for split in ("train", "val", "test")] == [18, 2, 20]


# -- other tools' files, and a look


@pytest.mark.parametrize("file", FORMS["exports"])
def test_files_of_other_forms_name_the_recipes_of_the_docs_which_work(root, monkeypatch, file):
    write_json(root / file, FORMS["exports"][file])
    with pytest.raises(InputError, match=f"{file}.*; docs/datasets.md has recipes for other forms"):
        load("jsonl", root / file, "test")
    monkeypatch.chdir(root)
    blocks = (ROOT / "docs/datasets.md").read_text(encoding="utf-8").split("```python\n")
    (recipe,) = [block.split("```")[0] for block in blocks if f'"{file}"' in block]
    exec(recipe, {})  # noqa: S102
    (row,) = load("jsonl", root / "train.jsonl", "test")
    assert (row.caption, row.answer, row.images) == ("the cup", (10, 20, 60, 70), [root / "a.png"])


def test_a_look_at_a_file_draws_its_boxes_and_lists_all_bad_rows(root, monkeypatch, capsys):
    (root / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    Image.new("RGB", (2010, 10)).save(root / "strip.png")
    good, *boxes = [BOX | {"bbox": box} for box in XYWH]
    rows = [good, ASK | {"img": "a.png"}, ASK | {"image": "cut.jpg"}, {"prompt": "17 + 25 =", "answer": "42"}]
    write_lines(root / "mine.jsonl", [*rows, ASK | {"image": "strip.png"}, *boxes])
    with open(root / "mine.jsonl", "a") as file:
        file.write("{broken\n")
    monkeypatch.chdir(root)
    with pytest.raises(SystemExit, match="2"):
        look(["jsonl=mine.jsonl"])
    lines = capsys.readouterr().out.splitlines()
    assert "mine.jsonl:1: 'Locate the cup in this" in lines[0] and "mine.jsonl:4: '17 + 25 =' -> '42'" in lines[1]
    assert lines[2:4] == ["drawn in runs/rows.png", "2 rows are good, 7 are bad"]
    assert [line.split(": ")[0][-1] for line in lines[4:]] == ["n", "2", "3", "5", "6", "7", "8"]
    assert lines[4].endswith("is this x, y, w, h? Then write [x, y, x + w, y + h]")
    with Image.open(root / "runs/rows.png") as drawn:
        assert {colour: count for count, colour in drawn.getcolors(10**6)}[(0, 158, 115)] > 500


def test_a_look_whose_reader_stops_early_ends_without_a_traceback(root):
    write_lines(root / "mine.jsonl", [ASK])
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "parts.tasks", f"jsonl={root / 'mine.jsonl'}"]
    assert subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False).stderr == b""
    os.close(writer)

"""Your own data: every way to name images and videos, what is refused, one file alone, rows shown before a run."""

import json

import pytest
from conftest import picture
from PIL import Image
from task_folders import animated, make_frames, write_json, write_lines

import train
from data import load
from harness.arguments import evaluation_sets
from parts.files import InputError
from parts.tasks.__main__ import main as show
from parts.tasks.images import Frame
from parts.tasks.rows import GROUNDING_PROMPT


@pytest.fixture
def root(tmp_path):
    """A folder with two images, a folder of 20 frames (10 seconds at 2 a second) and an animated image."""
    for name in "ab":
        picture(100, 80, ord(name)).save(tmp_path / f"{name}.png")
    make_frames(tmp_path / "clips/7", 20)
    animated(tmp_path / "clips/8.gif", 5)
    return tmp_path


def jsonl(root, *rows):
    write_lines(root / "val.jsonl", rows)
    return load("jsonl", root, "val")


def llava(root, *rows, file="val.json"):
    (write_lines if file.endswith("jsonl") else write_json)(root / file, list(rows))
    return load("llava", root, "val")


ASK = {"prompt": "What?", "answer": "x"}


def talk(*said):
    return {"conversations": [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 9, said)]}


# -- images and videos


def test_a_video_of_your_own_is_a_folder_of_frames_or_an_animated_image(root):
    folder, gif = jsonl(root, ASK | {"video": "clips/7"}, ASK | {"videos": ["clips/8.gif"]})
    assert [frame.stem for frame in folder.videos[0]] == [f"{i:05d}" for i in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert folder.fps == pytest.approx(8 / 10) and folder.images == []
    assert gif.videos[0] == [Frame(str(root / "clips/8.gif"), i) for i in range(5)]
    assert gif.fps == pytest.approx(5 / 2.5)  # by its own clock


def test_the_rate_of_a_folder_of_frames_can_be_said(root):
    (row,) = jsonl(root, ASK | {"video": "clips/7", "fps": 5})
    assert row.fps == pytest.approx(8 / 4)
    with pytest.raises(InputError, match='val.jsonl:1: "fps" must be a positive number, got 0'):
        jsonl(root, ASK | {"video": "clips/7", "fps": 0})


@pytest.mark.parametrize("load_rows", [jsonl, llava])
def test_a_film_that_was_cut_into_frames_keeps_its_name_in_the_file(root, load_rows):
    row = ASK | talk("<video>\nWhat?", "x") if load_rows is llava else ASK
    row = {key: row[key] for key in row if load_rows is jsonl or key == "conversations"}
    (root / "clips/7.mp4").write_bytes(b"a film")
    (example,) = load_rows(root, row | {"video": "clips/7.mp4"})
    assert len(example.videos[0]) == 8 and (example.prompt, example.answer) == ("What?", "x")
    (root / "clips/9.mp4").write_bytes(b"a film")
    with pytest.raises(InputError, match=r"(:|row )1: no folder of frames .*mkdir -p .*clips/9 && ffmpeg -i .*9.mp4"):
        load_rows(root, row | {"video": "clips/9.mp4"})


def test_a_still_image_is_no_video(root):
    with pytest.raises(InputError, match="a.png: a still image, not a video"):
        jsonl(root, ASK | {"video": "a.png"})


def test_places_of_images_and_videos_are_checked_against_the_row(root, processor):
    row = {"image": "a.png", "video": "clips/8.gif", "answer": "x"}
    (inside,) = jsonl(root, row | {"prompt": "Is <image> in <video>?"})
    text = processor.tokenizer.decode(processor.tokens(inside)[0], skip_special_tokens=False)
    assert text.index("<|image_pad|>") < text.index("<|vision_end|> in <|vision_start|>") < text.index("<|video_pad|>")
    (before,) = jsonl(root, row | {"prompt": "<image><video>\nWhat?"})
    assert before.prompt == "What?"
    with pytest.raises(InputError, match="<video> <image> in the prompt; it must be <image> <video>, images first"):
        jsonl(root, row | {"prompt": "In <video>, is <image> there?"})
    with pytest.raises(InputError, match="1 x <video> in the prompt, but 1 images and 1 videos in the row"):
        jsonl(root, row | {"prompt": "What is in <video>?"})
    with pytest.raises(InputError, match="1 x <video> in the prompt, but 0 images in the row"):
        jsonl(root, {"prompt": "What is in <video>?", "answer": "x"})


def test_llava_takes_lists_of_images_videos_and_lines(root):
    pair = {"image": ["a.png", "b.png"]} | talk("<image>\n<image>\nWhich?", "the first", "And now?", "the second")
    first, second = llava(root, pair)
    assert [image.name for image in first.images] == ["a.png", "b.png"] == [image.name for image in second.images]
    assert (first.prompt, second.history) == ("Which?", (("Which?", "the first"),))
    film = {"video": "clips/7"} | talk("<image>\nWhat?", "a cup")  # LLaVA marks a video so, too
    (video,) = llava(root, film)
    assert len(video.videos[0]) == 8 and video.prompt == "What?"
    (root / "val.json").unlink()
    assert [e.answer for e in llava(root, pair, film, file="val.jsonl")] == ["the first", "the second", "a cup"]


@pytest.mark.parametrize(
    "lost",
    [
        {"img": "a.png"},
        {"image_path": "a.png"},
        {"imagePath": "a"},
        {"image_url": "http://there/a"},
        {"pictures": ["a.png"]},
        {"image": "a.png", "image_2": "b.png"},
        {"frames": ["a.png", "b.png"]},
        {"clip": "clips/7"},
        {"movie": {"path": "a.mp4"}},
        {"file": "a.mp4"},
        {"left": "a.PNG"},
    ],
)
def test_an_image_or_video_under_a_key_that_is_not_read_is_named_not_lost(root, lost):
    key = list(lost)[-1]
    said = (
        f'"{key}" looks like an image or a video, but is not read; rename it to one of "image", "images", "video", "vid'
    )
    with pytest.raises(InputError, match=f"val.jsonl:2: {said}"):
        jsonl(root, ASK, ASK | lost)
    with pytest.raises(InputError, match=f"val.json, row 2: {said}"):
        llava(root, talk("What?", "x"), talk("What?", "x") | lost)


def test_facts_about_an_image_and_other_keys_are_no_image(root):
    facts = {"image_id": 9, "img_id": "COCO_9.jpg", "image_size": [100, 80], "frame_count": 3, "id": "a.png"}
    facts |= {
        "coco_url": "http://there/a.jpg",
        "file_name": "a.png",
        "video_title": "cups",
        "category_id": 5,
        "frames": 0,
    }
    (row,) = jsonl(root, ASK | {"image": "a.png", "source": "own"} | facts)
    assert [image.name for image in row.images] == ["a.png"]


def test_image_and_images_exclude_each_other(root):
    with pytest.raises(InputError, match='val.jsonl:1: has both "image" and "images"; put all into "images"'):
        jsonl(root, ASK | {"image": "a.png", "images": ["b.png"]})
    (row,) = jsonl(root, ASK | {"image": "a.png", "images": None})
    assert len(row.images) == 1


def test_a_conversation_in_jsonl_says_who_reads_it(root):
    with pytest.raises(InputError, match="val.jsonl:1: a conversation; --data llava=... reads these"):
        jsonl(root, talk("What?", "x"))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_data(root, suffix):
    rows = [talk("What?", "x"), talk("Who?", "y")]
    text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
    (root / f"val.{suffix}").write_text(text, encoding="utf-8-sig")
    assert [e.answer for e in load("llava", root, "val")] == ["x", "y"]


# -- one file, and no val file


def rows_about(count, each=3):
    """Rows about `count` images, `each` about one image."""
    return [ASK | {"image": f"{i}.png", "prompt": f"{i} {k}?"} for i in range(count) for k in range(each)]


@pytest.fixture
def forty(tmp_path):
    for i in range(40):
        picture(30, 30, i).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("alone", ["FOLDER", "FILE"])
def test_without_a_val_file_a_tenth_of_the_images_is_held_out(forty, capsys, alone):
    file = forty / ("train.jsonl" if alone == "FOLDER" else "mine.jsonl")
    write_lines(file, rows_about(40))
    where = forty if alone == "FOLDER" else file
    parts = {split: load("jsonl", where, split) for split in ("train", "val")}
    names = {split: {e.images[0].name for e in rows} for split, rows in parts.items()}
    assert (len(names["val"]), len(names["train"])) == (4, 36) and not names["val"] & names["train"]
    assert (len(parts["val"]), len(parts["train"])) == (12, 108)
    said = capsys.readouterr().out
    assert f"split    {file}: val is 12 of its 120 rows; without a val file" in said and "108 of its 120" in said
    write_lines(file, rows_about(40)[::-1])  # the order of the rows does not matter
    assert {e.images[0].name for e in load("jsonl", where, "val")} == names["val"]
    if alone == "FILE":
        assert len(load("jsonl", where, "test")) == 120


def test_with_a_val_file_all_of_train_is_for_training(forty, capsys):
    write_lines(forty / "train.jsonl", rows_about(40))
    write_lines(forty / "val.jsonl", rows_about(2))
    assert len(load("jsonl", forty, "train")) == 120 and len(load("jsonl", forty, "val")) == 6
    assert "split" not in capsys.readouterr().out
    with pytest.raises(InputError, match="test.jsonl: no such split; present: train, val"):
        load("jsonl", forty, "test")


def test_questions_about_a_single_image_cannot_be_held_out(forty):
    write_lines(forty / "mine.jsonl", rows_about(1))
    assert len(load("jsonl", forty / "mine.jsonl", "train")) == 3
    with pytest.raises(InputError, match="mine.jsonl: all rows are about one image, .*put a val file beside it"):
        load("jsonl", forty / "mine.jsonl", "val")
    with pytest.raises(InputError, match="mine.jsonl: no split 'dev' of a single file; present: train, val, test"):
        load("jsonl", forty / "mine.jsonl", "dev")


def test_text_rows_are_held_out_by_themselves(tmp_path):
    write_lines(tmp_path / "mine.jsonl", [{"prompt": f"{i}?", "answer": "x"} for i in range(20)])
    assert [len(load("jsonl", tmp_path / "mine.jsonl", split)) for split in ("train", "val", "test")] == [18, 2, 20]


def test_a_file_that_is_not_trained_on_is_evaluated_completely(tmp_path):
    for name in "ab":
        write_lines(tmp_path / f"{name}.jsonl", [ASK])
    a, b = (f"jsonl={tmp_path / name}.jsonl" for name in "ab")

    def split(*flags):
        return [split for _, _, split, _ in evaluation_sets(train.arguments([*flags]))]

    assert split("--data", a) == ["val"] == split("--data", a, "--eval", a)
    assert split("--data", a, "--eval", b) == ["test"] == split("--method", "none", "--eval", b)
    assert split("--data", a, "--eval", b, "--eval-split", "val") == ["val"]
    assert split("--data", "gsm8k=X", "--eval", "gsm8k", b) == ["test", "test"]


def test_a_limit_takes_an_even_sample_of_your_rows(tmp_path):
    write_lines(tmp_path / "val.jsonl", [{"prompt": f"{i}?", "answer": "x"} for i in range(101)])
    assert [e.prompt for e in load("jsonl", tmp_path, "val", limit=5)] == ["0?", "25?", "50?", "75?", "100?"]


# -- boxes


def test_a_file_of_x_y_width_height_is_asked_about(root):
    box = {"image": "a.png", "sent": "cup"}
    sizes = [box | {"bbox": b} for b in ([10, 10, 40, 40], [60, 50, 30, 20], [70, 20, 20, 60])]
    with pytest.raises(InputError) as error:
        jsonl(root, *sizes)
    assert "val.jsonl:2: box [60, 50, 30, 20] does not lie in its image" in str(error.value)
    assert "2 of 3 boxes fail as corners, but 3 fit as sizes: is this x, y, w, h?" in str(error.value)
    with pytest.raises(InputError) as error:
        jsonl(root, box | {"bbox": [60, 50, 90, 70]}, box | {"bbox": [60, 50, 30, 20]})
    assert "x, y, w, h" not in str(error.value)


def test_rows_are_shown_with_their_boxes_before_any_training(root, capsys):
    rows = [{"image": f"{name}.png", "sent": "the cup", "bbox": [10, 20, 60, 70]} for name in "ab"]
    write_lines(root / "mine.jsonl", [*rows, {"prompt": "17 + 25 =", "answer": "42"}, ASK | {"video": "clips/7"}])
    show([f"jsonl={root / 'mine.jsonl'}", "--out", str(root / "out"), "--split", "test"])
    said = capsys.readouterr().out
    prompt = GROUNDING_PROMPT.format("the cup")
    assert f"mine.jsonl:1: {prompt!r} -> (10, 20, 60, 70)" in said and "mine.jsonl:3: '17 + 25 =' -> '42'" in said
    assert "model" not in said and f"drawn in {root / 'out/rows.png'}" in said
    with Image.open(root / "out/rows.png") as drawn:
        colours = {colour: count for count, colour in drawn.convert("RGB").getcolors(10**6)}
    assert colours[255, 0, 0] > 1000  # two boxes


def test_what_is_shown_is_checked_too(root, capsys):
    write_lines(root / "train.jsonl", [ASK | {"img": "a.png"}])
    with pytest.raises(SystemExit) as stop:
        show([f"jsonl={root}", "--out", str(root / "out")])
    assert stop.value.code == 2 and "error: " in (said := capsys.readouterr().err) and '"img" looks like' in said

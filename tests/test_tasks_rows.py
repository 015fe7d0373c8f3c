"""What the loaders read: hand-made folders, real annotation files, and every kind of bad row."""

import json

import pytest
from conftest import picture
from task_folders import (
    VLM_R1,
    make_gsm8k,
    make_llava,
    make_nextqa,
    make_refcoco,
    make_screenspot_pro,
    make_screenspot_v2,
    make_textvqa,
    make_vilp,
    write_lines,
)

from data import Example, load
from parts import tasks
from parts.files import InputError
from parts.tasks import TASKS
from parts.tasks.images import Frame, image_size
from parts.tasks.rows import GROUNDING_PROMPT, own_split


def test_refcoco_splits_and_boxes(tmp_path):
    make_refcoco(tmp_path)
    rows = load("refcoco", tmp_path, "train")
    assert rows[2].answer == (2, 10, 32, 50) and rows[2].prompt == GROUNDING_PROMPT.format("the 2 thing")
    assert [len(load("refcoco", tmp_path, split)) for split in ("val", "testA", "testB")] == [3, 3, 3]
    with pytest.raises(InputError, match="no split 'test' of refcoco; present: testA, testB, train, val"):
        load("refcoco", tmp_path, "test")


def test_screenspot_boxes_are_corners_whatever_the_file_says(tmp_path):
    make_screenspot_pro(tmp_path / "pro")
    make_screenspot_v2(tmp_path / "v2")
    pro, v2 = load("screenspot-pro", tmp_path / "pro", "test"), load("screenspot-v2", tmp_path / "v2", "test")
    assert pro[0].answer == v2[0].answer == (20, 10, 60, 30)
    assert (pro[1].kind, pro[1].group, v2[1].kind, v2[1].group) == ("icon", "CAD", "icon", "desktop")
    assert pro[0].metric == "point" and '"press 0"' in pro[0].prompt
    parts = [{e.source for e in load("screenspot-pro", tmp_path / "pro", split)} for split in ("train", "val")]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == {e.source for e in pro}


def test_a_fifth_of_a_benchmark_without_splits_is_val():
    share = sum(own_split(f"{i}.png") == "val" for i in range(5000)) / 5000
    assert 0.18 < share < 0.22


def test_textvqa_learns_the_most_frequent_answer_and_is_scored_by_all_ten(tmp_path):
    make_textvqa(tmp_path)
    example = load("textvqa", tmp_path, "val")[0]
    assert example.answer == "9" and len(example.reference) == 10 and example.metric == "vqa"
    assert example.prompt == "what number, 0?\nAnswer the question using a single word or phrase."


def test_nextqa_reads_frame_folders_and_animated_images(tmp_path):
    make_nextqa(tmp_path)
    folder, gif, before = load("nextqa", tmp_path, "val")
    assert [f.stem for f in folder.videos[0]] == [f"{i:05d}" for i in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert folder.fps == pytest.approx(8 / 10)  # 8 of 300 frames at 30 a second
    assert gif.videos[0] == [Frame(str(tmp_path / "videos/4010069382.gif"), i) for i in range(5)]
    assert gif.fps == pytest.approx(5 / 2.5)
    assert (folder.answer, folder.kind, folder.group) == ("B", "CW", "causal")
    assert gif.kind == before.kind == "TN"  # the official script counts TP as TN
    assert folder.prompt.startswith("why did the boy, in red, run?\nA. to play\nB. to eat\n")


def test_vilp_scores_images_2_and_3_and_keeps_the_prior_separate(tmp_path):
    make_vilp(tmp_path)
    rows = load("vilp", tmp_path, "test")
    assert [e.kind for e in rows[:3]] == ["prior", "score", "score"]
    assert rows[0].prompt == "Please answer with one word: A ball is round. What shape is ball 0?"


def test_gsm8k_learns_the_solution_without_calculator_marks(tmp_path):
    make_gsm8k(tmp_path)
    example = load("gsm8k", tmp_path, "test")[0]
    assert example.answer == "She has 3 + 4 = 7 nuts.\nThat is 7 * 1000 = $7,000.\n#### 7,000"
    assert example.reference == "7000" and not example.images


def test_every_answer_of_a_conversation_is_a_row_after_the_turns_before_it(tmp_path, processor):
    make_llava(tmp_path)
    first, second = load("llava", tmp_path, "train")[:2]
    assert (first.prompt, first.answer, first.history) == ("What is it?", "a ring", ())
    assert (second.prompt, second.answer, second.history) == ("Its colour?", "red", (("What is it?", "a ring"),))
    ids, supervised, _ = processor.tokens(second)
    text = processor.tokenizer.decode(ids, skip_special_tokens=False)
    assert text.count("<|vision_start|>") == 1 and text.index("<|vision_end|>What is it?") > 0
    assert "assistant\na ring<|im_end|>\n<|im_start|>user\nIts colour?<|im_end|>" in text
    assert processor.tokenizer.decode(ids[supervised:], skip_special_tokens=False) == "red<|im_end|>"


def test_an_image_comes_where_the_prompt_says(tmp_path, processor):
    for name in "ab":
        picture(60, 60, ord(name)).save(tmp_path / f"{name}.png")
    row = {"images": ["a.png", "b.png"], "prompt": "Is <image> or <image> older?", "answer": "the first"}
    write_lines(tmp_path / "train.jsonl", [row, row | {"prompt": "<image>\n<image> Which?"}])
    inside, before = load("jsonl", tmp_path, "train")
    text = processor.tokenizer.decode(processor.tokens(inside)[0], skip_special_tokens=False)
    assert "user\nIs <|vision_start|>" in text and "<|vision_end|> or <|vision_start|>" in text
    assert "<image>" not in text and "<|vision_end|> older?" in text
    assert before.prompt == "Which?"
    write_lines(tmp_path / "train.jsonl", [row | {"prompt": "Is <image> older?"}])
    with pytest.raises(InputError, match=r"train.jsonl:1: 1 x <image> in the prompt, but 2 images in the row"):
        load("jsonl", tmp_path, "train")


def test_the_json_forms_of_the_refcoco_family_agree(tmp_path):
    (tmp_path / "train2014").mkdir()
    picture(100, 80).save(tmp_path / "train2014/COCO_train2014_000000000007.jpg")
    image, box = "train2014/COCO_train2014_000000000007.jpg", [10, 20, 40, 60]
    question = f"<image>{VLM_R1.format('the red cup')}"
    forms = {
        "qwen": {"image": image, "sent": "the red cup", "bbox": box, "width": 100, "height": 80},
        "vlmr1": {"image": image, "problem": question, "solution": box},
        "bare": {"image": image, "problem": "the red cup.", "solution": box},
        "talk": {
            "image": image,
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "[10, 20, 40, 60]"}],
        },
        "xywh": {"img_id": "COCO_train2014_000000000007_3", "sents": "the red cup", "bbox": [10, 20, 30, 40], "width": 100, "height": 80},
    }  # fmt: skip
    for split, row in forms.items():
        (tmp_path / f"refcocop_{split}.json").write_text(json.dumps([row]))
        (e,) = load("refcoco+", tmp_path, split)
        assert e.prompt == GROUNDING_PROMPT.format("the red cup") and e.answer == (10, 20, 40, 60)
        assert e.images == [tmp_path / image]


def test_one_full_stop_at_the_end_of_an_expression_is_dropped(tmp_path):
    picture(50, 50).save(tmp_path / "a.png")
    row = {"image": "a.png", "sent": "the cup. ", "bbox": [1, 2, 3, 4]}
    (tmp_path / "val.jsonl").write_text(json.dumps(row))
    (example,) = load("jsonl", tmp_path, "val")
    assert example.prompt == "Locate the cup in this image and output the bbox coordinates in JSON format."
    assert example.caption == "the cup"  # kept, for figures


def test_rows_are_complete_so_that_an_example_is_made_of_them_as_they_are(tmp_path):
    make_textvqa(tmp_path)
    rows = tasks.load("textvqa", tmp_path, "val", limit=2)
    assert [Example(**row) for row in rows] == load("textvqa", tmp_path, "val", limit=2)
    assert all(row["caption"] == "" and row["images"][0].is_file() for row in rows)


def test_own_rows_with_no_one_and_several_images(tmp_path):
    picture(50, 50).save(tmp_path / "a.png")
    rows = [
        {"prompt": "2+2?", "answer": "4"},
        {"image": "a.png", "prompt": "what?", "answer": "a cup"},
        {"images": ["a.png", str(tmp_path / "a.png")], "prompt": "same?", "answer": "yes"},
    ]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    examples = load("jsonl", tmp_path, "val")
    assert [len(e.images) for e in examples] == [0, 1, 2] and examples[2].source.endswith("val.jsonl:3")


# -- real annotation files


@pytest.mark.parametrize(("split", "count"), [("val", 10834), ("testA", 5657), ("testB", 5095)])
def test_the_real_refcoco_annotations_parse_completely(shared, split, count):
    rows = list(TASKS["refcoco"].rows("refcoco", shared / "refcoco-annotations", split))
    assert len(rows) == count
    outside = [
        source
        for row, source in rows
        for x1, y1, x2, y2 in [row["bbox"]]
        if not (-1 <= x1 < x2 <= row["width"] + 1 and -1 <= y1 < y2 <= row["height"] + 1)
    ]
    assert outside == []


def test_the_real_gsm8k_parses_completely(shared):
    rows = load("gsm8k", shared / "gsm8k", "test")
    assert len(rows) == 1319
    assert all(e.reference.lstrip("-").replace(".", "", 1).isdigit() for e in rows)


def test_the_real_screenspot_annotations_parse_completely(shared):
    rows = list(TASKS["screenspot-v2"].rows("screenspot-v2", shared / "screenspot", "test"))
    counts = {group: sum(row["group"] == group for row, _ in rows) for group in ("desktop", "mobile", "web")}
    assert counts == {"desktop": 334, "mobile": 501, "web": 437}
    assert {row["kind"] for row, _ in rows} == {"text", "icon"}
    assert all(x1 < x2 and y1 < y2 for row, _ in rows for x1, y1, x2, y2 in [row["bbox"]])


def test_the_refer_folder_of_real_photographs_loads(shared):
    root = shared / "refcoco-mini"
    counts = {"refcoco": {}, "refcoco+": {}, "refcocog": {}}
    for name, splits in counts.items():
        for split in ("val", "test") if name == "refcocog" else ("val", "testA", "testB"):
            try:
                examples = load(name, root, split)
            except InputError as error:
                assert "no split" in str(error)
                continue
            splits[split] = len(examples)
            for e in examples:
                assert e.images[0].is_file() and e.prompt == GROUNDING_PROMPT.format(e.caption)
                width, height = image_size(e.images[0])
                assert 0 <= e.answer[0] < e.answer[2] <= width and 0 <= e.answer[1] < e.answer[3] <= height
    assert {name: sum(s.values()) for name, s in counts.items()} == {"refcoco": 58, "refcoco+": 55, "refcocog": 12}


def test_the_refer_pickle_and_the_json_form_of_the_same_rows_agree(shared, tmp_path):
    """Boxes are x, y, w, h in instances.json, and x1, y1, x2, y2 in the JSON lines."""
    root = shared / "refcoco-mini"
    rows = [json.loads(line) for line in (root / "refcoco/all.jsonl").read_text().splitlines()]
    for split in ("val", "testA", "testB"):
        (tmp_path / f"refcoco_{split}.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in rows if r["split"] == split)
        )
        (tmp_path / "images").exists() or (tmp_path / "images").symlink_to(root / "images")
        a, b = load("refcoco", root, split), load("refcoco", tmp_path, split)
        assert [(e.prompt, e.images[0].name) for e in a] == [(e.prompt, e.images[0].name) for e in b]
        for x, y in zip(a, b):
            assert x.answer == pytest.approx(y.answer, abs=0.02)


def test_the_real_photographs_with_boxes_load(shared):
    assert [len(load("jsonl", shared / "coco-photos", split)) for split in ("train", "val")] == [245, 215]
    assert len(load("jsonl", shared / "coco-photos", "val", limit=7)) == 7

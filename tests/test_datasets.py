"""Every data set of the paper from the files that a user has: loaders, splits, prompts, and a run of each from end to end."""

import functools
import json
import random
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, picture

import train
from data import Example, Processor, load
from files import InputError
from harness import evaluate
from tasks import DATASETS
from tasks.boxes import iou
from tasks.images import Frame, open_image, sample, video_frames
from tasks.rows import ours
from tasks.scenes import DRAWN


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def animated(file, count, milliseconds=500):
    file.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (picture(60, 40, i) for i in range(count))
    first.save(file, save_all=True, append_images=rest, duration=milliseconds, loop=0)


# -- a small hand-made folder of each data set


def make_refcoco(root, name="refcoco"):
    prefix = {"refcoco": "refcoco", "refcoco+": "refcocop", "refcocog": "refcocog"}[name]
    (root / "train2014").mkdir(parents=True)
    for i in range(3):
        picture(100, 80, i).save(root / f"train2014/COCO_train2014_{i:012d}.jpg")
    talk = "Please provide the bounding box coordinate of the region this sentence describes: the {} thing."
    rows = [
        {
            "image": f"coco/train2014/COCO_train2014_{i % 3:012d}.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>{talk.format(i)}"},
                {"from": "gpt", "value": f"[{i}, 10, {i + 30}, 50]"},
            ],
        }
        for i in range(6)
    ]
    write_lines(root / f"{prefix}_train.jsonl", rows)
    for split in ("val", "test") if name == "refcocog" else ("val", "testA", "testB"):
        asked = [
            {
                "image": f"train2014/COCO_train2014_{i:012d}.jpg",
                "problem": talk.format(i),
                "solution": [i, 10, i + 30, 50],
            }
            for i in range(3)
        ]
        write_json(root / f"{prefix}_{split}.json", asked)


def make_screenspot_pro(root):
    rows = []
    for i in range(10):
        file = f"cad/{i}.png"
        (root / "images/cad").mkdir(parents=True, exist_ok=True)
        picture(200, 100, i).save(root / "images" / file)
        rows.append({"img_filename": file, "bbox": [20, 10, 60, 30], "img_size": [200, 100], "group": "CAD"})
        rows[-1] |= {"instruction": f"press {i}", "application": "autocad", "platform": "windows"}
        rows[-1] |= {"ui_type": ("text", "icon")[i % 2]}
    write_json(root / "annotations/autocad_windows.json", rows)


def make_screenspot_v2(root):
    for platform in ("desktop", "mobile", "web"):
        rows = []
        for i in range(4):
            file = f"{platform}_{i}.png"
            (root / "screenspotv2_image").mkdir(parents=True, exist_ok=True)
            picture(200, 100, i).save(root / "screenspotv2_image" / file)
            rows.append({"img_filename": file, "bbox": [20, 10, 40, 20], "instruction": f"press {i}"})
            rows[-1] |= {"data_type": ("text", "icon")[i % 2], "data_source": "windows"}
        write_json(root / f"screenspot_{platform}_v2.json", rows)


def make_textvqa(root):
    (root / "train_images").mkdir(parents=True)
    picture(80, 60).save(root / "train_images/0a1.jpg")
    answers = ["nine", "9", "nine", "the nine", "9", "9.", "ten", "nine", "9", "9"]
    for split in ("train", "val"):
        rows = [{"image_id": "0a1", "question": f"what number, {i}?", "answers": answers} for i in range(4)]
        write_json(root / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": rows})


def make_nextqa(root):
    root.mkdir(parents=True, exist_ok=True)
    head = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    lines = [
        '4010069381,300,60,40,"why did the boy, in red, run",1,0,CW,to play,to eat,to rest,to see,to go\n',
        "4010069382,300,60,40,what happens after?,4,1,TN,a,b,c,d,e\n",
    ]
    for split in ("train", "val"):
        (root / f"{split}.csv").write_text(head + "".join(lines))
    frames = root / "videos/1103/4010069381"
    frames.mkdir(parents=True)
    for i in range(20):
        picture(60, 40, i).save(frames / f"{i:05d}.jpg")
    write_json(root / "map_vid_vidorID.json", {"4010069381": "1103/4010069381"})
    animated(root / "videos/4010069382.gif", 5)


def make_vilp(root):
    rows = []
    for i in range(30):
        row = {"question": f"A ball is round. What shape is ball {i}?"}
        for k in (1, 2, 3):
            (root / "images").mkdir(parents=True, exist_ok=True)
            picture(60, 60, k).save(root / f"images/{i}-{k}.png")
            row |= {f"image{k}": f"images/{i}-{k}.png", f"answer{k}": ("circle", "square", "star")[k - 1]}
        rows.append(row)
    write_lines(root / "vilp.jsonl", rows)


def make_gsm8k(root):
    answer = "She has 3 + 4 = <<3+4=7>>7 nuts.\nThat is 7 * 1000 = $<<7*1000=7000>>7,000.\n#### 7,000"
    for split in ("train", "test"):
        write_lines(root / f"{split}.jsonl", [{"question": f"How many, {i}?", "answer": answer} for i in range(4)])


def make_jsonl(root):
    root.mkdir(parents=True, exist_ok=True)
    picture(60, 60).save(root / "a.png")
    rows = [
        {"image": "a.png", "prompt": "<image>\nWhat is it?", "answer": "a ring"},
        {"image": "a.png", "sent": "the ring", "bbox": [5, 5, 30, 40]},
        {"prompt": "17 + 25 =", "answer": "42"},
    ]
    for split in ("train", "val"):
        write_lines(root / f"{split}.jsonl", rows)


def make_llava(root):
    root.mkdir(parents=True, exist_ok=True)
    picture(60, 60).save(root / "a.png")
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "a ring"), ("human", "Its colour?"), ("gpt", "red")]
    rows = [{"id": 0, "image": "a.png", "conversations": [{"from": who, "value": said} for who, said in turns]}]
    for split in ("train", "val"):
        write_json(root / f"{split}.json", rows)


MAKERS = {
    "refcoco": make_refcoco,
    "refcoco+": lambda root: make_refcoco(root, "refcoco+"),
    "refcocog": lambda root: make_refcoco(root, "refcocog"),
    "screenspot-pro": make_screenspot_pro,
    "screenspot-v2": make_screenspot_v2,
    "textvqa": make_textvqa,
    "nextqa": make_nextqa,
    "vilp": make_vilp,
    "gsm8k": make_gsm8k,
    "jsonl": make_jsonl,
    "llava": make_llava,
}


def test_every_data_set_that_is_not_drawn_is_tested_here():
    assert set(MAKERS) == set(DATASETS) - set(DRAWN)


# -- from end to end


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_on_every_data_set_goes_from_files_to_a_report(name, tmp_path, capsys):
    MAKERS[name](tmp_path / "root")
    method = "lora" if name == "gsm8k" else "image-lora"  # without images Image-LoRA has nothing to adapt to
    flags = (
        f"--data {name} --data-root {tmp_path / 'root'} --out {tmp_path / 'run'} --method {method} --steps 2 --batch 2"
    )
    train.main(
        [*flags.split(), "--workers", "0", "--max-new-tokens", "6", "--max-pixels", "12544", "--probe-samples", "1"]
    )
    report = json.loads((tmp_path / "run/report.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert rows and {row["when"] for row in rows} == {"base", "tuned"}
    assert {"prompt", "text", "parsed", "reference", "score", "metric"} <= rows[0].keys()
    assert report["tuned"]["accuracy"] is not None and report["tuned"]["by_kind"]
    capsys.readouterr()
    evaluate.main(["score", str(tmp_path / "run/predictions.jsonl")])
    assert f"{len(rows)} answers scored anew, 0 scores differ" in capsys.readouterr().out


def test_refcoco_needs_nothing_prepared_and_a_second_run_no_network(tmp_path, monkeypatch, capsys):
    make_refcoco(tmp_path / "web")
    with zipfile.ZipFile(tmp_path / "web/annotations.zip", "w") as archive:
        for file in (tmp_path / "web").glob("*.json*"):
            archive.write(file, f"rec_jsons_processed/{file.name}")
    serve = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("IMAGELORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # where there is no data/refcoco
    address = f"http://127.0.0.1:{server.server_port}"
    flags = f"--data refcoco --annotations {address}/annotations.zip --image-url {address}/train2014/ --steps 1"
    flags = [*flags.split(), "--workers", "0", "--batch", "2", "--max-new-tokens", "4", "--probe-samples", "1"]
    train.main([*flags, "--limit", "2", "--eval-limit", "1", "--out", str(tmp_path / "first")])
    assert str(tmp_path / "cache/refcoco") in capsys.readouterr().out
    have = {file.name for file in (tmp_path / "cache/refcoco/train2014").iterdir()}
    assert have == {f"COCO_train2014_{i:012d}.jpg" for i in (0, 1)}  # those that these rows need, no more
    server.shutdown()
    server.server_close()
    train.main([*flags, "--limit", "2", "--eval-limit", "1", "--out", str(tmp_path / "second")])
    both = [json.loads((tmp_path / out / "report.json").read_text())["tuned"] for out in ("first", "second")]
    assert both[0] == both[1]
    capsys.readouterr()


def test_text_skills_are_checked_after_any_fine_tuning(tmp_path, capsys):
    make_jsonl(tmp_path / "own")
    make_gsm8k(tmp_path / "sums")
    flags = f"--data jsonl={tmp_path / 'own'} --also gsm8k={tmp_path / 'sums'} --out {tmp_path / 'run'} --steps 1"
    train.main([*flags.split(), "--workers", "0", "--batch", "2", "--max-new-tokens", "4", "--probe-samples", "1"])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert "gsm8k" in report["tuned"]["by_kind"]
    rows = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert sum(row["data"] == "gsm8k" for row in rows) == 8  # its split test, before and after
    capsys.readouterr()


def test_other_data_can_be_evaluated_than_was_trained_on(tmp_path, capsys):
    make_jsonl(tmp_path / "own")
    make_textvqa(tmp_path / "read")
    flags = f"--data jsonl={tmp_path / 'own'} --eval textvqa={tmp_path / 'read'} --out {tmp_path / 'run'} --steps 1"
    train.main([*flags.split(), "--workers", "0", "--batch", "2", "--max-new-tokens", "4", "--probe-samples", "1"])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report["tuned"]["by_kind"]) == {"textvqa"}
    assert report["tuned"]["accuracy"] == report["tuned"]["by_kind"]["textvqa"]
    capsys.readouterr()


def test_a_model_is_evaluated_on_one_data_set_alone(tmp_path, capsys):
    make_gsm8k(tmp_path / "sums")
    flags = f"--eval-only --eval gsm8k={tmp_path / 'sums'} --out {tmp_path / 'run'} --max-new-tokens 4"
    train.main(flags.split())
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["data"] == "gsm8k" and set(report["base"]["by_kind"]) == {"gsm8k"}
    assert report["base"]["accuracy"] == report["base"]["text_accuracy"] is not None
    assert report["arguments"]["eval_batch"] == 32  # not the tiny model's
    capsys.readouterr()


def test_a_changed_score_is_found_by_scoring_anew(tmp_path, capsys):
    row = {"data": "sums", "kind": "", "group": "", "metric": "number", "text": "so 41 + 1 = 42.", "reference": "42"}
    row |= {"size": None, "resized": None, "images": [], "videos": 0, "when": "tuned", "parsed": "42", "failed": False}
    write_lines(tmp_path / "p.jsonl", [row | {"score": 1.0}, row | {"score": 0.0}])
    assert evaluate.rescore(tmp_path / "p.jsonl") == 1
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["score", str(tmp_path / "absent.jsonl")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "absent.jsonl: no such file" in said


# -- what the loaders read


def test_refcoco_splits_and_boxes(tmp_path):
    make_refcoco(tmp_path)
    rows = load("refcoco", tmp_path, "train")
    assert rows[2].answer == (2, 10, 32, 50) and rows[2].prompt.endswith("describes: the 2 thing. Answer in JSON.")
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
    share = sum(ours(f"{i}.png") == "val" for i in range(5000)) / 5000
    assert 0.18 < share < 0.22


def test_textvqa_learns_the_most_frequent_answer_and_is_scored_by_all_ten(tmp_path):
    make_textvqa(tmp_path)
    example = load("textvqa", tmp_path, "val")[0]
    assert example.answer == "9" and len(example.reference) == 10 and example.metric == "vqa"
    assert example.prompt == "what number, 0?\nAnswer the question using a single word or phrase."


def test_nextqa_reads_frame_folders_and_animated_images(tmp_path):
    make_nextqa(tmp_path)
    folder, gif = load("nextqa", tmp_path, "val")
    assert [f.stem for f in folder.videos[0]] == [f"{i:05d}" for i in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert folder.fps == pytest.approx(8 / 10)  # 8 of 300 frames at 30 a second
    assert gif.videos[0] == [Frame(str(tmp_path / "videos/4010069382.gif"), i) for i in range(5)]
    assert gif.fps == pytest.approx(5 / 2.5)
    assert (folder.answer, folder.kind, folder.group) == ("B", "CW", "causal")
    assert folder.prompt.startswith("why did the boy, in red, run?\nA. to play\nB. to eat\n")


def test_frames_are_spread_evenly_first_and_last_included():
    assert sample(20, 8) == [0, 3, 5, 8, 11, 14, 16, 19]
    assert sample(3, 8) == [0, 1, 2] and sample(1, 8) == [0] and sample(9, 1) == [0]


def test_a_frame_of_an_animated_image_is_that_frame(tmp_path):
    animated(tmp_path / "clip.png", 4)
    frames, seconds = video_frames(tmp_path / "clip.png", 4)
    assert seconds == pytest.approx(2.0)
    for i, frame in enumerate(frames):
        assert open_image(frame).tobytes() == picture(60, 40, i).tobytes()


def test_vilp_scores_images_2_and_3_and_keeps_the_prior_apart(tmp_path):
    make_vilp(tmp_path)
    rows = load("vilp", tmp_path, "test")
    assert [e.kind for e in rows[:3]] == ["prior", "score", "score"]
    assert rows[0].prompt == "Please answer with one word: A ball is round. What shape is ball 0?"


def test_gsm8k_learns_the_solution_without_calculator_marks(tmp_path):
    make_gsm8k(tmp_path)
    example = load("gsm8k", tmp_path, "test")[0]
    assert example.answer == "She has 3 + 4 = 7 nuts.\nThat is 7 * 1000 = $7,000.\n#### 7,000"
    assert example.reference == "7000" and not example.images


def test_every_answer_of_a_conversation_is_a_row_behind_the_turns_before_it(tmp_path, processor):
    make_llava(tmp_path)
    first, second = load("llava", tmp_path, "train")
    assert (first.prompt, first.answer, first.history) == ("What is it?", "a ring", ())
    assert (second.prompt, second.answer, second.history) == ("Its colour?", "red", (("What is it?", "a ring"),))
    ids, supervised = processor.tokens(second)
    text = processor.tokenizer.decode(ids, skip_special_tokens=False)
    assert text.count("<|vision_start|>") == 1 and text.index("<|vision_end|>What is it?") > 0
    assert "assistant\na ring<|im_end|>\n<|im_start|>user\nIts colour?<|im_end|>" in text
    assert processor.tokenizer.decode(ids[supervised:], skip_special_tokens=False) == "red<|im_end|>"


def test_an_image_in_a_later_turn_is_refused_not_lost(tmp_path):
    picture(60, 60).save(tmp_path / "a.png")
    turns = [("human", "Hello."), ("gpt", "Hello."), ("human", "<image>\nWhat is it?"), ("gpt", "a ring")]
    row = {"image": "a.png", "conversations": [{"from": who, "value": said} for who, said in turns]}
    write_json(tmp_path / "train.json", [row])
    with pytest.raises(InputError, match="train.json, row 1: <image> in a later turn"):
        load("llava", tmp_path, "train")


def test_an_image_stands_where_the_prompt_says(tmp_path, processor):
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


def test_questions_with_different_text_before_the_image_do_not_share_a_row(processor):
    image = picture(60, 60)
    asks = [Example([image], f"{word} <image> is?", "x") for word in ("What", "What", "Where")]
    assert processor(asks, share_images=True).examples == [(0, 1), (0, 2), (1, 0)]


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


def test_an_unknown_name_in_eval_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--eval", "textvq"])
    assert stop.value.code == 2 and "error: unknown data set 'textvq'; known: refcoco" in capsys.readouterr().err


# -- real annotation files


@pytest.mark.parametrize(("split", "count"), [("val", 10834), ("testA", 5657), ("testB", 5095)])
def test_the_real_refcoco_annotations_parse_completely(shared, split, count):
    rows = list(DATASETS["refcoco"].rows("refcoco", shared / "refcoco-annotations", split))
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
    rows = list(DATASETS["screenspot-v2"].rows("screenspot-v2", shared / "screenspot", "test"))
    counts = {group: sum(row["group"] == group for row, _ in rows) for group in ("desktop", "mobile", "web")}
    assert counts == {"desktop": 334, "mobile": 501, "web": 437}
    assert {row["kind"] for row, _ in rows} == {"text", "icon"}
    assert all(x1 < x2 and y1 < y2 for row, _ in rows for x1, y1, x2, y2 in [row["bbox"]])


# -- videos


def test_a_video_is_slices_of_two_frames_and_its_positions_run_by_the_clock(processor):
    """8 frames of 56 x 56 pixels: 4 slices of 2 x 2 tokens. At 4 frames a second a slice lasts half a second, and there
    are 2 positions a second: times 0, 1, 2, 3. At 1 frame a second: 0, 4, 8, 12, and the text goes on at 13."""
    frames = [picture(56, 56, i) for i in range(8)]
    processor = Processor(processor.config, processor.tokenizer, processor.preprocessor, min_pixels=3136)
    for fps, times in ((4.0, [0, 1, 2, 3]), (1.0, [0, 4, 8, 12]), (3.0, [0, 1, 2, 4])):
        batch = processor([Example(videos=[frames], fps=fps, prompt="What?")])
        assert batch.grids.tolist() == [[4, 4, 4]] and int(batch.visual_mask.sum()) == 16
        seen = batch.position_ids[:, 0, batch.visual_mask[0]]
        start = int(seen.min())
        assert (seen[0] - start).tolist() == [t for t in times for _ in range(4)]
        assert (seen[1] - start).tolist() == [0, 0, 1, 1] * 4 and (seen[2] - start).tolist() == [0, 1] * 8
        behind = int(batch.visual_index.max()) + 1
        assert batch.position_ids[:, 0, behind].tolist() == [start + max(times[-1], 1) + 1] * 3


def test_an_odd_last_frame_is_repeated_and_a_still_picture_is_two_equal_frames(processor):
    frames = [picture(60, 60, i) for i in range(3)]
    odd, _ = processor.cut(tuple(frames))
    even, grid = processor.cut((*frames, frames[-1]))
    assert grid[0] == 2 and (odd == even).all()
    still, _ = processor.cut(frames[0])
    assert (still == processor.cut((frames[0], frames[0]))[0]).all()


def test_videos_train_and_answer_batched_as_alone(vlm, processor):
    clips = [[picture(60, 60, 10 * k + i) for i in range(4 + k)] for k in range(3)]
    asks = [Example(videos=[clip], fps=2.0 + k, prompt="What happens?") for k, clip in enumerate(clips)]
    asks.append(Example([], "17 + 25 ="))
    assert vlm.generate(processor(asks), 6) == [vlm.generate(processor([ask]), 6)[0] for ask in asks]


def test_random_boxes_agree_with_counting_pixels():
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.randint(0, 6), rng.randint(0, 6), rng.randint(7, 12), rng.randint(7, 12)] for _ in range(2))
        pixels = [{(x, y) for x in range(q[0], q[2]) for y in range(q[1], q[3])} for q in (a, b)]
        assert iou(a, b) == pytest.approx(len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1]))


def test_the_readme_has_a_row_for_every_data_set():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(DATASETS) - set(DRAWN):
        assert f"| `{name}`" in text, name

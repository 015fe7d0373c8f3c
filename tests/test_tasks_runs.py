"""A run on every data set, from files to a report; a new task is added from outside."""

import json
import zipfile

import pytest
from conftest import ROOT, picture
from local_web import serving
from task_folders import (
    MAKERS,
    make_gsm8k,
    make_jsonl,
    make_refcoco,
    make_textvqa,
    write_lines,
)

import data
import harness.evaluate
import train
from harness.evaluate import score_again
from parts.tasks import TASKS, Task, score
from parts.tasks.rows import json_rows
from parts.tasks.scenes import DRAWN


def test_every_data_set_that_is_not_drawn_is_tested_here():
    assert set(MAKERS) == set(TASKS) - set(DRAWN)


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_on_every_data_set_goes_from_files_to_a_report(name, tmp_path, capsys):
    MAKERS[name](tmp_path / "root")
    method = "lora" if name == "gsm8k" else "image-lora"  # without images Image-LoRA has nothing to adapt to
    flags = (
        f"--data {name}={tmp_path / 'root'} --out {tmp_path / 'run'} --method {method} --steps 2 --batch 2"
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
    harness.evaluate.main([str(tmp_path / "run/predictions.jsonl")])
    assert f"{len(rows)} answers scored again, 0 scores differ" in capsys.readouterr().out


def test_refcoco_needs_nothing_prepared_and_a_second_run_no_network(tmp_path, monkeypatch, capsys):
    make_refcoco(tmp_path / "web")
    with zipfile.ZipFile(tmp_path / "annotations.zip", "w") as archive:
        for file in (tmp_path / "web").glob("*.json*"):
            archive.write(file, f"rec_jsons_processed/{file.name}")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: tmp_path / "annotations.zip")
    monkeypatch.setenv("IMAGELORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # where there is no data/refcoco
    flags = ["--data", "refcoco", "--steps", "1", "--workers", "0", "--batch", "2", "--max-new-tokens", "4", "--probe-samples", "1"]
    with serving(monkeypatch) as web:
        web.files |= {file.name: file.read_bytes() for file in (tmp_path / "web/train2014").iterdir()}
        train.main([*flags, "--limit", "2", "--eval-limit", "1", "--out", str(tmp_path / "first")])
    assert str(tmp_path / "cache/refcoco") in capsys.readouterr().out
    have = {file.name for file in (tmp_path / "cache/refcoco/train2014").iterdir()}
    assert have == {f"COCO_train2014_{i:012d}.jpg" for i in (0, 1)}  # those that these rows need, no more
    train.main([*flags, "--limit", "2", "--eval-limit", "1", "--out", str(tmp_path / "second")])
    both = [json.loads((tmp_path / out / "report.json").read_text())["tuned"] for out in ("first", "second")]
    assert both[0] == both[1]
    capsys.readouterr()


def test_text_skills_are_checked_after_any_fine_tuning(tmp_path, capsys):
    make_jsonl(tmp_path / "own")
    make_gsm8k(tmp_path / "sums")
    flags = f"--data jsonl={tmp_path / 'own'} --eval jsonl gsm8k={tmp_path / 'sums'} --out {tmp_path / 'run'} --steps 1"
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
    flags = f"--method none --eval gsm8k={tmp_path / 'sums'} --out {tmp_path / 'run'} --max-new-tokens 4"
    train.main(flags.split())
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["data"] == "gsm8k" and set(report["base"]["by_kind"]) == {"gsm8k"}
    assert report["base"]["accuracy"] == report["base"]["text_accuracy"] is not None
    assert report["arguments"]["batch"] == 8  # that of real data
    capsys.readouterr()


def test_a_changed_score_is_found_by_scoring_again(tmp_path, capsys):
    row = {"data": "sums", "kind": "", "group": "", "metric": "number", "text": "so 41 + 1 = 42.", "reference": "42"}
    row |= {"size": None, "resized": None, "images": [], "videos": 0, "when": "tuned", "parsed": "42", "failed": False}
    write_lines(tmp_path / "p.jsonl", [row | {"score": 1.0}, row | {"score": 0.0}])
    assert score_again(tmp_path / "p.jsonl") == 1
    with pytest.raises(SystemExit) as stop:
        harness.evaluate.main([str(tmp_path / "absent.jsonl")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "absent.jsonl: no such file" in said


def test_an_unknown_name_in_eval_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--eval", "textvq"])
    assert stop.value.code == 2 and "error: unknown data set 'textvq'; known: refcoco" in capsys.readouterr().err


def test_the_readme_or_the_docs_have_a_row_for_every_data_set():
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    for name in set(TASKS) - set(DRAWN):
        assert f"| `{name}`" in text, name


# -- a new data set, from outside


def toy_rows(name, root, split):
    """Say what a colour is, loudly."""
    for row, source in json_rows(root / f"{split}.jsonl"):
        yield {"image": row["file"], "prompt": "Which colour?", "answer": row["colour"], "metric": "loud"}, source


def toy_score(text, reference, *_):
    return text, float(text == reference.upper())


def test_a_new_data_set_with_its_own_metric_is_one_function_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "toy", Task(toy_rows, {"loud": toy_score}, eval_split="test", new_tokens=5))
    (tmp_path / "toy").mkdir()
    picture(60, 60).save(tmp_path / "toy/a.png")
    for split in ("train", "test"):
        write_lines(tmp_path / f"toy/{split}.jsonl", [{"file": "a.png", "colour": c} for c in ("red", "blue")])

    examples = data.load("toy", tmp_path / "toy", "train")
    assert [(e.prompt, e.answer, e.metric) for e in examples] == [("Which colour?", c, "loud") for c in ("red", "blue")]
    assert score("loud", "RED", "red") == {"parsed": "RED", "score": 1.0, "failed": False}

    flags = f"--data toy={tmp_path / 'toy'} --out {tmp_path / 'run'} --steps 1 --batch 2 --workers 0 --probe-samples 1"
    train.main(flags.split())
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report["tuned"]["by_kind"]) == {"toy"} and report["tuned"]["accuracy"] == 0
    answers = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in answers} == {"loud"} and {row["reference"] for row in answers} == {"red", "blue"}
    assert "test.jsonl" in answers[0]["source"]  # its own split to evaluate on
    capsys.readouterr()

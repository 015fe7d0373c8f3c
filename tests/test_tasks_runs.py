"""Runs from files to a report: images, videos and text; a data set that is fetched; one that is added from outside."""

import json
import zipfile

import pytest
from conftest import picture
from local_web import serving
from task_folders import MAKERS, make_gsm8k, make_jsonl, make_refcoco, write_lines

import harness.evaluate
import train
from harness.evaluate import score_again
from parts.tasks import TASKS, Task
from parts.tasks.rows import json_rows

SHORT = ["--steps", "1", "--batch", "2", "--workers", "0", "--max-new-tokens", "4", "--max-pixels", "12544", "--probe-samples", "1"]


def run(out, *flags):
    """(report, predictions) of a run."""
    train.main([*SHORT, *flags, "--out", str(out)])
    lines = (out / "predictions.jsonl").read_text().splitlines()
    return json.loads((out / "report.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", ["screenspot-v2", "nextqa", "gsm8k"])
def test_a_run_goes_from_files_to_a_report_whose_scores_can_be_computed_again(name, tmp_path, capsys):
    MAKERS[name](tmp_path / "root")
    method = "lora" if name == "gsm8k" else "image-lora"  # without images Image-LoRA has nothing to adapt to
    report, rows = run(tmp_path / "run", "--data", f"{name}={tmp_path / 'root'}", "--method", method)
    assert report["tuned"]["accuracy"] is not None and {row["when"] for row in rows} == {"base", "tuned"}
    capsys.readouterr()
    harness.evaluate.main([str(tmp_path / "run/predictions.jsonl")])
    assert f"{len(rows)} answers scored again, 0 scores differ" in capsys.readouterr().out


def test_a_changed_score_is_noticed_by_scoring_again(tmp_path):
    row = {"data": "sums", "kind": "", "group": "", "metric": "number", "text": "so 41 + 1 = 42.", "reference": "42"}
    row |= {"size": None, "resized": None, "images": [], "videos": 0, "when": "tuned", "parsed": "42", "failed": False}
    write_lines(tmp_path / "p.jsonl", [row | {"score": 1.0}, row | {"score": 0.0}])
    assert score_again(tmp_path / "p.jsonl") == 1


def test_refcoco_needs_nothing_prepared_and_a_second_run_no_network(tmp_path, monkeypatch, capsys):
    make_refcoco(tmp_path / "web")
    with zipfile.ZipFile(tmp_path / "annotations.zip", "w") as archive:
        for file in (tmp_path / "web").glob("*.json*"):
            archive.write(file, f"rec_jsons_processed/{file.name}")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: tmp_path / "annotations.zip")
    monkeypatch.setenv("IMAGELORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # where there is no data/refcoco
    flags = ["--data", "refcoco", "--limit", "2", "--eval-limit", "1"]
    with serving(monkeypatch) as web:
        web.files |= {file.name: file.read_bytes() for file in (tmp_path / "web/train2014").iterdir()}
        first, _ = run(tmp_path / "first", *flags)
    assert str(tmp_path / "cache/refcoco") in capsys.readouterr().out
    have = {file.name for file in (tmp_path / "cache/refcoco/train2014").iterdir()}
    assert have == {f"COCO_train2014_{i:012d}.jpg" for i in (0, 1)}  # those that these rows need, no more
    second, _ = run(tmp_path / "second", *flags)
    assert first["tuned"] == second["tuned"]


def test_text_skills_are_checked_after_any_fine_tuning(tmp_path):
    make_jsonl(tmp_path / "own")
    make_gsm8k(tmp_path / "sums")
    sets = f"jsonl={tmp_path / 'own'}", f"gsm8k={tmp_path / 'sums'}"
    report, rows = run(tmp_path / "run", "--data", sets[0], "--eval", *sets)
    assert {"jsonl", "gsm8k"} <= report["tuned"]["by_kind"].keys()
    assert report["tuned"]["text_accuracy"] is not None
    assert sum(row["data"] == "gsm8k" for row in rows) == 8  # its split test, before and after


def test_an_unknown_name_in_eval_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--eval", "textvq"])
    assert "error: unknown data set 'textvq'" in capsys.readouterr().err


def loud_rows(name, root, split):
    for row, source in json_rows(root / f"{split}.jsonl"):
        yield {"image": row["file"], "prompt": "Which colour?", "answer": row["colour"], "metric": "loud"}, source


def score_loud(text, reference, *_):
    return text, float(text == reference.upper())


def test_a_data_set_with_its_own_metric_and_split_is_two_functions_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "loud", Task(loud_rows, {"loud": score_loud}, eval_split="test"))
    picture(60, 60).save(tmp_path / "a.png")
    for split in ("train", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [{"file": "a.png", "colour": c} for c in ("red", "blue")])
    report, rows = run(tmp_path / "run", "--data", f"loud={tmp_path}")
    assert report["tuned"]["accuracy"] == 0 and {row["metric"] for row in rows} == {"loud"}
    assert {row["reference"] for row in rows} == {"red", "blue"} and all("test.jsonl" in row["source"] for row in rows)

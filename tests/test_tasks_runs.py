"""Runs from files to a report: a data set that is fetched, one of videos, and one with its own metric, from outside."""

import json
import zipfile

from conftest import picture
from local_web import serving
from task_folders import COCO, make_refcoco, write_lines

import train
from parts.tasks import TASKS, Task
from parts.tasks.rows import json_rows

SHORT = ["--steps", "1", "--batch", "2", "--workers", "0", "--max-new-tokens", "4", "--max-pixels", "12544", "--probe-samples", "1"]


def run(out, *flags):
    """(report, predictions) of a run."""
    train.main([*SHORT, *flags, "--out", str(out)])
    lines = (out / "predictions.jsonl").read_text().splitlines()
    return json.loads((out / "report.json").read_text()), [json.loads(line) for line in lines]


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
    assert {file.name for file in (tmp_path / "cache/refcoco/train2014").iterdir()} == set(COCO[:2])  # no more than needed
    second, _ = run(tmp_path / "second", *flags)
    assert first["tuned"] == second["tuned"]


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

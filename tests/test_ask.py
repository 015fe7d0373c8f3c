"""Questions without a data set, from the command line: `python -m harness.ask`."""

from pathlib import Path

import pytest
from conftest import picture, randomised
from short_run import lines_of, stopped

import train
from data import Example, Processor
from harness import ask
from imagelora import LoRA
from model import VLM
from parts.files import read_metadata, read_safetensors, write_safetensors


@pytest.fixture
def adapter(vlm, checkpoint, tmp_path):
    """An adapter file that names its base."""
    vlm.source = str(checkpoint)
    adapter = randomised(LoRA(vlm.config)).attach(vlm)
    adapter.notes = {"min_pixels": 784, "max_pixels": 7840}
    adapter.save(tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def test_one_question_is_answered_by_the_model_that_the_adapter_names_without_and_with_it(adapter, tmp_path, capsys):
    picture(112, 112).save(tmp_path / "photo.png")
    ask.main(f"--adapter {adapter} --image {tmp_path}/photo.png --find star --max-new-tokens 4 --out {tmp_path}/out".split())
    printed = capsys.readouterr().out.splitlines()
    (base, of_base), (tuned, of_tuned) = (line.split(None, 1) for line in printed if line.startswith(("base", "tuned")))
    assert (base, tuned) == ("base", "tuned") and of_base != of_tuned
    processor = ask.load_processor(train.parse_args(["--adapter", str(adapter), "--min-pixels=1568"]))
    assert (processor.min_pixels, processor.max_pixels) == (1568, 7840)  # of its training, unless a flag says otherwise
    assert (tmp_path / "out/answer.png").exists()


def test_an_adapter_that_names_no_base_is_not_given_another_one(adapter, tmp_path, capsys):
    old = tmp_path / "old.safetensors"
    write_safetensors(old, dict(read_safetensors(adapter)), read_metadata(adapter) | {"model": ""})
    for main, more in ((ask.main, ["--prompt", "Why?"]), (train.main, [])):
        code, line = stopped(capsys, main, ["--adapter", str(old), *more])
        assert code == 2 and f"{old}: does not name its base; add --model" in line
    assert "which model?" in stopped(capsys, ask.main, ["--prompt", "Why?"])[1]


def test_a_folder_gets_an_answer_for_each_image_and_a_line_for_what_is_left_out(checkpoint, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("b.png", "a.jfif", "c.TIF", "d.gif")):
        picture(112 + 28 * i, 112, i).save(folder / name)
    for name in ("._a.jpg", "notes.txt"):
        (folder / name).write_text("no image")
    real, written, file = ask.ask, [], tmp_path / "out/predictions.jsonl"
    monkeypatch.setattr(ask, "ask", lambda *arguments: written.append(len(lines_of(file))) or real(*arguments))
    ask.main(f"--model {checkpoint} --folder {folder} --prompt What? --max-new-tokens 4 --out {tmp_path}/out".split())
    rows = lines_of(file)
    assert written == [0, 0, 1, 2, 3]  # each at once; the first file is none
    assert [Path(row["image"]).name for row in rows] == ["a.jfif", "b.png", "c.TIF", "d.gif"]
    assert all(row["prompt"] == "What?" and "text" in row and "box" in row for row in rows)
    printed = capsys.readouterr().out
    assert "answers  to 4 images" in printed and "left out: 1 images, more, notes.txt" in printed and "._a.jpg" in printed


@pytest.mark.parametrize("flags", ["--folder EMPTY", "--image absent.png", "--image BAD", "--image EMPTY", "--adapter BAD"])
def test_a_bad_file_is_one_line_for_an_image_before_the_model_is_loaded(checkpoint, tmp_path, capsys, monkeypatch, flags):
    if flags.startswith("--image"):
        monkeypatch.setattr(ask, "load_model", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    flags = flags.replace("EMPTY", f"{tmp_path}/empty").replace("BAD", f"{tmp_path}/bad.png")
    code, line = stopped(capsys, ask.main, f"--model {checkpoint} --prompt What? --out {tmp_path}/out {flags}".split())
    assert code == 2 and flags.split()[1] in line


def test_boxes_are_in_pixels_of_the_file(checkpoint, monkeypatch):
    vlm, processor = VLM.from_pretrained(checkpoint), Processor.from_pretrained(checkpoint)
    image = picture(560, 280)
    monkeypatch.setattr(processor, "decode", lambda ids: "[28, 0, 56, 28]")
    monkeypatch.setattr(processor, "box_scale", lambda visual: (280, 140))  # the model sees half of each side
    assert ask.ask(vlm, processor, Example([image], "?"), 4)[1] == [56, 0, 112, 56]
    assert ask.ask(vlm, processor, Example([image, image], "?"), 4)[1] is None  # a box in which of them?

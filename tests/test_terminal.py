"""What is printed: the text of users cannot steer the terminal, and no console is too simple for it."""

import io
import json
import sys

import pytest
from conftest import picture

import train
from harness.processes import Terminal, all_processes, one_line, progress
from parts.files import InputError

STEERING = "\x1b[31mred\x1b]0;title\x07 \x9b2J bell\x07 back\b nul\0 return\r\u202ereversed\u2028"
CHINESE = "红色的杯子在哪里?"


def console(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def shown(stream):
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.fixture
def rows(tmp_path):
    """A file of two rows, with a prompt that steers the terminal and one that few consoles can show."""
    texts = [{"prompt": STEERING, "answer": "x\x1b[2J"}, {"prompt": CHINESE, "answer": "da drüben"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return file


def control_characters(text):
    return [c for c in text if ord(c) < 32 and c not in "\n\t" or 127 <= ord(c) < 160 or "\u2028" <= c <= "\u202e"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "cp437", "shift_jis"])
def test_whatever_is_printed_arrives_without_its_control_characters(monkeypatch, encoding):
    stream = console(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with all_processes():
        print(STEERING, CHINESE, "\ud800", sep="\n", end="\tend\n", flush=True)
    assert sys.stdout is stream
    said = shown(stream)
    assert control_characters(said) == [] and said.endswith("\tend\n")
    assert "\\x1b[31mred" in said and "nul\\x00 return\\r" in said and "\\ud800" in said
    assert (CHINESE if encoding == "utf-8" else "\\u") in said


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_prompt_that_the_console_cannot_show_does_not_end_a_run(monkeypatch, rows, encoding, tmp_path):
    monkeypatch.setattr(sys, "stdout", console(encoding))
    train.main(["--show", f"jsonl={rows}", "--train-split", "test", "--out", str(tmp_path / "out")])
    said = shown(sys.stdout)
    assert said.count("rows.jsonl:") == 2 and "\\u676f" in said
    assert control_characters(said) == []


def test_an_answer_that_steers_the_terminal_is_shown(monkeypatch, checkpoint, capsys, tmp_path):
    """Generated text is printed as it is; here every token becomes an escape."""
    monkeypatch.setattr("data.Processor.decode", lambda self, ids: STEERING)
    asked = ["--prompt", f"What is {CHINESE}?", "--image", str(tmp_path / "a.png"), "--max-new-tokens", "2"]
    picture(60, 60).save(tmp_path / "a.png")
    train.main(["--model", str(checkpoint), "--eval-only", *asked, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "base     \\x1b[31mred" in said and control_characters(said) == []


def test_an_error_is_one_line_without_control_characters(tmp_path, capsys):
    name = f"{STEERING.replace(chr(0), '')}\n\n.png"
    (tmp_path / "val.jsonl").write_text(json.dumps({"image": name, "prompt": "What?", "answer": "x"}))
    with pytest.raises(SystemExit) as stopped:
        train.main(["--show", "jsonl", "--data-root", str(tmp_path), "--train-split", "val"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: ") and "val.jsonl:1" in said
    assert len(said.splitlines()) == 1 and control_characters(said) == []
    assert one_line(InputError("a\x1b[0m\r\nb")) == "a\\x1b[0m\\r b"


def test_progress_bars_still_return_to_the_start_of_their_line(capsys):
    with all_processes(), progress(total=3, desc="train", mininterval=0) as bar:
        bar.update(2)
    assert "\r" in capsys.readouterr().err


def test_a_terminal_is_otherwise_the_stream_it_writes_to():
    stream = io.StringIO()
    print("a\x1b", end="", file=Terminal(stream), flush=True)
    assert stream.getvalue() == "a\\x1b" and Terminal(stream).isatty() is False

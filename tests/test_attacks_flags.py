"""Flags that make no sense: one line that names the flag, exit code 2, and nothing is written."""

import os
import random

import pytest
from short_run import SMALL_RUN

import train
from harness.arguments import Range, make_parser

NO_NUMBER = ["", " ", "nan", "inf", "-inf", "1e300", "-1", str(10**24), "x", "1,5", "0x10", "--", "9" * 5000, "\x1b[2J"]
NOT_WHOLE = ["1.5", "1e3", "1/2"]
NO_NAME = ["", " ", "a\0b", "a\udcffb", "a" * 5000]
SENSELESS = {  # flag: further values, which are of the right kind
    "--steps": ["0"], "--epochs": ["0"], "--warmup": ["2", "1.01"], "--tau": ["-0.1", "1e4"], "--lr": ["0", "1e7"],
    "--clip": ["0"], "--alpha": ["0"], "--gamma": ["0"], "--rank": ["0", "100000"], "--workers": ["1000"],
    "--max-pixels": ["0"], "--min-pixels": ["0", "401409"], "--batch": ["0", "1000000"], "--accumulate": ["0"],
    "--seed": [str(2**64)], "--save-every": ["0"], "--heads": ["0"], "--probe-samples": ["0"], "--eval-batch": ["0"],
    "--max-new-tokens": ["0"], "--targets": ["x", "qkvox"], "--method": ["", "dora"], "--dtype": ["int8"],
    "--path": ["z"], "--tokens": ["some"], "--shared": ["all"], "--selection": ["/", "/dev/null", "/no/such.json"],
    "--adapter": ["/", "/dev/null", "/no/such"], "--continue-from": ["/", "/no/such"], "--score": ["/", "/no/such"],
    "--data": [ "scenes-day=", "jsonl=a\0b"],
}  # fmt: skip
TOGETHER = [  # flags that exclude each other or need another, and what is said
    (["--steps", "1", "--epochs", "1"], "--steps and --epochs"),
    (["--min-pixels", "2000", "--max-pixels", "1000"], "--min-pixels 2000: max_pixels 1000"),
    (["--steps", "100000000", "--batch", "100", "--accumulate", "100"], "--steps x --batch x --accumulate"),
    (["--image", "a.png"], "--image and --predict need --prompt"),
    (["--predict", "a"], "--image and --predict need --prompt"),
    (["--predict", "a", "--image", "b.png", "--find", "c"], "--image and --predict exclude"),
    (["--method", "full", "--dtype", "float16"], "--method full: --dtype"),
    (["--adapter", __file__], "--adapter needs --eval-only"),
    (["--continue-from", __file__, "--method", "lora"], "--continue-from needs"),
    (["--nonsense"], "--nonsense"),
    (["rows.jsonl"], "rows.jsonl"),
    (["\x1b[2Jrows.jsonl"], "?[2Jrows.jsonl"),
    (["--score", "\x1b[2J"], "--score: ?[2J: no such file"),
    (["--steps"], "--steps"),
    *(([flag, "coco"], "unknown data set 'coco'") for flag in ("--data", "--eval", "--also")),
]


def senseless():
    """[(flags, what the line must say)]: every flag of train.py with values of the wrong kind."""
    found = [([flag, value], flag) for flag, values in SENSELESS.items() for value in values]
    for action in make_parser(["image-lora"], [])._actions:
        if isinstance(action.type, Range):
            values = NO_NUMBER + (NOT_WHOLE if action.type.kind is int else [])
        elif action.type is not None:
            values = NO_NAME if action.option_strings[0] not in ("--prompt", "--find") else NO_NAME[:4]
        else:
            continue
        flag = action.option_strings[0]
        found += [
            (
                [flag, value],
                "unknown data set"
                if action.dest in ("data", "eval", "also", "show") and value == NO_NAME[-1]
                else flag,
            )
            for value in values
        ]
    return found + TOGETHER


def complaint(main, flags, capsys):
    """The line by which `main` refuses flags; None if it does not end with code 2 and one line."""
    try:
        main([str(flag) for flag in flags])
        return None
    except SystemExit as stopped:
        lines = capsys.readouterr().err.splitlines()
        return lines[0] if stopped.code == 2 and len(lines) == 1 and lines[0].startswith("error: ") else None


def test_senseless_flags_are_refused_in_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    attacks = senseless()
    attacks = [(flags, said) for flags, said in attacks if not is_only_long(flags)]
    wrong = []
    for flags, said in attacks:
        line = complaint(train.main, flags, capsys)
        if line is None or said not in line or len(line) > 2000 or "\x1b" in line:
            wrong.append((flags[0], flags[-1][:30], line))
    print(f"{len(attacks)} senseless flags")
    assert wrong == []
    assert len(attacks) >= 150 and list(tmp_path.iterdir()) == []


def is_only_long(flags):
    """A word that is only long is a word: that there is no such split is found when the data are read."""
    return (
        flags[0] in ("--device", "--train-split", "--eval-split")
        and flags[1] == NO_NAME[-1]
    )


@pytest.fixture
def places(tmp_path):
    """Places that are no place for a run."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "PLACE/file"], "--out PLACE/file: cannot be made, PLACE/file is no folder"),
        (["--out", "PLACE/file/run"], "--out PLACE/file/run: cannot be made, PLACE/file is no folder"),
        (["--out", "PLACE/full"], "--out PLACE/full: holds other files"),
        (["--out", "PLACE/loop"], "argument --out"),
        (["--out", "/dev/null"], "--out /dev/null: cannot be made"),
        (["--resume", "/dev/null"], "no such file; --resume takes the folder of a run"),
        (["--resume", "PLACE/empty"], "no such file; --resume takes the folder of a run"),
        (["--resume", "PLACE/full"], "no such file; --resume takes the folder of a run"),
        (["--resume", "PLACE/nowhere"], "no such file; --resume takes the folder of a run"),
        *(
            (["--device", name], f"--device {name}")
            for name in ("gpu", "meta", "cuda:99", "cpu:x", "-", "xla", "vulkan")
        ),
        *((["--model", name], name) for name in ("/", "/dev/null", "PLACE/file", "PLACE/empty")),
        (["--data", "jsonl=PLACE/nowhere"], "PLACE/nowhere"),
        (["--data", "jsonl=PLACE/empty"], "PLACE/empty"),
        (["--show", "coco"], "coco"),
        (["--predict", "PLACE/empty", "--find", "x"], "--predict PLACE/empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_places_and_devices_that_cannot_be_used_are_named(checkpoint, places, flags, said, capsys, monkeypatch):
    monkeypatch.chdir(places)
    flags = [flag.replace("PLACE", str(places)) for flag in flags]
    if flags[0] not in ("--resume", "--show"):
        flags = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, *flags]
    before = sorted(places.rglob("*"))
    line = complaint(train.main, flags, capsys)
    assert line and said.replace("PLACE", str(places)) in line
    assert sorted(places.rglob("*")) == before and (places / "file").read_text() == "mine"


def test_a_place_where_nothing_may_be_written_is_refused_at_once(places, capsys, monkeypatch):
    if os.geteuid() == 0:  # whom the system refuses nothing
        monkeypatch.setattr(os, "access", lambda *_: False)
    (places / "empty").chmod(0o500)
    line = complaint(train.main, ["--out", places / "empty/run"], capsys)
    assert f"{places / 'empty'} is no folder that may be written into" in line and not list(
        (places / "empty").iterdir()
    )


def test_flags_drawn_at_random_end_in_one_line_or_are_understood(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw, attacks, refused = random.Random(0), [flags for flags, _ in senseless() if len(flags) == 2], 0
    for _ in range(100):
        flags = [word for flags in draw.sample(attacks, 3) for word in flags]
        if (line := complaint(train.arguments, flags, capsys)) is not None:
            assert any(flag in line for flag in flags[::2])
            refused += 1
    print(f"100 draws of three senseless flags, {refused} refused")
    assert refused == 100 and not list(tmp_path.iterdir())

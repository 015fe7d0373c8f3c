"""Suites: rows, rates, runs, resuming, and the page that is filled from the results."""

import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
from conftest import by_hand

import train
from experiments import __main__ as command
from experiments import runs, selection, suites, tables, trained
from experiments.runs import Setup
from experiments.tables import PAGE, RESULTS, filled, markdown
from harness import encodings
from harness.arguments import evaluation_sets
from parts.files import InputError

RATES = dict.fromkeys(suites.SEARCHED, 1e-2)


@pytest.fixture
def flags(checkpoint, tmp_path, monkeypatch):
    """Flags for short runs in this process, which has everything loaded; learning rates are there."""

    def worker(setup):
        asked = io.StringIO()

        def readline():
            train.main(json.loads(asked.getvalue().splitlines()[-1]))
            return "\n"

        return SimpleNamespace(stdin=asked, stdout=SimpleNamespace(readline=readline))

    monkeypatch.setattr(runs, "start_worker", worker)
    (tmp_path / "rates.json").write_text(json.dumps({"rates": RATES}))
    more = f"--model {checkpoint} --steps 2 --limit 40 --eval-limit 10 --probe-samples 2 --max-new-tokens 4"
    return ["--jobs", "1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--more", more]


# -- rows


def test_every_row_is_a_command_and_compared_rows_answer_the_same_questions():
    def sets(flags):
        return evaluation_sets(train.parse_args(f"{suites.COMMON} {flags}".split()))

    for suite in suites.SUITES.values():
        asked = {row: sets(flags) for row, flags in suite.rows.items()}
        for row, against, *column in suite.comparisons:
            assert asked[row] == asked[against] and set(column) <= set(tables.QUESTIONS)
    assert all(map(sets, [*suites.SKILLS.values(), *suites.SEARCHED]))


def test_a_row_takes_the_rate_of_the_longest_searched_flags_or_its_own():
    rates = {"": 1, "--heads 3": 2, "--method lora": 3, "--method lora --targets v": 4, "--rank 1 --alpha 2": 5}
    rates["--method lora --rank 1 --alpha 2"] = 6

    def rate(flags):
        return float(re.search(r"--lr (\S+)", runs.of_seed(flags, 0, rates))[1])

    rows = ["", "--heads 6", "--heads 3 --selection random", "--method lora", "--method lora --targets v --data boxes-fog"]
    assert [rate(flags) for flags in rows] == [1, 1, 2, 3, 4]
    assert rate("--method lora --lr 0.5") == 0.5
    assert [rate(f"--method lora {suites.RANK[r]}") for r in (1, 2, 4)] == [6, 6, 3]  # not searched: like the nearer one


def test_other_heads_are_another_run_and_the_same_heads_the_same(tmp_path, monkeypatch):
    chosen = [{0: [1], 2: [0]}, {0: [1], 2: [1]}, {2: [0], 0: [1]}]
    first, second, third = (runs.selection_flag(heads, Setup(tmp_path, None, 1, 1)) for heads in chosen)
    assert first == third != second and first.startswith("--heads 2 ")
    monkeypatch.setattr(runs, "run_all", lambda flags, *_: flags)
    of_seeds = runs.run_selections(chosen[:2], Setup(tmp_path, None, 1, 1, seeds=(3, 4), rates={"": 1}))
    assert of_seeds == [f"{first} --lr 1 --seed 3", f"{second} --lr 1 --seed 4"]


# -- rates


def search(monkeypatch, out, accuracies, starts):
    """The result of a search where accuracies(flags, rate, seed) is what a run finds."""
    asked = []

    def run_all(flags_of_runs, setup, title, common):
        assert "--eval-split val" in common and "--eval-split test" not in common
        reports = []
        for run in flags_of_runs:
            flags, lr, seed = re.fullmatch(r"(.*?) ?--lr (\S+) --seed (\d)", run).groups()
            asked.append((flags, float(lr), int(seed)))
            value = accuracies(*asked[-1])
            reports.append({"method": "lora", "tuned": {"accuracy": value, "by_kind": {"scenes-fog grounding": value}}})
        return reports

    monkeypatch.setattr(runs, "run_all", run_all)
    monkeypatch.setattr(runs, "SEARCHED", starts)
    return runs.search_rates(Setup(None, out, 1, 1), [*starts]), asked


def test_a_search_goes_on_while_its_best_is_at_an_edge_and_says_so_where_it_gives_up(monkeypatch, tmp_path):
    result, asked = search(monkeypatch, tmp_path, lambda flags, lr, seed: 1 - abs(math.log2(lr / 8)) / 10, {"": 1.0})
    assert result["rates"] == {"": 8.0} and {lr for _, lr, _ in asked} == {0.5, 1, 2, 4, 8, 16}
    assert list(result["tables"][0][1]) == ["`--heads 12`"] and len(asked) == 6  # and every run is asked for once

    (tmp_path / "rates.json").write_text(json.dumps(result))  # which the next search adds to
    result, asked = search(monkeypatch, tmp_path, lambda flags, lr, seed: lr / 1000, {"--x": 1.0})
    assert list(result["tables"][0][1]) == ["`--heads 12`", "`--x` (edge)"] and len({lr for _, lr, _ in asked}) == runs.LONGEST
    assert list(result["rates"]) == list(result["tried"]) == ["", "--x"]


def test_two_rates_within_a_point_are_run_with_two_more_seeds(monkeypatch, tmp_path):
    values = {0.5: (0.5,), 1: (0.805, 0.7, 0.7), 2: (0.8, 0.8, 0.8), 4: (0.5,)}
    result, asked = search(monkeypatch, tmp_path, lambda flags, lr, seed: values[lr][seed], {"": 1.0})
    assert result["rates"] == {"": 2.0} and len(asked) == 4 + 4
    assert result["tried"] == {"": {lr: list(of_seeds) for lr, of_seeds in values.items()}}


def test_a_suite_without_its_rates_is_refused(tmp_path):
    with pytest.raises(InputError, match="search the rates"):  # those of the project are for its own model
        runs.read_rates(Setup(None, tmp_path, 1, 1, "--model other"))
    (tmp_path / "rates.json").write_text(json.dumps({"rates": RATES}))
    assert runs.read_rates(Setup(None, tmp_path, 1, 1, "--model other")) == RATES
    with pytest.raises(InputError, match="no learning rate for '--method lora'"):
        runs.of_seed("--method lora --eval-limit 3", 0, {"": 0.01})


# -- runs


def test_a_suite_runs_writes_its_tables_shares_its_runs_and_is_resumed(flags, tmp_path, monkeypatch):
    rows = {"base": "--method none", "LoRA": "--method lora", "Image-LoRA": "--heads 5"}
    one = suites.Suite("Does it run?", rows, [("Image-LoRA", "LoRA")])
    monkeypatch.setattr(command, "SUITES", {"one": one, "two": suites.Suite("Again?", {"it": "--heads 5"})})
    monkeypatch.setattr(command, "ANALYSES", {"one": lambda *_: {"tables": [("T", {"a": {"b": [2, 4]}})]}})
    out, two_seeds = tmp_path, ["--seeds", "0", "1", *flags]

    # It runs and writes.
    command.main(["one", *two_seeds])
    reports = {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("report.json")}
    assert len(reports) == 5  # the base model needs one seed
    result = json.loads((out / "one.json").read_text())
    (_, measured), _ = result["tables"]
    assert [len(row["boxes"]) for row in measured.values()] == [1, 2, 2]
    assert command.parse_args(shlex.split(result["command"])[3:]).more == flags[-1]  # after python -m experiments
    text = (out / "one.md").read_text()
    assert text == markdown(result) and "- Image-LoRA, against LoRA, boxes: +0.0 points." in text
    assert "| a | 3.00 ± 1.41 |" in text

    # Killed before its report, whose state exists; and a second suite that needs no run of its own.
    killed = next(file for file in reports if "heads-5" in str(file))
    killed.unlink()
    command.main(["one", "two", *two_seeds])
    assert set((out / "runs").rglob("report.json")) == set(reports)
    assert all(file.stat().st_mtime_ns == time for file, time in reports.items() if file != killed)
    again = json.loads((out / "one.json").read_text())["tables"][0][1]
    for row, columns in measured.items():
        assert again[row]["boxes"] == pytest.approx(columns["boxes"], abs=1e-9)

    # Other flags are other runs.
    command.main(["two", *two_seeds[:-1], f"{flags[-1]} --alpha 8"])
    assert len(set((out / "runs").rglob("report.json"))) == len(reports) + 2


@by_hand
def test_every_analysis_runs(flags, tmp_path, monkeypatch):
    """On two steps of training: that the tables are finite and of the right shape, not what they say."""
    monkeypatch.setattr(trained, "FEW", 2)
    monkeypatch.setattr(train.report, "draw", lambda *_: None)  # the pictures of each run
    monkeypatch.setattr(selection, "BUDGETS", (1, 2))
    monkeypatch.setattr(selection, "SKILLS", {"boxes-fog": "--data boxes-fog"})
    monkeypatch.setattr(command, "SUITES", {name: suites.SUITES[name] for name in command.ANALYSES})
    command.main(["all", "--seeds", "0", *flags[:-1], f"{flags[-1]} --heads 6"])
    for name in command.ANALYSES:
        for _, table in json.loads((tmp_path / f"{name}.json").read_text())["tables"]:
            assert table and len({tuple(row) for row in table.values()}) == 1  # the same columns in each row
            values = [v for row in table.values() for seeds in row.values() for v in seeds if v is not None]
            assert values and all(math.isfinite(v) for v in values)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_runs_that_have_begun_and_prints_one_line(tmp_path, monkeypatch, capsys, number):
    begun, popen = [], subprocess.Popen

    def sleep(_, **how):
        begun.append(popen(["sleep", "60"], **how))
        if len(begun) == 2:
            threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        return begun[-1]

    monkeypatch.setattr(runs.subprocess, "Popen", sleep)
    (tmp_path / "rates.json").write_text(json.dumps({"rates": RATES}))
    with pytest.raises(SystemExit, match=str(128 + number)):
        command.main(["main", "--jobs", "2", "--runs", str(tmp_path), "--out", str(tmp_path)])
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; the same command continues"
    assert [child.wait(10) for child in begun] == [-signal.SIGTERM] * 2


def work(lines, monkeypatch):
    """A worker, given these lists of flags; what it makes once is for it alone."""
    with monkeypatch.context() as here:
        here.setattr(sys, "stdin", io.StringIO("".join(json.dumps(line) + "\n" for line in lines)))
        here.setattr(encodings.Processor, "from_pretrained", encodings.Processor.from_pretrained)
        here.setattr(encodings, "load_examples", encodings.load_examples)
        runs.work()


def test_a_run_that_fails_is_named_with_its_last_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit), redirect_stdout(io.StringIO()) as answer:
        work([["--heads", "99", "--limit", "20", "--eval-limit", "4", "--out", str(tmp_path)]], monkeypatch)
    ended = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(answer.getvalue()))
    monkeypatch.setattr(runs, "start_worker", lambda setup: ended)
    with pytest.raises(InputError, match="heads-99-......: --heads 99: the model has"):
        runs.run_one("--heads 99", Setup(tmp_path, None, 1, 1))


def test_the_runs_of_a_worker_are_those_of_train_py(checkpoint, tmp_path, monkeypatch):
    """The second run trains the encoder: it drops what the frozen one gave, and the third encodes anew."""
    common = f"--model {checkpoint} --data scenes --steps 2 --limit 20 --eval-limit 4 --probe-samples 2 --heads 6 --seed"
    flags = [f"{common} 0", f"{common} 0 --method lora --targets encoder", f"{common} 1 --no-base"]
    lines = [[*line.split(), "--out", str(tmp_path / f"worker{i}")] for i, line in enumerate(flags)]
    work(lines, monkeypatch)
    for i, line in enumerate(lines):
        train.main([*line[:-1], str(tmp_path / f"alone{i}")])
        for name in ("adapter.safetensors", "predictions.jsonl"):
            assert (tmp_path / f"worker{i}" / name).read_bytes() == (tmp_path / f"alone{i}" / name).read_bytes()


# -- the page


def test_the_page_is_what_the_command_would_write():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, RESULTS) == page
    assert len(re.findall("^<!-- table:", page, re.MULTILINE)) == len(tables.MARKED.findall(page))
    for name in suites.SUITES:
        assert f"<!-- table: {name} -->" in page, name

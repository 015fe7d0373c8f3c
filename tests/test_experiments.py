"""Suites: rows, rates, runs, resuming, and the page that is filled from the results."""

import json
import math
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import by_hand

import train
from experiments import __main__ as command
from experiments import runs, selection, suites, tables, trained
from experiments.runs import Setup
from experiments.tables import PAGE, RESULTS, filled, markdown
from harness.arguments import evaluation_sets
from parts.files import InputError

RATES = dict.fromkeys(suites.SEARCHED, 1e-2)


@pytest.fixture
def quick(monkeypatch):
    """Runs in this process, which has everything loaded, one at a time."""

    def run(command, **kwargs):
        train.main(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=run))
    return ["--jobs", "1"]


@pytest.fixture
def out(tmp_path):
    """A folder for results, with learning rates."""
    (tmp_path / "rates.json").write_text(json.dumps({"rates": RATES}))
    return tmp_path


# -- rows


def test_every_row_is_a_command_that_train_understands():
    for suite in suites.SUITES.values():
        for flags in suite.rows.values():
            args = train.arguments(f"{suites.COMMON} {flags}".split())
            assert args.heads <= suites.ALL and evaluation_sets(args)
    for flags in [*suites.SKILLS.values(), *suites.SEARCHED]:
        train.arguments(f"{suites.COMMON} {flags}".split())


@pytest.mark.parametrize("name", suites.SUITES)
def test_rows_that_are_compared_exist_and_answer_the_same_questions(name):
    suite = suites.SUITES[name]
    for row, against, *column in suite.comparisons:
        sets = [evaluation_sets(train.arguments(f"{suites.COMMON} {suite.rows[r]}".split())) for r in (row, against)]
        assert sets[0] == sets[1] and set(column) <= set(tables.QUESTIONS)


def test_a_row_takes_the_rate_of_the_longest_searched_flags_or_its_own():
    rates = {"": 1, "--heads 3": 2, "--method lora": 3, "--method lora --targets v": 4, "--rank 1 --alpha 2": 5}

    def rate(flags):
        return float(re.search(r"--lr (\S+)", runs.of_seed(flags, 0, rates))[1])

    rows = ["", "--heads 6", "--heads 3 --selection random", "--method lora", "--method lora --targets v --data boxes-fog"]
    assert [rate(flags) for flags in rows] == [1, 1, 2, 3, 4]
    assert rate("--method lora --lr 0.5") == 0.5


def test_a_row_runs_once_for_each_seed_and_the_base_model_once_without_a_rate(monkeypatch):
    monkeypatch.setattr(runs, "run_all", lambda flags_of_runs, setup, title: flags_of_runs)
    setup = Setup(None, None, 1, 1, seeds=(3, 4), rates={"": 0.01})
    assert runs.run_rows({"base": "--method none", "5 heads": "--heads 5"}, setup, "") == {
        "base": ["--method none --base"],
        "5 heads": [f"--heads 5 --lr 0.01 --seed {seed} --probe-seed {seed}" for seed in (3, 4)],
    }


def test_other_heads_are_another_run_and_the_same_heads_the_same(tmp_path):
    setup = Setup(tmp_path / "runs", None, 1, 1)
    first, second, third = (runs.selection_flag(heads, setup) for heads in ({0: [1], 2: [0]}, {0: [1]}, {2: [0], 0: [1]}))
    assert first == third != second and first.startswith("--heads 2 ")
    assert json.loads(Path(first.split()[-1]).read_text())["heads"] == {"2": [0], "0": [1]}


# -- rates


def search(monkeypatch, accuracies, starts):
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
    return runs.search_rates(None), asked


def test_a_search_goes_on_while_its_best_is_at_an_edge(monkeypatch):
    result, asked = search(monkeypatch, lambda flags, lr, seed: 1 - abs(math.log2(lr / 8)) / 10, {"": 1.0})
    assert result["rates"] == {"": 8.0} and {lr for _, lr, _ in asked} == {0.5, 1, 2, 4, 8, 16}
    assert list(result["tables"][0][1]) == ["``"] and len(asked) == 6  # and every run is asked for once


def test_a_best_rate_that_is_still_at_the_edge_is_printed_so(monkeypatch):
    result, asked = search(monkeypatch, lambda flags, lr, seed: lr / 1000, {"--x": 1.0})
    assert list(result["tables"][0][1]) == ["`--x` (edge)"] and len({lr for _, lr, _ in asked}) == runs.LONGEST


def test_two_rates_within_a_point_are_run_with_two_more_seeds(monkeypatch):
    values = {0.5: (0.5,), 1: (0.805, 0.7, 0.7), 2: (0.8, 0.8, 0.8), 4: (0.5,)}
    result, asked = search(monkeypatch, lambda flags, lr, seed: values[lr][seed], {"": 1.0})
    assert result["rates"] == {"": 2.0} and len(asked) == 4 + 4
    assert result["tried"] == {"": {lr: list(of_seeds) for lr, of_seeds in values.items()}}


def test_a_suite_without_its_rates_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "project")
    setup = Setup(None, tmp_path / "own", 1, 1)
    with pytest.raises(InputError, match="search the rates"):
        runs.read_rates(setup)
    for folder, lr in (("project", 1), ("own", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rates.json").write_text(json.dumps({"rates": RATES | {"": lr}}))
    assert runs.read_rates(setup)[""] == 2
    assert runs.read_rates(replace(setup, out=tmp_path / "new"))[""] == 1
    (tmp_path / "own/rates.json").write_text('{"rates": {"": 0.01}}')
    with pytest.raises(InputError, match="no rate for"):
        runs.read_rates(setup)


# -- runs


def test_the_runs_at_a_time_share_the_cores(tmp_path, monkeypatch):
    threads = []

    def fail(command, env, **kwargs):
        threads.append(env["OMP_NUM_THREADS"])
        return subprocess.CompletedProcess(command, 2, stderr="")

    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=fail))
    for jobs, cores in ((1, 8), (3, 8), (4, 2)):
        with pytest.raises(InputError, match="no message"):
            runs.run_one("", Setup(tmp_path, None, jobs, cores))
    assert threads == ["8", "2", "1"]


MORE = "--steps 2 --limit 40 --eval-limit 10 --probe-samples 2 --max-new-tokens 4"


def test_a_suite_runs_writes_its_tables_shares_its_runs_and_is_resumed(checkpoint, out, quick, monkeypatch):
    rows = {"base": "--method none", "LoRA": "--method lora", "Image-LoRA": "--heads 5"}
    one = suites.Suite("Does it run?", rows, [("Image-LoRA", "LoRA")])
    monkeypatch.setattr(command, "SUITES", {"one": one, "two": suites.Suite("Again?", {"it": "--heads 5"})})
    monkeypatch.setattr(command, "ANALYSES", {"one": lambda *_: {"tables": [("T", {"a": {"b": [2, 4]}})]}})
    more = f"--model {checkpoint} {MORE}"
    flags = ["--seeds", "0", "1", "--runs", str(out / "runs"), "--out", str(out), *quick, "--more", more]

    # It runs and writes.
    command.main(["one", *flags])
    reports = {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("report.json")}
    assert len(reports) == 5  # the base model needs one seed
    result = json.loads((out / "one.json").read_text())
    (_, measured), (title, analysed) = result["tables"]
    assert [len(row["boxes"]) for row in measured.values()] == [1, 2, 2]
    assert (title, analysed) == ("T", {"a": {"b": [2, 4]}})
    assert command.parse_args(shlex.split(result["command"])[3:]).more == more  # after python -m experiments
    text = (out / "one.md").read_text()
    assert text == markdown(result) and "- Image-LoRA, against LoRA, boxes: +0.0 points." in text
    assert "| a | 3.00 ± 1.41 |" in text and (out / "one.png").stat().st_size > 0

    # Killed before its report, whose state exists; and a second suite that needs no run of its own.
    killed = next(file for file in reports if "heads-5" in str(file))
    killed.unlink()
    command.main(["one", "two", *flags])
    assert set((out / "runs").rglob("report.json")) == set(reports)
    assert all(file.stat().st_mtime_ns == time for file, time in reports.items() if file != killed)
    again = json.loads((out / "one.json").read_text())["tables"][0][1]
    for row, columns in measured.items():
        assert again[row]["boxes"] == pytest.approx(columns["boxes"], abs=1e-9)

    # Other flags are other runs.
    command.main(["two", *flags[:-1], f"{more} --alpha 8"])
    assert len(set((out / "runs").rglob("report.json"))) == len(reports) + 2


@by_hand
def test_every_analysis_runs(checkpoint, out, quick, monkeypatch):
    """On two steps of training: that the tables are finite and of the right shape, not what they say."""
    monkeypatch.setattr(trained, "FEW", 2)
    monkeypatch.setattr(train.report, "draw", lambda *_: None)  # the pictures of each run
    monkeypatch.setattr(selection, "BUDGETS", (1, 2))
    monkeypatch.setattr(selection, "SKILLS", {"boxes-fog": "--data boxes-fog"})
    monkeypatch.setattr(command, "SUITES", {name: suites.SUITES[name] for name in command.ANALYSES})
    more = f"--model {checkpoint} --heads 6 {MORE}"
    command.main(["all", "--seeds", "0", "--runs", str(out / "runs"), "--out", str(out), *quick, "--more", more])
    for name in command.ANALYSES:
        for _, table in json.loads((out / f"{name}.json").read_text())["tables"]:
            assert table and len({tuple(row) for row in table.values()}) == 1  # the same columns in each row
            values = [v for row in table.values() for seeds in row.values() for v in seeds if v is not None]
            assert values and all(math.isfinite(v) for v in values)


@by_hand
def test_a_run_that_fails_and_ctrl_c_are_one_line(checkpoint, out, monkeypatch, capsys):
    monkeypatch.setattr(command, "SUITES", {"main": suites.Suite("?", {"row": "--heads 99"})})
    flags = ["main", "--seeds", "0", "--runs", str(out), "--out", str(out), "--more", f"--model {checkpoint} {MORE}"]
    with pytest.raises(SystemExit, match="2"):
        command.main(flags)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "--heads 99: the model has 6 value heads" in last
    monkeypatch.setattr(command, "run_suite", lambda *_: signal_from_the_keyboard())
    with pytest.raises(SystemExit, match="130"):
        command.main(flags)
    assert capsys.readouterr().err == "stopped; the same command continues\n"


def signal_from_the_keyboard():
    raise KeyboardInterrupt


# -- the page


def test_the_page_is_what_the_command_would_write():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, RESULTS) == page
    assert len(re.findall("^<!-- table:", page, re.MULTILINE)) == len(tables.MARKED.findall(page))
    for name in suites.SUITES:
        assert f"<!-- table: {name} -->" in page, name
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (PAGE.parent / link).exists(), link


def test_results_of_the_project_go_into_its_page_and_others_beside_their_numbers(tmp_path, monkeypatch):
    page, results, elsewhere = tmp_path / "page.md", tmp_path / "results", tmp_path / "elsewhere"
    page.write_text("before\n<!-- table: one -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(tables, "RESULTS", results)
    monkeypatch.setattr(tables, "PAGE", page)
    result = {"question": "?", "tables": [("", {"a": {"b": [1]}})], "sentences": [], "comparisons": []}
    result |= {"command": "c", "minutes": 1, "cores": 2}
    tables.write_result("one", result, results)
    tables.write_result("one", result | {"question": "another"}, elsewhere)
    text = page.read_text()
    assert "| a | 1.00 |" in text and "old" not in text and "another" not in text
    assert text.startswith("before\n") and text.endswith("after\n") and filled(text, results) == text
    assert "another" in (elsewhere / "one.md").read_text()

"""Suites: runs, resuming, analyses, and the page that is filled from the results."""

import json
import math
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, by_hand

import train
from experiments import __main__ as command
from experiments import analyses, heads, runs, suites, tables
from experiments.runs import Launcher, flag_set, rate
from experiments.tables import PAGE, RESULTS, filled, markdown, places
from harness.arguments import evaluation_sets
from parts.files import InputError

# Runs


@pytest.fixture
def quick(monkeypatch):
    """Runs in this process, which has everything loaded, one at a time."""

    def here(command, **kwargs):
        train.main(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=here))
    return ["--jobs", "1"]


@pytest.fixture
def out(tmp_path):
    """A folder for results where every row finds a learning rate of 0.01."""
    rates = dict.fromkeys(suites.SEARCHED, 1e-2)
    (tmp_path / runs.RATES).write_text(json.dumps({"rates": rates}))
    return tmp_path


def test_a_row_takes_the_rate_of_the_nearest_searched_flags():
    rates = {searched: i for i, searched in enumerate(suites.SEARCHED)}
    assert rate("", rates) == rate("--heads 5 --shared none", rates) == rates[""]
    assert rate("--heads 5 --no-norm", rates) == rates["--no-norm"]
    assert rate("--method lora", rates) == rates["--method lora"]
    assert rate("--method lora --targets v", rates) == rates["--method lora --targets v"]
    assert rate("--rank 16 --alpha 32", rates) == rates["--rank 16 --alpha 32"]
    assert flag_set("--rank 8 --no-norm") == {("--rank", "8"), ("--no-norm",)}


def test_a_row_runs_once_for_each_seed_and_the_base_model_once_without_a_rate(monkeypatch):
    rates = dict.fromkeys(suites.SEARCHED, 0.01)
    monkeypatch.setattr(runs, "run_all", lambda flags_of_runs, launcher, title: flags_of_runs)
    rows = {"base": "--method none", "5 heads": "--heads 5"}
    assert runs.run_rows(rows, [3, 4], rates, launcher=None, title="") == {
        "base": ["--method none --base"],
        "5 heads": [f"--heads 5 --lr 0.01 --seed {seed} --probe-seed {seed}" for seed in (3, 4)],
    }


def test_a_run_with_other_heads_is_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "run_all", lambda flags_of_runs, launcher, title: flags_of_runs)
    rates, launcher = dict.fromkeys(suites.SEARCHED, 0.01), Launcher(tmp_path / "runs", 1, 1)

    def flags(*selections):
        return runs.run_selections("chosen", selections, [0, 0], rates, launcher)

    first, second = flags({0: [1], 2: [0]}, {0: [1]})
    assert first != second and [first] == flags({0: [1], 2: [0]})
    file = Path(first.split()[1])
    assert first == f"--selection {file} --lr 0.01 --seed 0 --probe-seed 0"
    assert json.loads(file.read_text()) == {"heads": {"0": [1], "2": [0]}, "scores": None}


def test_the_runs_at_a_time_share_the_cores(tmp_path, monkeypatch):
    threads = []

    def fail(command, env, **kwargs):
        threads.append(env["OMP_NUM_THREADS"])
        return subprocess.CompletedProcess(command, 1, stderr="")

    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=fail))
    for jobs, cores in ((1, 8), (3, 8), (4, 2)):
        with pytest.raises(InputError, match="no message"):
            runs.run_one("", Launcher(tmp_path, jobs, cores))
    assert threads == ["8", "2", "1"]


def test_a_suite_runs_writes_its_tables_shares_its_runs_and_is_resumed(checkpoint, out, quick, monkeypatch, capsys):
    rows = {"base": "--method none", "LoRA q,k,v,o": "--method lora", "Image-LoRA": "--heads 5"}
    monkeypatch.setattr(command, "SUITES", {"one": ("Does it run?", rows), "two": ("Again?", {"it": "--heads 5"})})
    said = ([("T", {"a": {"b": [2, 4]}})], ["so"])
    monkeypatch.setattr(command, "ANALYSES", {"one": lambda *_: said})
    more = f"--model {checkpoint} --steps 2 --limit 40 --eval-limit 10 --probe-samples 2 --max-new-tokens 4"
    flags = ["--seeds", "0", "1", "--runs", str(out / "runs"), "--out", str(out), *quick, "--more", more]

    # It runs and writes.
    command.main(["one", *flags])
    reports = {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("report.json")}
    assert len(reports) == 5  # the base model needs one seed
    result = json.loads((out / "one.json").read_text())
    (_, measured), (title, analysed) = result["tables"]
    assert [len(row["boxes"]) for row in measured.values()] == [1, 2, 2]
    again = command.parse_args(shlex.split(result["command"])[3:])  # after python -m experiments
    assert (again.suites, again.seeds, again.more) == (["one"], [0, 1], more)
    assert result["common"] == suites.COMMON and result["flags"] == rows
    assert (title, analysed) == ("T", {"a": {"b": [2, 4]}})
    text = (out / "one.md").read_text()
    assert text == markdown(result)
    assert "| Image-LoRA |" in text and "| a | 3.00 ± 1.41 |" in text and "- so" in text
    assert (out / "one.png").stat().st_size > 0

    # Killed before its report, whose state is there; and a second suite that needs no run of its own.
    killed = next(file for file in reports if "heads-5" in str(file))
    killed.unlink()
    command.main(["one", "two", *flags])
    assert set((out / "runs").rglob("report.json")) == set(reports)
    assert all(file.stat().st_mtime_ns == time for file, time in reports.items() if file != killed)
    again = json.loads((out / "one.json").read_text())["tables"][0][1]
    for name, row in measured.items():
        assert again[name]["boxes"] == pytest.approx(row["boxes"], abs=1e-9)

    # Other flags are other runs.
    command.main(["two", *flags[:-1], f"{more} --alpha 8"])
    assert len(set((out / "runs").rglob("report.json"))) == len(reports) + 2
    capsys.readouterr()


def test_the_search_keeps_the_best_rate_of_each_method(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "SEARCHED", {"": (0.01, 0.02), "--method lora": (0.001,)})
    found = iter([0.5, 0.75, 0.25])

    def run_all(flags_of_runs, launcher, title, common):
        return [{"method": "lora", "tuned": {"accuracy": next(found), "by_kind": {}}} for _ in flags_of_runs]

    monkeypatch.setattr(runs, "run_all", run_all)
    command.main(["rates", "--out", str(tmp_path / "new")])
    result = json.loads((tmp_path / "new" / runs.RATES).read_text())
    assert result["rates"] == {"": 0.02, "--method lora": 0.001}
    assert "--eval-split val" in result["flags"]
    capsys.readouterr()


def test_every_suite_has_its_seeds_if_none_are_given(out, monkeypatch):
    called = []
    monkeypatch.setattr(command, "run_suite", lambda suite, seeds, *_: called.append((suite, seeds)))
    command.main(["main", "drift", "--out", str(out)])
    command.main(["main", "--seeds", "7", "--out", str(out)])
    assert called == [("main", [0, 1, 2, 3, 4]), ("drift", [0, 1, 2]), ("main", [7])]


def test_trying_a_suite_leaves_the_published_results_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = []
    monkeypatch.setattr(command, "run_suite", lambda suite, seeds, rates, out, launcher: written.append(out))
    monkeypatch.setattr(command, "rates_for", lambda out, more: {})
    for flags in ([], ["--publish"], ["--out", "elsewhere"]):
        command.main(["main", *flags])
    assert written == [command.TRIED, RESULTS, Path("elsewhere")] and not command.is_published(command.TRIED)


@pytest.mark.parametrize("flags", ["", "--publish", "--out elsewhere", "--more=--steps 3"])
def test_the_recorded_command_makes_the_same_result_again(flags):
    args = command.parse_args(["main", "--seeds", "0", *shlex.split(f"'{flags}'" if "more" in flags else flags)])
    recorded = command.command_of("main", args.seeds, args.out, args.more)
    assert command.parse_args(shlex.split(recorded)[3:]) == args


def test_learning_rates_are_never_searched_unasked(tmp_path, monkeypatch):
    project, own, new = (tmp_path / name for name in ("project", "own", "new"))
    monkeypatch.setattr(command, "RESULTS", project)
    for folder, lr in ((project, 1), (own, 2)):
        folder.mkdir()
        (folder / runs.RATES).write_text(json.dumps({"rates": {"": lr}}))
    assert command.rates_for(own, "--model other") == {"": 2}  # its own
    assert command.rates_for(new, "--steps 3") == {"": 1}  # the project's: the same model
    with pytest.raises(InputError, match="search the learning rates first"):
        command.rates_for(new, "--model other")


@by_hand
def test_every_analysis_runs(checkpoint, out, quick, monkeypatch, capsys):
    """On two steps of training: that the tables are there, finite and of the right shape, not what they say."""
    monkeypatch.setattr(heads, "FEW", 2)
    monkeypatch.setattr(train.report, "draw", lambda *_: None)  # the pictures of each run
    monkeypatch.setattr(analyses, "SWITCHES", {"no 1/sqrt(n)": ""})
    rows = {  # enough for the analyses
        "ablation": ("as in the paper", "no 1/sqrt(n)"),
        "ratio": ("as it is, LoRA", "as it is, Image-LoRA"),
        "criteria": ("rank1", "random", "gate"),
    }
    few = {}
    for name in ("ablation", "ratio", "criteria", "faithful", "stability", "drift", "attention"):
        question, flags = suites.SUITES[name]
        few[name] = (question, {row: flags[row] for row in rows.get(name, flags)})
    monkeypatch.setattr(command, "SUITES", few)
    more = f"--model {checkpoint} --heads 6 --steps 2 --limit 10 --eval-limit 6 --probe-samples 2 --max-new-tokens 4"
    more += " --eval scenes-fog"
    flags = ["--seeds", "0", "--runs", str(out / "runs"), "--out", str(out), *quick, "--more", f"{more} --save-every 1"]
    command.main(["all", *flags])

    found = {}
    for name in few:
        found[name] = json.loads((out / f"{name}.json").read_text())["tables"]
        for _, table in found[name][1:]:
            assert table and len({tuple(row) for row in table.values()}) == 1  # the same columns in each row
            values = [v for row in table.values() for found in row.values() for v in found if v is not None]
            assert values and all(math.isfinite(v) for v in values)
    ratio = found["ratio"][1][1]["as it is"]
    assert 0 < ratio["FLOPs over LoRA's"][0] < ratio["visual share"][0] < 1
    assert list(found["ablation"][2][1]) == ["layer 0, n = 1", "layer 1, n = 1", "layer 2, n = 2"]
    states = [f"{method}, after {step} steps" for method in ("LoRA", "Image-LoRA") for step in (1, 2)]
    assert list(found["attention"][2][1]) == ["base", *states]
    end, last = found["attention"][1][1]["LoRA"], found["attention"][2][1]["LoRA, after 2 steps"]
    assert end["mean over heads"] == pytest.approx(last["mean over heads"], abs=1e-6)
    assert [len(table) for _, table in found["faithful"]] == [4, 4, 2, 1]
    for name in ("oracle", "probed-day", "probed-negative", "uneven"):
        (file,) = (out / "runs").glob(f"{name}-??????.json")
        assert sum(map(len, json.loads(file.read_text())["heads"].values())) == (4 if name == "uneven" else 2)
    assert (out / "attention-maps.png").stat().st_size > 0
    capsys.readouterr()


@by_hand
def test_a_run_that_fails_is_one_line(checkpoint, out, monkeypatch, capsys):
    monkeypatch.setitem(suites.SUITES, "main", ("?", {"row": "--heads 99"}))
    more = f"--model {checkpoint} --limit 40 --eval-limit 6"
    with pytest.raises(SystemExit) as stop:
        command.main(["main", "--seeds", "0", "--runs", str(out), "--out", str(out), "--more", more])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "--heads 99: the model has 6 value heads" in said and "Traceback" not in said
    assert not (out / "main.json").exists()


def test_every_row_is_a_command_that_train_understands():
    for _, rows in suites.SUITES.values():
        for flags in rows.values():
            args = train.arguments(f"{suites.COMMON} {flags}".split())
            assert args.heads <= suites.ALL and evaluation_sets(args)


def test_all_rows_of_main_are_evaluated_on_the_same_questions():
    _, rows = suites.SUITES["main"]
    for flags in rows.values():
        sets = evaluation_sets(train.arguments(f"{suites.COMMON} {flags}".split()))
        assert [(name, split) for name, _, split, _ in sets] == [
            ("scenes-fog", "test"),
            ("scenes-day", "test"),
            ("sums", "test"),
        ]


# The page


@pytest.mark.parametrize("suite", suites.SUITES)
def test_the_page_holds_the_table_of_every_suite(suite):
    page = PAGE.read_text(encoding="utf-8")
    assert suite in places(page)
    if not (RESULTS / f"{suite}.json").exists():
        assert f"Not measured yet: `python -m experiments {suite} --publish`." in page
        return
    result = json.loads((RESULTS / f"{suite}.json").read_text())
    assert result["question"] == suites.SUITES[suite][0] and markdown(result) in page


def test_the_page_is_what_the_command_would_write():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, RESULTS) == page


def test_the_pages_links_and_pictures_are_there():
    page = PAGE.read_text(encoding="utf-8")
    sections = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    for link in re.findall(r"\]\(([^)]+)\)", page):
        there = link[1:] in sections if link.startswith("#") else (PAGE.parent / link).exists()
        assert there, link
    for file in RESULTS.glob("*.json"):
        if file.stem in suites.SUITES:
            assert f"(results/{file.stem}.png)" in page and f"(results/{file.name})" in page


def small_result(value):
    result = {"question": "?", "tables": [("", {"a": {"b": [value]}})], "sentences": [], "command": "c"}
    return result | {"minutes": 1, "cores": 2}


def test_a_mark_without_its_end_is_an_error(tmp_path):
    for suite in ("one", "two"):
        (tmp_path / f"{suite}.json").write_text(json.dumps(small_result(1)))
    good = "<!-- table: one -->\nold\n<!-- end -->\nbetween\n<!-- table: two -->\n<!-- end -->\nlast\n"
    new = filled(good, tmp_path)
    assert "old" not in new and new.count("| a | 1.00 |") == 2 and "between" in new and new.endswith("last\n")
    assert filled(new, tmp_path) == new
    for page in (good.replace("<!-- end -->", "", 1), good[: good.rindex("<!-- end")]):
        with pytest.raises(InputError, match="has no <!-- end -->"):
            filled(page, tmp_path)
    unmeasured = filled("<!-- table: three -->\n<!-- end -->\n", tmp_path)
    assert "Not measured yet: `python -m experiments three --publish`." in unmeasured


def test_a_suite_of_the_project_goes_into_the_page_and_docs_fills_it(tmp_path, monkeypatch):
    page, results, elsewhere = tmp_path / "page.md", tmp_path / "results", tmp_path / "elsewhere"
    page.write_text("<!-- table: one -->\n<!-- end -->\n")
    for folder in (results, elsewhere):
        folder.mkdir()
    for module in (tables, command):
        monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(tables, "PAGE", page)

    tables.write_suite("one", small_result(1), results)
    assert "| a | 1.00 |" in page.read_text() and not (results / "one.md").exists()
    tables.write_suite("without a place", small_result(3), results)
    tables.write_suite("one", small_result(3), elsewhere)
    assert "| a | 3.00 |" in (results / "without a place.md").read_text()
    assert "| a | 3.00 |" in (elsewhere / "one.md").read_text() and "3.00" not in page.read_text()

    (results / "one.json").write_text(json.dumps(small_result(2)))
    command.main(["docs"])
    assert "| a | 2.00 |" in page.read_text()
    assert ROOT / "experiments/README.md" == PAGE

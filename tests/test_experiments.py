"""Suites: runs, resuming, statistics, tables, and the page that is filled from the results."""

import json
import math
import re
import subprocess
from types import SimpleNamespace

import pytest
from conftest import ROOT

import train
from experiments import __main__ as command
from experiments import analyses, runs, suites, tables
from experiments.comparisons import jaccard, paired, spearman, t_cdf, t_quantile
from experiments.runs import Launcher, flag_set, rate
from experiments.tables import PAGE, RESULTS, filled, markdown, places
from files import InputError

# Statistics


def test_student_t_of_known_values():
    """Tables of the t distribution: one degree of freedom is Cauchy's, many are nearly normal."""
    assert t_cdf(1, 1) == pytest.approx(0.75, abs=1e-9)
    assert t_cdf(-1, 1) == pytest.approx(0.25, abs=1e-9)
    assert t_cdf(0, 7) == pytest.approx(0.5, abs=1e-9)
    for df, quantile in ((1, 12.706205), (2, 4.302653), (4, 2.776445), (30, 2.042272), (1000, 1.962339)):
        assert t_quantile(0.975, df) == pytest.approx(quantile, abs=1e-5)


def test_the_paired_t_test_equals_scipys():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    a, b = [0.71, 0.69, 0.74, 0.66, 0.7], [0.68, 0.7, 0.69, 0.65, 0.66]
    result = stats.ttest_rel(a, b)
    ours = paired(a, b)
    assert ours["p"] == pytest.approx(result.pvalue, rel=1e-6)
    assert ours["interval"] == pytest.approx(list(result.confidence_interval(0.95)), rel=1e-6)


def test_a_paired_comparison_worked_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 3.464 with 2 degrees of freedom."""
    result = paired([2, 4, 6], [1, 2, 3])
    assert result["difference"] == pytest.approx(2, abs=1e-12)
    assert result["interval"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], abs=1e-5)
    assert result["p"] == pytest.approx(0.0741799, abs=1e-6)
    assert paired([1], [0]) == {"difference": 1, "interval": None, "p": None}


def test_rank_correlation_with_ties_and_overlap_of_selections():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(0.8, abs=1e-12)
    by_hand = 3 / 10**0.5  # the ranks are 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(by_hand, abs=1e-12)
    assert spearman([1, 1], [1, 2]) is None
    assert jaccard({0: [1, 2], 3: [0]}, {0: [2], 1: [0]}) == pytest.approx(1 / 4, abs=1e-12)


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
    assert rate("", rates) == rate("--heads 5 --no-norm", rates) == rates[""]
    assert rate("--method lora", rates) == rates["--method lora"]
    assert rate("--method lora --targets v", rates) == rates["--method lora --targets v"]
    assert rate("--rank 16 --alpha 32", rates) == rates["--rank 16"]
    assert flag_set("--rank 8 --no-norm") == {("--rank", "8"), ("--no-norm",)}


def test_a_row_runs_once_for_each_seed_and_the_base_model_once_without_a_rate(monkeypatch):
    rates = dict.fromkeys(suites.SEARCHED, 0.01)
    monkeypatch.setattr(runs, "run_all", lambda flags_of_runs, launcher, title: flags_of_runs)
    rows = {"base": "--method none", "5 heads": "--heads 5"}
    assert runs.run_rows(rows, [3, 4], rates, launcher=None, title="") == {
        "base": ["--method none --base --seed 3 --probe-seed 3"],
        "5 heads": [f"--heads 5 --lr 0.01 --seed {seed} --probe-seed {seed}" for seed in (3, 4)],
    }


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


def test_a_suite_runs_writes_its_tables_shares_its_runs_and_is_resumed(out, quick, monkeypatch, capsys):
    rows = {"base": "--method none", "LoRA q,k,v,o": "--method lora", "Image-LoRA": "--heads 5"}
    monkeypatch.setattr(command, "SUITES", {"one": ("Does it run?", rows), "two": ("Again?", {"it": "--heads 5"})})
    said = ([("T", {"a": {"b": [2, 4]}})], ["so"])
    monkeypatch.setattr(command, "ANALYSES", {"one": lambda *_: said})
    more = "--steps 2 --limit 40 --eval-limit 10 --probe-samples 2 --max-new-tokens 4"
    flags = ["--seeds", "0", "1", "--runs", str(out / "runs"), "--out", str(out), *quick, "--more", more]

    # It runs and writes.
    command.main(["one", *flags])
    reports = {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("report.json")}
    assert len(reports) == 5  # the base model needs one seed
    result = json.loads((out / "one.json").read_text())
    (_, measured), (title, analysed) = result["tables"]
    assert [len(row["new look"]) for row in measured.values()] == [1, 2, 2]
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
        assert again[name]["new look"] == pytest.approx(row["new look"], abs=1e-9)

    # Other flags are other runs.
    command.main(["two", *flags[:-1], f"{more} --alpha 8"])
    assert len(set((out / "runs").rglob("report.json"))) == len(reports) + 2
    capsys.readouterr()


def test_the_search_keeps_the_best_rate_of_each_method(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "SEARCHED", {"": (0.01, 0.02), "--method lora": (0.001,)})
    accuracies = iter([0.5, 0.75, 0.25])

    def run_all(flags_of_runs, launcher, title, common):
        return [{"tuned": {"accuracy": next(accuracies)}} for _ in flags_of_runs]

    monkeypatch.setattr(runs, "run_all", run_all)
    command.main(["rates", "--out", str(tmp_path / "new")])
    found = json.loads((tmp_path / "new" / runs.RATES).read_text())
    assert found["rates"] == {"": 0.02, "--method lora": 0.001}
    assert "--eval-split val" in found["flags"]
    capsys.readouterr()


def test_every_analysis_runs(out, quick, monkeypatch, capsys):
    """On two steps of training: that the tables are there, finite and of the right shape, not what they say."""
    monkeypatch.setattr(analyses, "FEW", 2)
    names = ("ratio", "criteria", "faithful", "drift", "attention")
    few = {name: suites.SUITES[name] for name in names}
    question, rows = few["ratio"]
    few["ratio"] = (question, {name: flags for name, flags in rows.items() if "as it is" in name})
    monkeypatch.setattr(command, "SUITES", few)
    more = "--steps 2 --limit 40 --eval-limit 6 --probe-samples 2 --max-new-tokens 4 --save-every 1"
    flags = ["--seeds", "0", "--runs", str(out / "runs"), "--out", str(out), *quick, "--more", more]
    command.main(["all", *flags])

    for name in names:
        for _, table in json.loads((out / f"{name}.json").read_text())["tables"][1:]:
            assert table and len({tuple(row) for row in table.values()}) == 1  # the same columns in each row
            values = [v for row in table.values() for found in row.values() for v in found if v is not None]
            assert all(math.isfinite(v) for v in values)
    ratio = json.loads((out / "ratio.json").read_text())["tables"][1][1]["as it is"]
    assert 0 < ratio["FLOPs over LoRA's"][0] < ratio["visual share"][0] < 1
    assert (out / "attention-maps.png").stat().st_size > 0
    capsys.readouterr()


def test_a_run_that_fails_is_one_line(out, monkeypatch, capsys):
    monkeypatch.setitem(suites.SUITES, "main", ("?", {"row": "--heads 99"}))
    with pytest.raises(SystemExit) as stop:
        command.main(["main", "--seeds", "0", "--runs", str(out), "--out", str(out), "--more", "--limit 40"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "--heads 99: the model has 20 value heads" in said and "Traceback" not in said
    assert not (out / "main.json").exists()


def test_every_row_is_a_command_that_train_understands():
    for _, rows in suites.SUITES.values():
        for flags in rows.values():
            train.arguments(f"{suites.COMMON} {flags}".split())


# The page


@pytest.mark.parametrize("suite", suites.SUITES)
def test_the_page_holds_the_table_of_every_suite(suite):
    result = json.loads((RESULTS / f"{suite}.json").read_text())
    assert result["question"] == suites.SUITES[suite][0]
    assert suite in places(PAGE.read_text(encoding="utf-8"))
    assert markdown(result) in PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_command_would_write():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, RESULTS) == page


def test_the_pages_links_and_pictures_are_there():
    page = PAGE.read_text(encoding="utf-8")
    sections = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    for link in re.findall(r"\]\(([^)]+)\)", page):
        there = link[1:] in sections if link.startswith("#") else (PAGE.parent / link).exists()
        assert there, link
    for suite in suites.SUITES:
        assert f"(../results/{suite}.png)" in page and f"(../results/{suite}.json)" in page


@pytest.mark.parametrize(
    "suite, compare",
    [
        ("main", analyses.compare_with_lora),
        ("bottleneck", analyses.compare_with_lora),
        ("looks", analyses.compare_look_by_look),
    ],
)
def test_the_comparisons_of_the_results_follow_from_their_accuracies(suite, compare):
    result = json.loads((RESULTS / f"{suite}.json").read_text())
    (_, rows), *_ = result["tables"]
    reports = {}
    for name, row in rows.items():
        reports[name] = [{"method": "", "tuned": {"accuracy": accuracy}} for accuracy in row["new look"]]
    assert compare(reports) == result["sentences"]


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
    with pytest.raises(InputError, match=r"three.json: no such file"):
        filled("<!-- table: three -->\n<!-- end -->\n", tmp_path)


def test_a_suite_of_the_project_goes_into_the_page_and_docs_fills_it(tmp_path, monkeypatch, capsys):
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
    command.main(["docs", "--out", str(results)])
    assert "| a | 2.00 |" in page.read_text()
    with pytest.raises(SystemExit) as stop:
        command.main(["docs", "--out", str(elsewhere)])
    assert stop.value.code == 2 and "leave out --out" in capsys.readouterr().err
    assert ROOT / "docs/experiments.md" == PAGE

"""Suites: runs, resuming, statistics, tables."""

import json
import math
import subprocess
from argparse import Namespace
from types import SimpleNamespace

import pytest
from conftest import ROOT

import train
from experiments import __main__ as command
from experiments import analyses, runs, suites
from experiments.comparisons import jaccard, paired, spearman, t_cdf, t_quantile
from experiments.runs import rate, words
from experiments.tables import markdown
from harness.arguments import parse_args


def test_student_t_of_known_values():
    """Tables of the t distribution: one degree of freedom is Cauchy's, many are nearly normal."""
    assert t_cdf(1, 1) == pytest.approx(0.75, abs=1e-9) and t_cdf(-1, 1) == pytest.approx(0.25, abs=1e-9)
    assert t_cdf(0, 7) == 0.5
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
    assert result["difference"] == 2
    assert result["interval"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], abs=1e-5)
    assert result["p"] == pytest.approx(0.0741799, abs=1e-6)
    assert paired([1], [0]) == {"difference": 1, "interval": None, "p": None}


def test_rank_correlation_with_ties_and_overlap_of_selections():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(0.8)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(3 / 10**0.5)  # by hand: ranks 1, 2.5, 2.5, 4
    assert spearman([1, 1], [1, 2]) is None
    assert jaccard({0: [1, 2], 3: [0]}, {0: [2], 1: [0]}) == 1 / 4


@pytest.fixture
def quick(monkeypatch):
    """Runs in this process, which has everything loaded, one at a time."""

    def here(command, **kwargs):
        train.main(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=here))
    return ["--jobs", "1"]


@pytest.fixture
def rates(tmp_path):
    """A learning rate of 0.01 for every row, where the suites look for it."""
    (tmp_path / "learning-rates.json").write_text(json.dumps({"rates": dict.fromkeys(suites.SEARCHED, 1e-2)}))
    return tmp_path


def test_a_row_takes_the_rate_of_the_nearest_searched_flags(tmp_path):
    found = {key: i for i, key in enumerate(suites.SEARCHED)}
    (tmp_path / "learning-rates.json").write_text(json.dumps({"rates": found}))
    args = Namespace(out=tmp_path)
    assert rate("", args) == rate("--heads 5 --no-norm", args) == found[""]
    assert rate("--method lora", args) == found["--method lora"]
    assert rate("--method lora --targets v", args) == found["--method lora --targets v"]
    assert rate("--rank 16 --alpha 32", args) == found["--rank 16"]
    assert rate("--method none", args) == 0
    assert words("--rank 8 --no-norm") == {("--rank", "8"), ("--no-norm",)}


def test_a_suite_runs_writes_its_tables_shares_its_runs_and_is_resumed(rates, quick, monkeypatch, capsys):
    rows = {"base": "--method none", "LoRA q,k,v,o": "--method lora", "Image-LoRA": "--heads 5"}
    monkeypatch.setattr(command, "SUITES", {"one": ("Does it run?", rows), "two": ("Again?", {"it": "--heads 5"})})
    monkeypatch.setattr(command, "ANALYSES", {"one": lambda reports, args: ([("T", {"a": {"b": [2, 4]}})], ["so"])})
    more = "--steps 2 --limit 40 --eval-limit 10 --probe-samples 2 --max-new-tokens 4"
    flags = ["--seeds", "0", "1", "--runs", str(rates / "runs"), "--out", str(rates), *quick, "--more", more]
    command.main(["one", *flags])
    reports = {file: file.stat().st_mtime_ns for file in (rates / "runs").rglob("report.json")}
    assert len(reports) == 5  # the base model needs one seed
    result = json.loads((rates / "one.json").read_text())
    (_, measured), (title, analysed) = result["tables"]
    assert [len(row["new look"]) for row in measured.values()] == [1, 2, 2]
    assert (title, analysed) == ("T", {"a": {"b": [2, 4]}})
    table = (rates / "one.md").read_text()
    assert (
        table == markdown(result) and "| Image-LoRA |" in table and "| a | 3.00 ± 1.41 |" in table and "- so" in table
    )
    assert (rates / "one.png").stat().st_size > 0

    killed = next(file for file in reports if "heads-5" in str(file))
    killed.unlink()  # as if it had been killed before its report: its state is there
    command.main(["one", "two", *flags])
    assert set((rates / "runs").rglob("report.json")) == set(reports)  # the second suite needed no run of its own
    assert all(file.stat().st_mtime_ns == time for file, time in reports.items() if file != killed)
    again = json.loads((rates / "one.json").read_text())["tables"][0][1]
    assert [row["new look"] for row in again.values()] == [row["new look"] for row in measured.values()]
    command.main(["two", *flags[:-1], f"{more} --alpha 8"])  # other flags, other runs
    assert len(set((rates / "runs").rglob("report.json"))) == len(reports) + 2
    capsys.readouterr()


def test_the_search_keeps_the_best_rate_of_each_method(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "SEARCHED", {"": (0.01, 0.02), "--method lora": (0.001,)})
    accuracies = iter([0.5, 0.75, 0.25])
    monkeypatch.setattr(
        runs,
        "run_all",
        lambda rows, args, common: [{"tuned": {"accuracy": next(accuracies)}} for _ in rows],
    )
    command.main(["rates", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "learning-rates.json").read_text())
    assert found["rates"] == {"": 0.02, "--method lora": 0.001}
    assert "--eval-split val" in found["flags"]
    capsys.readouterr()


def test_every_analysis_runs(rates, quick, monkeypatch, capsys):
    """On two steps of training: that the tables are there, finite and of the right shape, not what they say."""
    monkeypatch.setattr(analyses, "FEW", 2)
    names = ("ratio", "criteria", "faithful", "drift", "attention")
    few = {name: suites.SUITES[name] for name in names}
    short = {name: flags for name, flags in few["ratio"][1].items() if "as it is" in name}
    few["ratio"] = (few["ratio"][0], short)
    monkeypatch.setattr(command, "SUITES", few)
    more = "--steps 2 --limit 40 --eval-limit 6 --probe-samples 2 --max-new-tokens 4 --save-every 1"
    command.main(["all", *quick, "--seeds", "0", "--runs", str(rates / "runs"), "--out", str(rates), "--more", more])
    for name in names:
        for _, table in json.loads((rates / f"{name}.json").read_text())["tables"][1:]:
            assert table and len({tuple(row) for row in table.values()}) == 1
            assert all(math.isfinite(v) for row in table.values() for vs in row.values() for v in vs if v is not None)
    ratio = json.loads((rates / "ratio.json").read_text())["tables"][1][1]["as it is"]
    assert 0 < ratio["FLOPs over LoRA's"][0] < ratio["visual share"][0] < 1
    capsys.readouterr()


def test_a_run_that_fails_is_one_line(rates, monkeypatch, capsys):
    monkeypatch.setitem(suites.SUITES, "main", ("?", {"row": "--heads 99"}))
    with pytest.raises(SystemExit) as stop:
        command.main(["main", "--seeds", "0", "--runs", str(rates), "--out", str(rates), "--more", "--limit 40"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "--heads 99: the model has 20 value heads" in said and "Traceback" not in said
    assert not (rates / "main.json").exists()


@pytest.mark.parametrize("file", sorted((ROOT / "results").glob("*.md")), ids=lambda file: file.stem)
def test_the_readme_holds_the_table_of_every_suite(file):
    table = markdown(json.loads(file.with_suffix(".json").read_text()))
    assert file.read_text() == table and table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_row_is_a_command_that_train_understands():
    for _, rows in suites.SUITES.values():
        for flags in rows.values():
            parse_args(f"{suites.COMMON} {flags}".split())

"""Suites: runs, resuming, statistics, tables."""

import json

import pytest
from conftest import ROOT

import experiments
from experiments import (
    jaccard,
    markdown,
    paired,
    rate,
    spearman,
    t_cdf,
    t_quantile,
    words,
)


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


def test_a_row_takes_the_rate_of_the_nearest_searched_flags(tmp_path, monkeypatch):
    rates = {key: i for i, key in enumerate(experiments.SEARCHED)}
    monkeypatch.setattr(experiments, "RATES", tmp_path / "rates.json")
    (tmp_path / "rates.json").write_text(json.dumps({"rates": rates}))
    assert rate("") == rate("--heads 5 --no-norm") == rates[""]
    assert rate("--method lora") == rates["--method lora"]
    assert rate("--method lora --targets v") == rates["--method lora --targets v"]
    assert rate("--rank 16 --alpha 32") == rates["--rank 16"]
    assert rate("--method none") == 0
    assert words("--rank 8 --no-norm") == {("--rank", "8"), ("--no-norm",)}


def test_a_suite_runs_writes_its_table_and_is_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "RATES", tmp_path / "rates.json")
    (tmp_path / "rates.json").write_text(json.dumps({"rates": dict.fromkeys(experiments.SEARCHED, 1e-2)}))
    rows = {"base": "--method none", "LoRA q,k,v,o": "--method lora", "Image-LoRA": "--heads 5"}
    monkeypatch.setitem(experiments.SUITES, "main", ("Does it run?", rows))
    monkeypatch.setitem(experiments.ANALYSES, "main", lambda reports, args: ([("T", ["a"], [[len(reports)]])], ["so"]))
    more = "--steps 2 --limit 40 --eval-limit 10 --probe-samples 2 --max-new-tokens 4"
    command = ["main", "--seeds", "0", "1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--more", more]
    experiments.main(command)
    reports = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("report.json")}
    assert len(reports) == 5  # the base model needs one seed
    result = json.loads((tmp_path / "main.json").read_text())
    assert [len(row["values"]["new look"]) for row in result["rows"]] == [1, 2, 2]
    table = (tmp_path / "main.md").read_text()
    assert table == markdown(result) and "| Image-LoRA |" in table and "- so" in table
    assert (tmp_path / "main.png").stat().st_size > 0

    killed = next(file for file in reports if "Image-LoRA-1" in str(file))
    killed.unlink()  # as if it had been killed before its report: its state is there
    experiments.main(command)
    assert killed.exists()
    assert all(file.stat().st_mtime_ns == time for file, time in reports.items() if file != killed)
    again = json.loads((tmp_path / "main.json").read_text())
    assert [row["values"]["new look"] for row in again["rows"]] == [row["values"]["new look"] for row in result["rows"]]
    capsys.readouterr()


def test_a_run_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "RATES", tmp_path / "rates.json")
    (tmp_path / "rates.json").write_text(json.dumps({"rates": dict.fromkeys(experiments.SEARCHED, 1e-2)}))
    monkeypatch.setitem(experiments.SUITES, "main", ("?", {"row": "--heads 99"}))
    with pytest.raises(SystemExit) as stop:
        experiments.main(
            ["main", "--seeds", "0", "--runs", str(tmp_path), "--out", str(tmp_path), "--more", "--limit 40"]
        )
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "--heads 99: the model has 20 value heads" in said and "Traceback" not in said
    assert not (tmp_path / "main.json").exists()


@pytest.mark.parametrize("file", sorted((ROOT / "results").glob("*.md")), ids=lambda file: file.stem)
def test_the_readme_holds_the_table_of_every_suite(file):
    table = markdown(json.loads(file.with_suffix(".json").read_text()))
    assert file.read_text() == table and table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_row_is_a_command_that_train_understands():
    for _, rows in experiments.SUITES.values():
        for flags in rows.values():
            experiments.train.parse_args(f"{experiments.COMMON} {flags}".split())

"""The README says what the reports say, and its two commands are there."""

import json
import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
REPORTS = sorted((ROOT / "results").glob("*.json"))


def percent(value):
    return "not measured" if value is None else f"{value:.1%}"


def table_row(file):
    """The line of the README's table of runs that belongs to a report."""
    r = json.loads(file.read_text())
    cells = [
        f"[{file.stem}](results/{file.name})",
        percent(r["base"]["accuracy"]),
        percent(r["tuned"]["accuracy"]),
        percent(r["base"]["text_accuracy"]),
        percent(r["tuned"]["text_accuracy"]),
        f"{r['text_logit_max_change']:.3g}",
        f"{r['trainable_parameters']:,}",
        f"{r['train_seconds']:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.stem)
def test_the_table_of_runs_is_made_of_the_reports(file):
    assert table_row(file) in README


def test_every_number_in_the_table_has_its_report():
    assert set(re.findall(r"\(results/([\w.-]+)\)", README)) == {file.name for file in REPORTS}


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.stem)
def test_reports_hold_no_paths_of_the_machine_they_were_made_on(file):
    assert not re.search(r'"/|[ =]/', file.read_text())


def test_the_readme_has_its_two_commands():
    lines = README.splitlines()
    assert "pip install -r requirements.txt && python train.py" in lines
    assert "pip install -r requirements.txt && python -m pytest" in lines

"""The README says what the reports say, and its two commands are there."""

import json
import re
from statistics import mean, stdev

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "results").glob("*.json"))
BENCHES = [file for file in RESULTS if file.stem.startswith("bench-")]
REPORTS = [file for file in RESULTS if "tuned" in json.loads(file.read_text())]


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


def test_every_file_of_the_results_is_linked_and_every_link_has_its_file():
    """But for the suites' tables, which stand in the README themselves (tests/test_experiments.py)."""
    files = {file.name for file in (ROOT / "results").iterdir()}
    tables = {name for name in files if name.removesuffix(".json").removesuffix(".md") + ".md" in files}
    tables -= {name for name in tables if name.endswith(".png")}
    assert set(re.findall(r"\(results/([\w.-]+)\)", README)) == files - tables


def bench_rows(file):
    """The lines of the README's tables that belong to a benchmark: one for each ratio, or for each row of growth."""
    r = json.loads(file.read_text())
    rows = []
    for name, ratio in r.get("ratios", {}).items():
        memory = f"{ratio['memory']:.2f}" if "memory" in ratio else ""
        rows.append(f"| {name} | {ratio['time']:.2f} | {memory} |")
    for row in r.get("rows", []):
        cells = [row["side"], row["expressions"], row["tokens"], row["visual_tokens"], f"{row['seconds']:.1f} s"]
        cells += [f"{row['bytes'] / 2**20:,.0f} MiB", f"{row['adapter_flops']:.3g}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


@pytest.mark.parametrize("file", BENCHES, ids=lambda file: file.stem)
def test_the_tables_of_speed_are_made_of_the_benchmarks(file):
    rows = bench_rows(file)
    assert rows and [row for row in rows if row not in README] == []


def demo_table():
    """The README's table of the demo on held-out scenes: mean and standard deviation over three seeds."""
    runs = {
        method: [json.loads((ROOT / f"results/test-{method}-{seed}.json").read_text()) for seed in (0, 1, 2)]
        for method in ("image-lora", "lora")
    }
    kinds = ("scenes grounding", "scenes-day grounding", "scenes-day attribute", "sums text")
    base = runs["lora"][0]["base"]["by_kind"]
    lines = [
        "| | grounding, blurred | by day | attributes by day | text | largest change of a text logit | parameters | adapter FLOPs a step |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [f"| before | {' | '.join(f'{base[kind]:.1%}' for kind in kinds)} | | | |"]
    for method, reports in runs.items():
        values = [[100 * r["tuned"]["by_kind"][kind] for r in reports] for kind in kinds]
        cells = [f"{mean(v):.1f} ± {stdev(v):.1f} %" for v in values]
        cells += [f"{max(r['text_logit_max_change'] for r in reports):.3g}", f"{reports[0]['trainable_parameters']:,}"]
        cells += [f"{mean(r['adapter_flops_per_step'] for r in reports):.2e}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def test_the_table_of_the_demo_is_made_of_its_reports():
    assert "\n".join(demo_table()) in README


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_reports_hold_no_paths_of_the_machine_they_were_made_on(file):
    assert not re.search(r'"/|[ =]/', file.read_text())


def test_the_readme_has_its_two_commands():
    lines = README.splitlines()
    assert "pip install -r requirements.txt && python train.py" in lines
    assert "pip install -r requirements.txt && python -m pytest" in lines

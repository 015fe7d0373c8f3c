"""The front page and docs/ say what the reports, the flags and the code say.

`python tests/test_docs.py` writes again what follows from them: the line numbers of README.md's links to code, and what is
between the marks <!-- main --> or <!-- printed --> and <!-- end -->.
"""

import json
import re

import pytest
import torch
from conftest import ROOT, picture

import imagelora
import probe
import train
from experiments import __main__ as command
from harness import ask
from model import VLM
from parts import tasks
from parts.tasks.scenes import DRAWN

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "experiments/README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {file: file.read_text(encoding="utf-8") for file in PAGES}
EVERYTHING = "\n".join(PAGES.values())
RESULTS = sorted((ROOT / "experiments/results").glob("*.json"))
BENCHES = [file for file in RESULTS if file.stem.startswith("bench-")]

LINES = {  # the cell "code" of the front page's table: what is on the line (the first such line) that its link leads to
    "v = self.v_proj(x)": "v = self.v_proj(x)",
    "visual_positions": "def visual_positions(",
    "M = visual_mask": "M = visual_mask",
    "self.A": "self.A = nn.Parameter(",
    "self.B": "self.B = nn.Parameter(",
    "self.gamma": "self.gamma = nn.Parameter(",
    "self.scale": "self.scale = alpha /",
    "self.norm": "self.norm =",
    "heads": 'self.register_buffer("heads"',
    "s": "return self.scale * self.gamma * self.norm",
    "formula": "self.s * ((M * x) @ self.A @ self.B",
    "forward": "def forward(self, v, x, visual_index)",
    "self.updates": 'v = update(v, x, visual_index)',
    "rank1": "def rank1(",
    "tau": "** tau",
}
CODE_LINK = re.compile(r"\| `([^`]+)` \| \[([\w/]+\.py):\d+\]\([\w/]+\.py#L\d+\)")


def page(name):
    return PAGES[ROOT / "docs" / name]


# -- links


def refreshed(text):
    """The front page with today's line numbers in its links to code."""

    def link(match):
        code, file = match.groups()
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        number = next((i for i, line in enumerate(lines, start=1) if LINES[code] in line), None)
        assert number, f"{code}: no line of {file} holds {LINES[code]!r}"
        return f"| `{code}` | [{file}:{number}]({file}#L{number})"

    return CODE_LINK.sub(link, text)


def test_every_symbol_of_the_paper_is_on_the_line_that_the_front_page_links():
    assert refreshed(README) == README, "run: python tests/test_docs.py"
    assert {code for code, _ in CODE_LINK.findall(README)} == LINES.keys()


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_every_link_leads_to_a_file(file):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[file]):
        assert target.startswith("https://") or (file.parent / target).exists(), target


def test_every_file_of_the_results_is_linked():
    """But for the suites' own, whose tables experiments/README.md is filled from (tests/test_experiments.py)."""
    suites = {file.name for file in RESULTS if "tables" in json.loads(file.read_text())}
    linked = set(re.findall(r"results/([\w.-]+)\)", EVERYTHING))
    assert {file.name for file in (ROOT / "experiments/results").iterdir()} - suites - linked == set()


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_files_and_tests_that_a_page_names_exist(file):
    for commands in re.findall(r"python (?:-m (\w+)|([\w/]+\.py))", PAGES[file]):
        name = next(filter(None, commands))
        assert name in ("pytest",) or (ROOT / name).exists(), name
    for name in re.findall(r"\btests/[\w*]+\.py|\btest_[\w*]+\.py", PAGES[file]):
        assert list((ROOT / "tests").glob(name.removeprefix("tests/"))), name
    for name, where in re.findall(r"`([\w.]+)` \(([\w/]+\.py)\)", PAGES[file]):
        source = (ROOT / where).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"\b(class|def) {part}\b|\b{part}\b.* =", source), f"{name} in {where}"


# -- flags and commands


def test_the_front_page_has_its_two_commands():
    lines = README.splitlines()
    assert "pip install -r requirements.txt && python train.py" in lines
    assert "pip install -r requirements.txt && python -m pytest" in lines


def test_every_flag_that_a_page_names_exists(capsys):
    flags = {"--nproc-per-node"}  # torchrun's
    for main in (train.main, ask.main, command.main):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        flags |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    assert set(re.findall(r"(?<![\w|-])--[a-z][\w-]*", EVERYTHING)) - flags == set()


# -- tables


def bench_rows(file):
    """The lines of the tables of speed that belong to a benchmark: one for each ratio."""
    r = json.loads(file.read_text())
    rows = []
    for name, ratio in r.get("ratios", {}).items():
        memory = f"{ratio['memory']:.2f}" if "memory" in ratio else ""
        rows.append(f"| {name} | {ratio['time']:.2f} | {memory} |")
    return rows


@pytest.mark.parametrize("file", BENCHES, ids=lambda file: file.stem)
def test_the_tables_of_speed_are_made_of_the_benchmarks(file):
    rows = bench_rows(file)
    assert rows and [row for row in rows if row not in page("speed.md").splitlines()] == []


def test_the_front_page_quotes_the_speed_that_was_measured():
    ratios = json.loads((ROOT / "experiments/results/bench-steps.json").read_text())["ratios"]
    one, seven = (ratios[f"{rows}, against transformers + peft lora"] for rows in ("one expression a row", "seven expressions an image"))
    text = " ".join(README.split())
    assert f"takes {one['time']:.2f} of the time and {one['memory']:.2f} of the memory" in text
    assert f"it takes {seven['time']:.2f} and {seven['memory']:.2f}" in text


FRONT = {  # the front page's table: rows of the suite `main`, and columns
    "rows": (
        "base",
        "full fine-tuning",
        "LoRA, rank 8",
        "LoRA, rank 1",
        "LoRA in the encoder, rank 1",
        "Image-LoRA, all heads",
        *("Image-LoRA, 6 probed heads", "Image-LoRA, 6 random heads", "Image-LoRA, 6 heads by weight"),
    ),
    "columns": ("boxes", "words", "boxes by day", "text", "text logits", "parameters", "FLOPs a step"),
}


def main_suite():
    """The first table of `main` in experiments/README.md, {row: {column: cell}}; tests/test_experiments.py holds it."""
    lines = PAGES[ROOT / "experiments/README.md"].split("<!-- table: main -->")[1].split("|\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|"))
    return {row[0]: dict(zip(header, row)) for row in rows}


def front_table():
    """The front page's part of that table."""
    full, columns = main_suite(), FRONT["columns"]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in FRONT["rows"]:
        lines.append(f"| {row} | {' | '.join(full[row][column] for column in columns)} |")
    return lines


def printed():
    """What the demo prints, from its report."""
    r = json.loads((ROOT / "experiments/results/demo.json").read_text())
    lines = [
        "```",
        f"  {'':32}{'base':>14}{'tuned':>14}",
    ]
    for kind, base in r["base"]["by_kind"].items():
        lines.append(f"  {kind:32}{base:>14.1%}{r['tuned']['by_kind'][kind]:>14.1%}")
    lines += ["", f"  largest change of a text logit  {r['text_logit_max_change']:.3g}"]
    share = r["trainable_parameters"] / r["parameters"]
    lines.append(
        f"  trainable parameters            {r['trainable_parameters']:,} ({share:.2%} of {r['parameters']:,})"
    )
    lines.append(f"  adapter FLOPs a step            {r['adapter_flops_per_step'] / 1e6:,.1f} million")
    return [*lines, "```"]


MADE = {"main": front_table, "printed": printed}


def refilled(text):
    """A page with what is between its marks made again."""

    def made(match):
        return "\n".join([f"<!-- {match[1]} -->", *MADE[match[1]](), "<!-- end -->"])

    return re.sub(rf"<!-- ({'|'.join(MADE)}) -->.*?<!-- end -->", made, text, flags=re.DOTALL)


def test_what_is_between_marks_is_made_of_the_reports():
    assert "<!-- main -->" in README and "<!-- printed -->" in README
    assert refilled(README) == README, "run: python tests/test_docs.py"


def test_every_data_set_has_a_row():
    named = {name for name in tasks.TASKS if name not in DRAWN}
    assert len(named) > 10
    assert [name for name in named if f"| `{name}`" not in page("datasets.md")] == []


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_reports_hold_no_paths_of_the_machine_they_were_made_on(file):
    assert not re.search(r'["= ]/\w', file.read_text())


# -- snippets


def run_snippet(name, defined, **replaced):
    """Run the Python on the front page that holds `name`, with these names defined; return all names."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if name in code)
    for old, new in replaced.items():
        code = code.replace(old, new)
    names = dict(defined)
    exec(code, names)  # noqa: S102 (our own front page)
    return names


def test_the_snippet_in_python_runs(tmp_path, monkeypatch):
    picture(80, 60).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = run_snippet("vlm.loss(batch)", {}, **{"Qwen/Qwen2.5-VL-3B-Instruct": str(ROOT / "parts/tiny")})
    assert all(p.grad is not None for p in names["adapter"].parameters())
    assert all(p.grad is None for p in names["vlm"].parameters())


SHORT = ["--steps=2", "--batch=1", "--probe-samples=1", "--max-new-tokens=2", "--workers=0", "--limit=4", "--eval-limit=2"]


def trained(checkpoint, out, *flags):
    """The report of a short run of train.py with these flags."""
    train.main(["--model", str(checkpoint), *SHORT, *flags, "--out", str(out)])
    return json.loads((out / "report.json").read_text())


def test_a_data_set_with_images_is_a_function_and_a_line(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setitem(tasks.TASKS, "logos", tasks.Task(run_snippet("logos", {})["logos"]))
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text('{"file": "a.png", "brand": "Acme"}\n')
    picture(60, 60).save(tmp_path / "a.png")
    trained(checkpoint, tmp_path / "run", "--data", f"logos={tmp_path}")
    (base, tuned) = (json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines())
    assert (base["prompt"], base["reference"], tuned["images"]) == ("Whose logo is this?", "Acme", [str(tmp_path / "a.png")])


def test_a_method_is_a_class_and_a_line(tmp_path, checkpoint, monkeypatch):
    method = run_snippet("RankStableLoRA", vars(imagelora))["RankStableLoRA"]
    monkeypatch.setitem(imagelora.METHODS, "rslora", method)
    report = trained(checkpoint, tmp_path, "--data=scenes-day", "--method=rslora", "--rank=4", "--alpha=16", "--lr=0.1")
    assert report["method"] == "rslora" and report["text_logit_max_change"] > 0
    loaded = imagelora.load_adapter(tmp_path / "adapter.safetensors", VLM.from_pretrained(checkpoint))
    assert type(loaded) is method
    assert {update.scale for update in loaded.updates.values()} == {16 / 4**0.5}


def test_a_criterion_is_a_function_and_a_line(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setitem(probe.CRITERIA, "late", run_snippet("late", {"torch": torch})["late"])
    flags = ["--data=scenes-day", "--selection=late", "--heads=2", "--tau=20"]
    assert trained(checkpoint, tmp_path, *flags)["heads"] == {"2": [0, 1]}


if __name__ == "__main__":
    (ROOT / "README.md").write_text(refilled(refreshed(README)), encoding="utf-8")

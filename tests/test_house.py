"""The house: how long each file may be, who may import whom, and that what is added from outside needs one line."""

import ast
import json

import pytest
import torch
from conftest import ROOT
from torch import nn

import train
from imagelora import METHODS, Adapter, load_adapter
from probe import CRITERIA

BUDGETS = {
    "README.md": 250,
    "imagelora.py": 210,
    "model.py": 350,
    "data.py": 390,
    "probe.py": 180,
    "train.py": 350,
    "parts/files.py": 120,
}
LECTURES = ("imagelora.py", "model.py", "data.py", "probe.py", "train.py")
ARROWS = {  # room: the rooms that it may import, and with them those that these may import
    "parts": (),
    "imagelora": ("parts",),
    "model": ("parts",),
    "probe": ("imagelora",),
    "data": ("parts",),  # positions and the scale of boxes belong to the model family
    "harness": ("data", "model", "probe"),
    "train": ("harness",),
    "experiments": ("train",),
    "course": ("train",),
}
SOURCES = [*ROOT.glob("*.py"), *(file for folder in ARROWS for file in (ROOT / folder).rglob("*.py"))]
SOURCES = sorted(file.relative_to(ROOT) for file in SOURCES)
CODE = SOURCES + sorted(file.relative_to(ROOT) for file in (ROOT / "tests").rglob("*.py"))


def lines(name):
    return len((ROOT / name).read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", BUDGETS)
def test_a_lecture_keeps_its_length(name):
    assert lines(name) <= BUDGETS[name]


def test_the_five_lectures_together_have_at_most_1480_lines():
    assert sum(lines(name) for name in LECTURES) <= 1480


@pytest.mark.parametrize("file", CODE, ids=str)
def test_no_file_has_more_than_400_lines(file):
    assert lines(file) <= 400


def room(module):
    return module.split(".")[0]


def imports(file):
    """The modules of this project that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides where it leads"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {m for m in submodules if module_file(m)} or {node.module}
    return {module for module in found if room(module) in ARROWS}


def module_file(module):
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def reachable(start):
    """The rooms that a room may import."""
    found, left = {start}, [start]
    while left:
        for below in ARROWS[left.pop()]:
            if below not in found:
                found.add(below)
                left.append(below)
    return found


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_arrows_lead_down(file):
    here = room(".".join(file.with_suffix("").parts))
    assert {room(module) for module in imports(file)} <= reachable(here)


def test_there_is_no_circle():
    graph = {}
    for file in SOURCES:
        module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        graph[module] = imports(file) - {module}
    while graph:
        free = [module for module, below in graph.items() if not below & graph.keys()]
        assert free, f"a circle: {sorted(graph)}"
        for module in free:
            del graph[module]


def test_no_module_imports_the_references():
    for file in SOURCES:
        words = (ROOT / file).read_text(encoding="utf-8")
        for package in ("transformers", "peft", "scipy", "numpy", "torchvision"):
            assert f"import {package}" not in words and f"from {package}" not in words, file


# -- one function or class and one line


class Shift(Adapter):
    """A toy method: a learned vector, added to the values of every token."""

    name, options = "shift", ("rank",)

    def __init__(self, config, rank=8):
        size = config.value_heads * config.head_size
        super().__init__({(layer, "v"): Add(size) for layer in range(config.layers)}, {"rank": rank})
        self.layers = nn.ModuleList(self.updates.values())

    def flops(self, tokens, visual_tokens):
        return 0


class Add(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, y, x, visual_index):
        return y + self.shift


def later_layers(vlm, batches):
    """A toy criterion: the later the layer, the higher the score."""
    return torch.arange(1.0, vlm.config.layers + 1)[:, None].expand(-1, vlm.config.value_heads)


SHORT = ["--data=scenes-day", "--limit=8", "--eval-limit=2", "--steps=2", "--batch=4", "--max-new-tokens=4", "--also"]


def test_a_method_is_a_class_and_a_line(monkeypatch, checkpoint, vlm, tmp_path):
    monkeypatch.setitem(METHODS, "shift", Shift)
    train.main(["--model", str(checkpoint), *SHORT, "--method=shift", "--lr=0.1", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["method"] == "shift" and report["trainable_parameters"] == 3 * 32
    adapter = load_adapter(tmp_path / "adapter.safetensors", vlm)
    assert all(p.abs().max() > 0 for p in adapter.parameters())


def test_a_criterion_is_a_function_and_a_line(monkeypatch, checkpoint, tmp_path, capsys):
    monkeypatch.setitem(CRITERIA, "later", later_layers)
    flags = [*SHORT, "--selection=later", "--heads=2", "--tau=20"]
    train.main(["--model", str(checkpoint), *flags, "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/report.json").read_text())["heads"] == {"2": [0, 1]}
    capsys.readouterr()
    train.main(["--model", str(checkpoint), *flags, "--probe-only", "--out", str(tmp_path / "probe")])
    selected = [line for line in capsys.readouterr().out.splitlines() if "selected" in line]
    assert [line.split()[:2] for line in selected] == [["2", "1"], ["2", "0"]]
    assert (tmp_path / "probe/heads.png").stat().st_size > 0

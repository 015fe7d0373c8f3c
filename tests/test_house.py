"""The house: how long each room may be, what names say, who may import whom."""

import ast
import re
import subprocess

import pytest
from conftest import ROOT

import train

LECTURES = ("imagelora.py", "model.py", "data.py", "probe.py", "train.py")
BUDGETS = {  # lines of Python, docstrings included; README.md quotes the sums
    "imagelora.py": 200,
    "model.py": 310,
    "data.py": 360,
    "probe.py": 155,
    "train.py": 280,
    "parts/files.py": 90,
    "parts/backbones": 950,
    "parts/tasks": 1650,
    "parts/tiny": 140,
    "harness": 1400,
    "experiments": 1650,
    "course": 1850,
    "tests": 5800,
}
ALL_SOURCE = (*LECTURES, "parts", "harness", "experiments", "course")
SUMS = {
    "lectures": (LECTURES, 1280),
    "parts": (("parts",), 2850),
    "all source": (ALL_SOURCE, 8900),
}
ARROWS = {  # room: the rooms that it may import, and with them those that these may import
    "parts": (),
    "imagelora": ("parts",),
    "model": ("parts",),
    "probe": ("imagelora",),
    "data": ("parts",),
    "harness": ("data", "model", "probe"),
    "train": ("harness",),
    "experiments": ("train",),
    "course": ("train",),
}
SOURCES = [*ROOT.glob("*.py"), *(file for folder in ARROWS for file in (ROOT / folder).rglob("*.py"))]
SOURCES = sorted(file.relative_to(ROOT) for file in SOURCES)
CODE = SOURCES + sorted(file.relative_to(ROOT) for file in (ROOT / "tests").rglob("*.py"))


# -- sizes


def lines(name):
    """Lines of a file, or of all Python files in a folder."""
    path = ROOT / name
    files = path.rglob("*.py") if path.is_dir() else [path]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


@pytest.mark.parametrize("name", BUDGETS)
def test_a_room_keeps_its_budget(name):
    assert lines(name) <= BUDGETS[name]


@pytest.mark.parametrize("name", SUMS)
def test_rooms_together_keep_their_budget(name):
    names, budget = SUMS[name]
    assert sum(map(lines, names)) <= budget


def test_no_file_has_more_than_400_lines():
    assert [str(file) for file in CODE if lines(file) > 400] == []


def test_the_front_page_has_at_most_200_lines_and_states_the_budgets():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    budgets = f"at most {SUMS['lectures'][1]:,} lines together, all source {SUMS['all source'][1]:,}, the tests {BUDGETS['tests']:,}"
    assert budgets in " ".join(text.split())


def test_the_command_line_has_at_most_40_flags(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    flags = set(re.findall(r"(?<=--)[a-z][\w-]+", capsys.readouterr().out.split("examples:")[0]))
    assert len(flags - {"help"} - {flag for flag in flags if flag.startswith("no-")}) <= 40


def test_there_are_14_entries_at_the_top():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout
    assert len({name.split("/")[0] for name in listed.splitlines() if not name.startswith(".")}) <= 14


# -- names: one for one thing

TO_GO = {"found", "known", "place", "room", "most", "said", "there", "deaf", "guard", "gone", "Stage", "masked"}
NOT_EVEN_IN_PROSE = re.compile(r"\b(found|known|deaf|guard|Stage|masked)\b")


def identifiers(file):
    """All names that a file defines or uses."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        yield from (str(getattr(node, field)) for field in ("id", "arg", "name", "attr") if hasattr(node, field))


def test_no_name_is_one_of_those_that_say_nothing():
    used = {str(file): TO_GO & set(identifiers(file)) for file in CODE}
    assert {file: names for file, names in used.items() if names} == {}
    prose = {str(file): set(NOT_EVEN_IN_PROSE.findall((ROOT / file).read_text(encoding="utf-8"))) for file in SOURCES}
    assert {file: words for file, words in prose.items() if words} == {}


# -- arrows


def top(module):
    return module.split(".")[0]


def imports(file):
    """The modules of this project that a file imports, wherever in the file it does so."""
    modules = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides where it leads"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {m for m in submodules if module_file(m)} or {node.module}
    return {module for module in modules if top(module) in ARROWS}


def module_file(module):
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def reachable(start):
    """The rooms that a room may import."""
    rooms, left = {start}, [start]
    while left:
        for below in ARROWS[left.pop()]:
            if below not in rooms:
                rooms.add(below)
                left.append(below)
    return rooms


def test_arrows_lead_down():
    for file in SOURCES:
        start = top(".".join(file.with_suffix("").parts))
        assert {top(module) for module in imports(file)} <= reachable(start), file


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
    for file in (file for file in SOURCES if not str(file).startswith("experiments/bench")):  # they compare with them
        words = (ROOT / file).read_text(encoding="utf-8")
        for package in ("transformers", "peft", "scipy", "numpy", "torchvision"):
            assert f"import {package}" not in words and f"from {package}" not in words, file

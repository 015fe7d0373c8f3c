"""The course as students and teachers use it: runner, grades, hand-out, cheats, notebook, pages."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT, by_hand
from course_reports import write_reports
from PIL import Image, ImageChops, ImageStat

import train
from course import notebook
from course.__main__ import main
from course.checks import Wrong
from course.judge import LESSONS, exercise_file, judge, load_exercise
from course.lesson8 import check as lesson8
from course.pictures import draw

COURSE = ROOT / "course"
PAGES = [COURSE / f"lesson{number}/lesson.md" for number in LESSONS]


def run(folder, *command):
    """A Python command in a copy of the project: (exit code, what it printed)."""
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "copy"
    main(["--hand-out", str(folder)])
    return folder


# -- hand-out and grades


def test_the_hand_out_has_neither_solutions_nor_answers(copy):
    names = {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()}
    assert {"train.py", "course/lesson8/check.py", "parts/tiny/model.safetensors", "docs/method.svg"} <= names
    assert not [name for name in names if "solution" in name or "teacher" in name or name.startswith("tests/")]


def test_the_hand_out_refuses_a_folder_that_exists_and_an_exercise_that_is_filled_in(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="2"):
        main(["--hand-out", str(tmp_path)])
    assert "exists already" in capsys.readouterr().err and not list(tmp_path.iterdir())
    solution = ROOT / "tests/course_solutions/lesson3.py"
    monkeypatch.setattr("course.__main__.exercise_file", lambda number: solution)
    with pytest.raises(SystemExit, match="2"):
        main(["--hand-out", str(tmp_path / "new")])
    assert "a hole is filled in" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_hand_out_has_no_points_and_with_solutions_it_has_all(copy, tmp_path):
    shutil.copytree(copy, tmp_path / "solved")
    for number in LESSONS:
        solution = ROOT / f"tests/course_solutions/lesson{number}.py"
        shutil.copyfile(solution, tmp_path / f"solved/course/lesson{number}/exercise.py")
    write_reports(tmp_path / "solved")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda folder: run(folder, "-m", "course", "--grade"), (copy, tmp_path / "solved")))
    (code, printed, _), (solved_code, solved_printed, said) = found
    grades, solved = json.loads(printed), json.loads(solved_printed)
    assert code == 1 and grades["points"] == 0 and grades["of"] >= 30 and len(grades["lessons"]) == len(LESSONS)
    assert solved_code == 0 and solved["points"] == solved["of"] == grades["of"], said
    assert not any(lesson["red"] for lesson in solved["lessons"].values())


def test_the_runner_stops_at_the_first_red_check_with_a_hint(capsys):
    with pytest.raises(SystemExit, match="1"):
        main([])
    printed = capsys.readouterr().out
    assert "Lesson 1." in printed and "Lesson 2." not in printed and printed.count("red  ") == 1
    assert "not written yet" in printed and "course/lesson1/lesson.md" in printed


def test_one_lesson_is_judged_alone(capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["4"])
    assert "Lesson 4." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["9"])


# -- cheats and broken files


@pytest.mark.parametrize(
    "line",
    [
        "from imagelora import LoRALayer",
        "import probe as p",
        "def f():\n    from model import attend",
        "from course.lesson3 import check",
        "from . import check",
        "import importlib",
        "lora = __import__('imagelora').LoRALayer",
        "import sys",
        "exec('import imagelora')",
        "import inspect",
        "torch.sys.modules['imagelora']",
        "from torch import os",
        "lora = torch.nn.Module.__subclasses__()",
        "import numpy",
    ],
)
def test_an_exercise_that_takes_its_answer_from_the_project_is_refused(line, tmp_path):
    (tmp_path / "exercise.py").write_text(line + "\n")
    with pytest.raises(Wrong, match="write it yourself"):
        load_exercise(tmp_path / "exercise.py")


@pytest.mark.parametrize(
    "source, words",
    [
        ("def lora_start(a, b, c:\n    return 1", "exercise.py, line 1: Python cannot read it"),
        ("def lora_start(a, b, c):\n    return undefined", "exercise.py, line 2: NameError"),
        ("def lora_start(a, b, c):\n    return 'A', 'B'", "could not be used"),
        ("x = 1 / 0", "exercise.py, line 1: ZeroDivisionError"),
        ("def lora_start(a, b, c):\n    pass", "return the two factors"),
        ("quit(0)", "exercise.py, line 1: SystemExit"),
    ],
)
def test_broken_code_gets_a_sentence_and_no_traceback(source, words, tmp_path):
    (tmp_path / "exercise.py").write_text(source)
    found = [problem for _, problem in judge(3, tmp_path / "exercise.py", all_checks=False)]
    assert words in found[0]


def test_what_an_exercise_prints_stays_out_of_the_grades(tmp_path, capsys):
    (tmp_path / "exercise.py").write_text("def lora_start(a, b, c):\n    print('here')")
    list(judge(3, tmp_path / "exercise.py", all_checks=False))
    printed = capsys.readouterr()
    assert "here" not in printed.out and "here" in printed.err


# -- the notebook


def test_the_notebook_is_the_one_that_the_lessons_give():
    assert notebook.FILE.read_text(encoding="utf-8") == notebook.notebook(), "run: python -m course.notebook"


@by_hand
def test_the_notebook_runs_offline_from_top_to_bottom(copy):
    """But for the cells that say that they need the network; the demo is shortened."""
    short = '"--steps=2", "--limit=8", "--batch=4", "--probe-samples=2", "--eval-every=0"'
    replaced = ['"--steps=300"', short, '"--eval-limit=300"', '"--eval-limit=2"']
    code, printed, said = run(copy, str(ROOT / "tests/run_notebook.py"), "course/colab.ipynb", *replaced)
    assert code == 0, said
    assert printed.count("displayed") == 7 and printed.count("not written yet") == 4
    left_out = [cell for kind, cell in notebook.cells() if kind == "code" and "network" in cell.splitlines()[0]]
    assert len(left_out) == 2


def test_the_notebook_leaves_colabs_torch_alone():
    """It installs two packages by name, without what they depend on, and nothing else."""
    assert [package.split("==")[0] for package in notebook.packages()] == ["safetensors", "tokenizers"]
    code = "\n".join(text for kind, text in notebook.cells() if kind == "code")
    assert len(re.findall(r"\bpip\b", code)) == 2 and code.count('"pip", "install", "--quiet", "--no-deps"') == 1
    assert "requirements" not in code


# -- the pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_lesson_has_at_most_two_screens_a_question_a_picture_and_something_to_read(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 70 and max(map(len, text.splitlines())) <= 125
    parts = ("**Before you start.**", "## The idea", "## Read first", "## Do", "## Read after you are green")
    places = [text.index(part) for part in (*parts, "**To think about afterwards.**")]
    assert places == sorted(places)
    for target in check_pictures(page):
        assert target.startswith("..") or (page.parent / target).stat().st_size < 60_000


def check_pictures(page):
    """The pictures of a page; each has a background, for dark pages too."""
    targets = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    for target in targets:
        with Image.open(page.parent / target) as picture:
            assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    assert targets
    return targets


def test_the_front_page_of_the_course_has_its_picture():
    assert check_pictures(COURSE / "README.md") == ["costs.png"]


ANSWERS = {  # lesson: what holds lines like those of its solution, so nobody is sent there before
    1: ("visual_tokens", "Processor.grid", "visual_positions"),
    2: ("attention_mask", "fused_attention"),
    3: ("LoRALayer",),
    4: ("ImageLoRALayer", "text_change"),
    5: ("ImageLoRALayer", "ImageLoRA.flops"),
    6: ("rank1_gradients", "`rank1`"),
    7: ("select_heads",),
    8: ("experiments/README.md",),
}


@pytest.mark.parametrize("number", LESSONS)
def test_what_gives_the_answers_away_is_read_after_the_checks_are_green(number):
    before, after = PAGES[number - 1].read_text(encoding="utf-8").split("## Read after you are green")
    reading = before.split("## Read first")[1].split("## Do")[0]
    for name in ANSWERS[number]:
        assert name in after and name not in reading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_what_a_lesson_names_to_read_exists(page):
    """`- `file`: ...` names functions, `A.b` or `a`, that are in this file."""
    first, after = page.read_text(encoding="utf-8").split("## Read first")[1].split("## Read after you are green")
    reading = first.split("## Do")[0] + after.split("**To think")[0]
    items = re.findall(r"^- `([\w/]+\.\w+)`:(.*?)(?=^- |\Z)", reading, re.DOTALL | re.MULTILINE)
    assert items
    for file, words in items:
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`\.?([A-Za-z_]\w*(?:\.\w+)*)`", words):
            assert all(re.search(rf"\b{part}\b", source) for part in name.split(".")), f"{name} in {file}"


def test_every_link_of_the_course_leads_to_a_file():
    for page in COURSE.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"
    text = (COURSE / "README.md").read_text(encoding="utf-8")
    assert [f"[{number}. {title}](lesson{number}/lesson.md)" in text for number, title in LESSONS.items()] == [True] * 8


def test_every_command_and_flag_that_a_page_names_exists(capsys):
    pages = "\n".join(page.read_text(encoding="utf-8") for page in COURSE.rglob("*.md"))
    for flags in re.findall(r"^python train\.py(.*)$", pages, re.MULTILINE):
        train.arguments(flags.split())
    for program in (train.arguments, main):
        with pytest.raises(SystemExit):
            program(["--help"])
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    assert set(re.findall(r"(?<![\w|-])--[a-z][\w-]*", pages)) - known == set()


def test_a_real_report_has_what_lesson_8_reads_of_it():
    report = json.loads((ROOT / "experiments/results/demo.json").read_text())
    assert {"seed", "arguments", "tuned"} <= report.keys()
    assert {"selection", "heads", *lesson8.FREE} <= report["arguments"].keys()
    assert "scenes-fog grounding" in report["tuned"]["by_kind"] and 0 <= report["tuned"]["accuracy"] <= 1


def test_every_exercise_has_one_to_three_holes_with_shapes_or_kinds_in_the_docstring():
    for number in LESSONS:
        exercise = load_exercise(exercise_file(number))
        holes = [f for f in vars(exercise).values() if callable(f) and getattr(f, "__module__", "") == "exercise"]
        assert 1 <= len(holes) <= 3 and all(len(hole.__doc__) > 60 for hole in holes)


def test_the_committed_pictures_are_those_that_the_program_draws(tmp_path):
    """But for a few points: letters may differ by a pixel where another library draws them."""
    draw(tmp_path)
    names = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.png"))
    assert names == sorted(file.relative_to(COURSE).as_posix() for file in COURSE.rglob("*.png")) and len(names) == 9
    for name in names:
        with Image.open(tmp_path / name) as drawn, Image.open(COURSE / name) as committed:
            assert drawn.size == committed.size
            difference = ImageChops.difference(drawn.convert("RGB"), committed.convert("RGB"))
            assert max(ImageStat.Stat(difference).mean) < 2, name


def test_the_pairs_that_lesson_8_suggests_differ_in_what_it_says():
    """Each pair of flags, in place of --selection, gives two runs that differ in these flags alone."""
    text = (COURSE / "lesson8/lesson.md").read_text(encoding="utf-8")
    command = re.search(r"^python train\.py (.*) --selection probe", text, re.MULTILINE)[1]
    pairs = re.findall(r"`(--[^`]+)` and\s+`(--[^`]+)`", text.split("Other pairs")[1].split("State your claim")[0])
    assert len(pairs) == 6
    for pair in pairs:
        a, b = ({"arguments": vars(train.arguments(f"{command} {flags}".split()))} for flags in pair)
        flags = {flag.removeprefix("no-").replace("-", "_") for flag in re.findall(r"--([\w-]+)", " ".join(pair))}
        assert lesson8.different(a, b) == sorted(flags)

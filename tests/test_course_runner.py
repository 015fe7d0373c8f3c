"""The course as students and teachers use it: runner, grades, hand-out, notebook, pages."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, by_hand
from course_reports import write_reports

import train
from course import __main__ as runner
from course.judge import LESSONS
from course.mine import RULES
from course.teacher import BOXES, grade, together

COURSE, SOLUTIONS = ROOT / "course", ROOT / "tests/course_solutions"
PAGES = sorted(COURSE.rglob("*.md"))


def run(folder, *command):
    """What a Python command in a copy of the project prints."""
    return subprocess.run([sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture
def copy(tmp_path):
    runner.main(["--hand-out", str(tmp_path / "copy")])
    return tmp_path / "copy"


@pytest.fixture
def exercises(tmp_path, monkeypatch):
    """A student's exercises: holes, and the solution of lesson 3."""
    folder = tmp_path / "exercises"
    monkeypatch.setattr(runner, "EXERCISES", folder)
    runner.reset(LESSONS)
    shutil.copyfile(SOLUTIONS / "lesson3.py", folder / "lesson3.py")
    return folder


# -- students


def test_the_runner_stops_at_the_first_red_check_and_answers_a_green_lessons_question(exercises, capsys):
    with pytest.raises(SystemExit, match="1"):
        runner.main([])
    printed = capsys.readouterr().out
    assert "Lesson 1." in printed and "Lesson 2." not in printed and printed.count("red  ") == 1
    runner.main(["3"])
    printed = capsys.readouterr().out
    assert "**Your question.** 8 x (1,024 + 1,024)" in printed and "Next: course/lesson4/lesson.md" in printed


def test_the_remedy_comes_with_hint_and_reset_keeps_the_file(exercises, capsys):
    wrong = (SOLUTIONS / "lesson3.py").read_text().replace("return A, B", "return A.T, B.T")
    (exercises / "lesson3.py").write_text(wrong)
    for argv, told in ((["3"], False), (["3", "--hint"], True)):
        with pytest.raises(SystemExit, match="1"):
            runner.main(argv)
        printed = capsys.readouterr().out
        assert "transposed" in printed and ("so A is [inputs, rank]" in printed) == told
    runner.main(["3", "--reset"])
    assert "NotImplementedError" in (exercises / "lesson3.py").read_text()
    assert (exercises / "lesson3.old.py").read_text() == wrong


@by_hand
def test_a_students_own_adapter_goes_through_train_py_and_text_does_not_change(copy):
    shutil.copytree(SOLUTIONS, copy / "exercises", dirs_exist_ok=True)
    flags = ["--steps=3", "--limit=40", "--eval-limit=4", "--out=exercises/mine-0"]
    run(copy, "-m", "course", "train", *flags)
    report = json.loads((copy / "exercises/mine-0/report.json").read_text())
    assert report["method"] == "mine" and report["trainable_parameters"] == 4608 and report["text_logit_max_change"] == 0
    assert RULES.keys() <= report["arguments"].keys() and BOXES in report["tuned"]["by_kind"]


# -- teachers


@by_hand  # twenty lessons are judged
def test_grades_are_a_table_and_a_file_for_gradescope(tmp_path, capsys):
    shutil.copytree(SOLUTIONS, tmp_path / "anna")
    write_reports(tmp_path / "anna")
    (tmp_path / "ben").mkdir()
    (tmp_path / "ben/lesson1.py").write_text("def visual_tokens(a, b, c, d):\n    return 1\n")
    assert not grade([tmp_path / "anna", tmp_path / "ben"])
    anna, ben = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert anna["points"] == anna["of"] and anna["leaderboard"].startswith("83.0 % of boxes in fog with 4,608")
    assert ben["points"] == "0" and ben["of"] == anna["of"]
    scope = json.loads((tmp_path / "anna/results.json").read_text())
    assert sum(test["score"] for test in scope["tests"]) == int(anna["of"]) and scope["leaderboard"][0]["value"] == 83.0


def test_a_class_sees_the_interval_of_all_pairs_and_its_power(tmp_path, capsys):
    write_reports(tmp_path)
    together([tmp_path])
    printed = capsys.readouterr().out  # differences of 5, 3 and 4 points: s = 1, t = 4.3
    assert "3 pairs, probed - random: +4.0 points [+1.5, +6.5]" in printed and "of all classes" in printed


def test_the_hand_out_has_neither_solutions_nor_answers_and_every_file_that_its_pages_link_to(copy):
    names = {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()}
    needed = {"train.py", "exercises/lesson10.py", ".gitignore", ".github/workflows/classroom.yml", "README.md"}
    assert needed <= names and not [name for name in names if re.search("solution|teacher.md|^tests/", name)]
    for page in copy.rglob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(copy)}: {target}"
    with pytest.raises(SystemExit, match="2"):
        runner.main(["--hand-out", str(copy)])


@by_hand
def test_the_notebook_runs_twice_offline_from_top_to_bottom(copy):
    """But for the cell that says that it needs a GPU; the demo is shortened."""
    script = []
    for cell in json.loads((COURSE / "colab.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if source.startswith("%%writefile "):
            name, text = source.removeprefix("%%writefile ").split("\n", 1)
            source = f"open({name!r}, 'w').write({text!r})"
        if cell["cell_type"] == "code" and not source.startswith("# GPU"):
            script.append(source)
    short = '"--steps=2", "--limit=8", "--eval-every=0", "--eval-limit=2", "--probe-samples=2"'
    shown = "Image, display = (lambda file: open(file, 'rb').read()), (lambda image: print('displayed', len(image)))"
    script = "\n".join(script).replace('"--steps=300"', short)
    script = script.replace("from IPython.display import Image, display", shown)
    for _ in range(2):
        printed = run(copy / "course", "-c", script)
        assert printed.count("displayed") == 4 and "Lesson 5" in printed


# -- pages


def test_the_notebook_has_the_exercise_of_lesson_5():
    cells = ["".join(cell["source"]) for cell in json.loads((COURSE / "colab.ipynb").read_text(encoding="utf-8"))["cells"]]
    exercise = (COURSE / "lesson5/exercise.py").read_text(encoding="utf-8").rstrip()
    assert f"%%writefile exercises/lesson5.py\n{exercise}" in cells


def test_what_a_page_names_exists():
    """Names and "titles" of what is to be read, `- `file`: ...`; links are followed in the hand-out."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for file, words in re.findall(r"`((?!exercises)[\w/]+\.py)`:(.*?)(?=`[\w/]+\.py`|\n\n|\Z)", text, re.DOTALL):
            source = (ROOT / file).read_text(encoding="utf-8")
            for name in re.findall(r"`\.?([A-Za-z_]\w*(?:\.\w+)*)`", words):
                assert all(re.search(rf"\b{part}\b", source) for part in name.split(".")), f"{page}: {name} in {file}"
            assert all(title in source for title in re.findall(r'"([^"]+)"', words)), f"{page}: {words}"


def test_the_table_of_the_courses_front_page_has_the_numbers_of_the_experiments():
    front, results = ((ROOT / folder / "README.md").read_text(encoding="utf-8") for folder in ("course", "experiments"))
    numbers = re.findall(r"\d+\.\d ± \d\.\d %|\d+,\d{3}", front)
    assert len(numbers) == 6 and all(number in results for number in numbers)


def test_every_train_command_of_a_page_parses():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    commands = re.findall(r"^python train\.py(.*)$", pages, re.MULTILINE)
    assert commands and all(train.parse_args(flags.replace("SEED", "0").split()) for flags in commands)

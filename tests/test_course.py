"""The course judges rightly: solutions are green, holes are red, each typical mistake gets its sentence, no trick helps."""

import ast

import pytest
from conftest import ROOT
from course_reports import write_reports

from course import judge
from course.judge import LESSONS, results
from course.real import tiny

SOLUTIONS = ROOT / "tests/course_solutions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student's folder, with runs in it."""
    path = tmp_path_factory.mktemp("student")
    write_reports(path)
    return path


def solution(number):
    return (SOLUTIONS / f"lesson{number}.py").read_text(encoding="utf-8")


def first_problem(number, source, folder):
    """The first red sentence that a student reads about a file, or None."""
    (folder / "exercise.py").write_text(source, encoding="utf-8")
    red = (f"{r['problem']} -> {r['remedy']}" for r in results(number, folder / "exercise.py") if r["problem"])
    problem = next(red, None)
    assert not any(any(layer.self_attn.updates.values()) for layer in tiny()[0].model.layers), "an update stayed"
    return problem


@pytest.mark.parametrize("number", LESSONS)
def test_a_solution_is_green_and_says_what_was_measured(number, folder):
    (folder / "exercise.py").write_text(solution(number), encoding="utf-8")
    judged = list(results(number, folder / "exercise.py"))
    assert [r["problem"] for r in judged] == [""] * len(judged)
    assert any(r["measured"] for r in judged)


@pytest.mark.parametrize("number", LESSONS)
def test_every_check_is_red_while_the_holes_are_open(number):
    problems = [r["problem"] for r in results(number, ROOT / f"course/lesson{number}/exercise.py")]
    assert all(problems) and problems[0] == "not written yet: replace `raise NotImplementedError`"


HOLES = [(n, f.name) for n in LESSONS for f in ast.parse(solution(n)).body if isinstance(f, ast.FunctionDef)]


@pytest.mark.parametrize("number, name", HOLES, ids=[f"{number}-{name}" for number, name in HOLES])
def test_a_constant_or_what_came_in_is_no_answer(number, name, folder):
    for answer in ("0", "{}", "None", "args[0] if args else []"):
        assert first_problem(number, solution(number) + f"\n\ndef {name}(*args):\n    return {answer}\n", folder), answer


def mistakes():
    """(lesson, words of its solution, what a student writes in their place, words of the sentence or "green")."""
    for line in (ROOT / "tests/course_mistakes.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# lesson"):
            number = int(line.split()[2])
        else:
            yield number, *(part.replace("\\n", "\n") for part in line.split(" ~ "))


MISTAKES = list(mistakes())
assert len(MISTAKES) >= 170


@pytest.mark.parametrize("number, old, new, words", MISTAKES, ids=[f"{n}-{words}" for n, _, _, words in MISTAKES])
def test_a_mistake_or_a_trick_gets_its_sentence_and_an_honest_file_none(number, old, new, words, folder):
    assert solution(number).count(old) == 1
    assert words in (first_problem(number, solution(number).replace(old, new), folder) or "green")


def test_torch_changed_behind_an_alias_does_not_turn_a_wrong_answer_green(folder, monkeypatch):
    """The judge compares by functions that it took before the exercise was loaded."""
    for name in ("equal", "allclose"):
        monkeypatch.setattr(f"torch.{name}", lambda *a, **k: True)  # as `t = torch; t.equal = ...` would do
    wrong = solution(5).replace("v + s * (M * x)", "v + (M * x)")
    assert "the factor s is missing" in first_problem(5, wrong, folder)


def test_a_loop_without_an_end_turns_red_and_the_checks_before_it_keep_their_results(folder, monkeypatch, capfd):
    source = solution(3).replace("return y + alpha", "print('hello')\n    while True:\n        pass\n    return y + alpha")
    (folder / "exercise.py").write_text(source)
    monkeypatch.setattr(judge, "LIMIT", 5)
    judged = list(judge.judge(3, folder / "exercise.py"))
    assert [bool(r["problem"]) for r in judged] == [False, True, True]
    assert "loop" in judged[1]["remedy"] and "hello" in capfd.readouterr().err

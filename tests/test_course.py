"""The course judges rightly: solutions are green, holes are red, and each typical mistake gets its sentence."""

import pytest
from conftest import ROOT
from course_mistakes import MISTAKES
from course_reports import write_reports

from backbones.layers import fused_attention
from course.checks import tiny
from course.judge import LESSONS, judge
from course.lesson8 import check as lesson8

SOLUTIONS = ROOT / "tests/course_solutions"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Where lesson 8 looks for runs."""
    write_reports(tmp_path)
    monkeypatch.setattr(lesson8, "ROOT", tmp_path)


@pytest.fixture(autouse=True)
def left_as_it_was():
    """Whatever an exercise does, the real model is the frozen one afterwards."""
    yield
    for layer in tiny()[0].model.layers:
        assert not any(layer.self_attn.adapters.values()) and layer.self_attn.attention is fused_attention


def solution(number):
    return SOLUTIONS / f"lesson{number}.py"


def first_problem(number, file):
    """The first red sentence that a student reads, or None."""
    return next((found for _, found in judge(number, file, all_checks=False) if found), None)


@pytest.mark.parametrize("number", LESSONS)
def test_a_solution_is_green(number):
    assert {found for _, found in judge(number, solution(number))} == {None}


@pytest.mark.parametrize("number", LESSONS)
def test_every_check_is_red_while_the_holes_are_there(number):
    assert {found for _, found in judge(number)} == {"not written yet: replace `raise NotImplementedError`"}


CASES = [(number, *case) for number, cases in MISTAKES.items() for case in cases]


@pytest.mark.parametrize("number, old, new, words", CASES, ids=[f"{n}-{words}" for n, _, _, words in CASES])
def test_a_typical_mistake_gets_its_sentence(number, old, new, words, tmp_path):
    source = solution(number).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} is to be in the solution once"
    (tmp_path / "exercise.py").write_text(source.replace(old, new), encoding="utf-8")
    assert words in (first_problem(number, tmp_path / "exercise.py") or "green")

"""The course judges rightly: solutions are green, holes are red, and each typical mistake gets its sentence."""

import ast

import pytest
from conftest import ROOT
from course_mistakes import MISTAKES
from course_reports import write_reports

from course.checks import tiny
from course.judge import LESSONS, judge
from course.lesson8 import check as lesson8
from parts.backbones.layers import fused_attention

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


def functions(number):
    return [node.name for node in ast.parse(solution(number).read_text(encoding="utf-8")).body if hasattr(node, "args")]


HOLES = [(number, name) for number in LESSONS for name in functions(number)]


@pytest.mark.parametrize("number, name", HOLES, ids=[f"{number}-{name}" for number, name in HOLES])
def test_a_constant_or_what_came_in_is_no_answer(number, name, tmp_path):
    source = solution(number).read_text(encoding="utf-8")
    for answer in ("0", "{}", "args[0] if args else []"):
        cheat = f"\n\ndef {name}(*args):\n    return {answer}\n"
        (tmp_path / "exercise.py").write_text(source + cheat, encoding="utf-8")
        assert first_problem(number, tmp_path / "exercise.py"), answer


CASES = [(number, *case) for number, cases in MISTAKES.items() for case in cases]


@pytest.mark.parametrize("number, old, new, words", CASES, ids=[f"{n}-{words}" for n, _, _, words in CASES])
def test_a_typical_mistake_gets_its_sentence(number, old, new, words, tmp_path):
    source = solution(number).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} is to be in the solution once"
    (tmp_path / "exercise.py").write_text(source.replace(old, new), encoding="utf-8")
    assert words in (first_problem(number, tmp_path / "exercise.py") or "green")


# -- lesson 8: an experiment with more than one fault


def problems(number, changes, folder):
    """The red sentences of a solution with changes {old: new}."""
    source = solution(number).read_text(encoding="utf-8")
    for old, new in changes.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    (folder / "exercise.py").write_text(source, encoding="utf-8")
    return [found for _, found in judge(number, folder / "exercise.py") if found]


def test_all_faults_of_a_description_are_said_at_once(tmp_path):
    changes = {
        '"margin": 0.02': '"margin": 2',
        '"No difference in words: both find as many of them as before."': '"No."',
    }
    (found,) = [said for said in problems(8, changes, tmp_path) if "margin:" in said and "\n" in said]
    assert "did_not_show: 'No.' is too short" in found
    (found, *_) = problems(8, {'"claim": ': '"CLAIM": ', '"verdict": "better"': '"verdict": 1'}, tmp_path)
    assert found == "claim: missing\nverdict: 1 is not a word"


def test_all_faults_of_the_runs_and_of_the_result_are_said_at_once(tmp_path):
    (runs, _) = problems(
        8,
        {'"runs/probed-2"': '"runs/few-2"', '["selection"]': '["rank"]', '"runs/random-2"': '"runs/random-3"'},
        tmp_path,
    )
    assert [line.split(":")[0] for line in runs.splitlines()] == [
        "the seeds are [0, 1, 2] and [0, 1, 3]",
        "the runs of a differ in heads",
        "a and b differ in selection; `changed` says rank",
    ]
    (result,) = problems(8, {"[0.015, 0.065]": "[1.5, 6.5]", '"verdict": "better"': '"verdict": "worse"'}, tmp_path)
    assert "a share of 0.02" in result and "verdict: 'worse'" in result
    for found in problems(8, {'"runs/probed-2"': '"runs/gone"', '"runs/random-2"': '"runs/lost"'}, tmp_path):
        assert "gone" in found and "lost" in found


@pytest.mark.parametrize("spelling", ["--selection", "selection"])
def test_a_flag_may_have_its_dashes(spelling, tmp_path):
    assert not problems(8, {'["selection"]': f'["{spelling}"]'}, tmp_path)
    assert {lesson8.as_argument(flag) for flag in ("--no-base", "no_base", "base")} == {"base"}


def test_what_only_follows_from_a_flag_is_no_second_difference():
    """--ablate makes another method of a run, and a method has a learning rate of its own."""
    as_in_the_paper = {"arguments": {"ablate": [], "method": "image-lora", "lr": 0.02, "seed": 0, "given": ["seed"]}}
    other = {"arguments": {"ablate": ["norm=off"], "method": "ablation", "lr": 0.03, "seed": 1, "given": ["ablate", "seed"]}}
    assert lesson8.different(as_in_the_paper, other) == ["ablate"]
    other["arguments"]["given"] = ["ablate", "lr"]
    assert lesson8.different(as_in_the_paper, other) == ["ablate", "lr"]

"""How an exercise is judged: in a process of its own, for at most a minute, so that nothing hangs and nothing leaks.

A check is a function check_... of lessonN/check.py that takes the student's module; its docstring is what is checked. It
raises Wrong with a sentence that names the mistake, or returns one that says what was measured. Each is worth a point.
"""

import ast
import importlib
import json
import subprocess
import sys
import threading
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXERCISES = ROOT / "exercises"  # the student's files, lesson1.py and so on
LIMIT = 60  # seconds for a lesson
LESSONS = range(1, 11)
ALLOWED = {"torch", "math", "random", "itertools", "functools", "collections", "statistics", "typing", "copy", "dataclasses"}
BUILTINS = {"__import__", "__builtins__", "exec", "eval", "compile", "open", "globals", "setattr", "delattr"}


class Wrong(Exception):
    """An answer is wrong. The text is what the student reads: "symptom -> remedy"."""


def judge(number, file):
    """Judge a file in a process of its own: yield its `results`, each as soon as it is there."""
    command = [sys.executable, "-m", "course", "judge", str(number), str(Path(file).absolute())]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as child:
        titles = json.loads(child.stdout.readline() or "[]")  # torch is loaded, the exercise is not
        if not titles:
            raise RuntimeError(f"the judge of lesson {number} did not start")
        alarm = threading.Timer(LIMIT, child.kill)
        alarm.start()
        try:
            for line in child.stdout:
                titles.pop(0)
                yield json.loads(line)
        finally:
            alarm.cancel()
            child.kill()
    for title in titles:
        yield result(title, f"no answer within {LIMIT} s, or the process died -> is there a loop that never ends?")


def checks_of(number):
    """The checks of a lesson, in the order in which they are written."""
    lesson = vars(importlib.import_module(f"course.lesson{number}.check"))
    return [function for name, function in lesson.items() if name.startswith("check_")]


def judge_here(number, file):
    """What that process does: print the titles of the checks, then a line for each result."""
    lines, sys.stdout = sys.stdout, sys.stderr  # what a student prints must not get in between
    print(json.dumps([check.__doc__ for check in checks_of(number)]), file=lines, flush=True)
    for line in results(number, file):
        print(json.dumps(line), file=lines, flush=True)


def results(number, file):
    """Yield the result of each check of a lesson."""
    checks = checks_of(number)  # they hold torch's own functions
    import torch

    torch.set_num_threads(1)  # the models are small: more threads would wait for each other
    student = None
    for check in checks:
        torch.manual_seed(number)
        problem = measured = None
        try:
            student = student or load_exercise(file)
            measured = check(student)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a student's code raises is to be judged)
            problem = in_words(error, file)
        yield result(check.__doc__, problem, measured)


def result(title, problem=None, measured=None):
    """What a check says: its sentence, what is wrong, what to do about it, what was measured."""
    symptom, _, remedy = (problem or "").partition(" -> ")
    return {"title": title, "problem": symptom, "remedy": remedy, "measured": measured or ""}


def in_words(error, file):
    """The sentence that a student reads about an error in a check."""
    if isinstance(error, Wrong):
        return str(error)
    if isinstance(error, NotImplementedError):
        return "not written yet: replace `raise NotImplementedError`"
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if lines:
        return f"{file.name}, line {lines[-1]}: {words}"
    return f"what your function returned could not be used ({words}) -> compare it with the docstring"


def load_exercise(file):
    """The student's file as a module. Raises Wrong if it does not load, or takes its answer from elsewhere."""
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except FileNotFoundError:
        raise Wrong(f"{file.name} is missing -> write it again with --reset") from None
    except SyntaxError as error:
        raise Wrong(f"{file.name}, line {error.lineno}: Python cannot read it ({error.msg})") from None
    refuse(tree, file.name)
    student = types.ModuleType("exercise")
    student.__file__ = str(file)
    exec(compile(source, str(file), "exec"), vars(student))  # noqa: S102 (to judge it, it has to run)
    return student


def refuse(tree, name):
    """Raise Wrong where a file takes its answer from elsewhere or changes torch, with the line and what to do. This
    stops habits and simple tricks; it is no sandbox."""
    nodes, imported, assigned = list(ast.walk(tree)), set(), set()
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assigned.add(node.id)
        elif isinstance(node, (ast.arg, ast.FunctionDef)):
            assigned.add(getattr(node, "arg", None) or node.name)
    for node in nodes:
        words = None
        if isinstance(node, ast.Import) and {alias.name.split(".")[0] for alias in node.names} - ALLOWED:
            words = "an answer must not come from elsewhere: write it yourself, with torch alone"
        if isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] not in ALLOWED):
            words = "an answer must not come from elsewhere: write it yourself, with torch alone"
        if isinstance(node, ast.Name) and node.id in BUILTINS - assigned:
            words = "this is Python's own, and an exercise does without it: if you mean a variable, assign it first"
        stored = isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load)
        if stored and ast.unparse(node).split(".")[0].split("[")[0] in imported - assigned:
            words = "this would change it for everybody: keep your value in a variable of your own"
        if words:
            raise Wrong(f"{name}, line {node.lineno}, `{ast.unparse(node)}`: {words}")

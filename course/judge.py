"""How an exercise is judged: in a process of its own, for at most a minute, so that nothing hangs and nothing leaks.

A check is a function check_... of lessonN/check.py that takes the student's module; its docstring is what is checked. It
raises Wrong with a sentence that names the mistake, or returns one that says what was measured. Each is worth a point.
"""

import ast
import builtins
import importlib
import json
import subprocess
import sys
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXERCISES = ROOT / "exercises"  # the student's files, lesson1.py and so on
LIMIT = 60  # seconds for a lesson
LESSONS = range(1, 11)
ALLOWED = {"torch", "math", "random", "itertools", "functools", "collections", "statistics", "typing", "copy", "dataclasses"}
REFUSED = ("exec", "eval", "compile", "open", "globals", "setattr", "delattr")  # of Python's own functions


class Wrong(Exception):
    """An answer is wrong. The text is what the student reads: "symptom -> remedy"."""


def judge(number, file):
    """Judge a file in a process of its own: its `results`. One that does not end keeps those that it has."""
    command = [sys.executable, "-m", "course", "judge", str(number), str(Path(file).absolute())]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    try:
        lines = subprocess.run(command, cwd=ROOT, timeout=LIMIT, check=False, **pipes).stdout
    except subprocess.TimeoutExpired as error:
        lines = error.stdout
    if not lines:
        raise RuntimeError(f"the judge of lesson {number} did not start")
    titles, *judged = map(json.loads, lines.splitlines())
    for title in titles[len(judged) :]:
        judged.append(result(title, f"no answer within {LIMIT} s, or the process died -> is there a loop that never ends?"))
    return judged


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
    """The sentence that a student reads about an error in a check, with the line of their file where it happened."""
    if isinstance(error, NotImplementedError):
        return "not written yet: replace `raise NotImplementedError`"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    where = f"{file.name}, line {lines[-1]}: " if lines else ""
    if isinstance(error, Wrong):
        return f"{where}{error}"
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return where + words if where else f"what your function returned could not be used ({words}) -> compare it with the docstring"


def load_exercise(file):
    """The student's file as a module. Raises Wrong if it does not load, or takes its answer from elsewhere: it imports only
    ALLOWED modules, changes none of them, and does without REFUSED. This stops habits and simple tricks; it is no sandbox."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        code = compile(tree, str(file), "exec")
    except FileNotFoundError:
        raise Wrong(f"{file.name} is missing -> write it again with --reset") from None
    except SyntaxError as error:
        raise Wrong(f"{file.name}, line {error.lineno}: Python cannot read it ({error.msg})") from None
    refuse_changes(tree, file.name)
    student = types.ModuleType("exercise")
    functions = vars(builtins) | dict.fromkeys(REFUSED, refused) | {"__import__": import_allowed}
    vars(student).update(__file__=str(file), __builtins__=functions)
    exec(code, vars(student))  # noqa: S102 (to judge it, it has to run)
    return student


def refused(*_):
    raise Wrong("an answer must not come from elsewhere: write it yourself, with torch alone")


def import_allowed(module, *details):
    """The `import` of an exercise."""
    return __import__(module, *details) if module.split(".")[0] in ALLOWED else refused()


def refuse_changes(tree, name):
    """Raise Wrong where a file would change what it imports, `torch.equal = ...` say: it would change for the judge, too."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        stored = isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load)
        if stored and ast.unparse(node).replace("[", ".").split(".")[0] in imported:
            raise Wrong(f"{name}, line {node.lineno}: `{ast.unparse(node)}` changes it for everybody: use a variable of your own")

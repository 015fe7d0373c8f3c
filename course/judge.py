"""How an exercise is judged: in a process of its own, for at most a minute, so that nothing hangs and nothing leaks.

A check is a plain function of lessonN/check.py that takes the student's module. Its docstring is the sentence that is
checked. It raises Wrong with a sentence that names the mistake, or returns a sentence that says what was measured.
One point for each green check. This file imports no torch: only the process that judges needs it.
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
LESSONS = {  # number: title
    1: "What a vision-language model reads",
    2: "Attention by hand, and why a value and not a key",
    3: "LoRA in ten lines",
    4: "Why not train everything?",
    5: "The mask: visual tokens only",
    6: "Heads: one A, a B for each, 1/sqrt(n)",
    7: "The probe: which heads",
    8: "The budget over the layers, and tau",
    9: "An experiment of your own",
    10: "An adapter of your own",
}
ALLOWED = {"torch", "math", "random", "itertools", "functools", "collections", "statistics", "typing", "copy", "dataclasses"}
BUILTINS = {"__import__", "__builtins__", "exec", "eval", "compile", "open", "globals", "setattr", "delattr"}
MODULES = {"sys", "os", "importlib", "builtins", "inspect", "gc", "__subclasses__", "__dict__"}  # as in torch.sys


class Wrong(Exception):
    """An answer is wrong. The text is what the student reads: "symptom -> remedy"."""


# ------------------------------------------------------------------------------------------------- in its own process


def judge(number, file):
    """Judge a file in a process of its own: yield the dicts of `results`, each as soon as it is known to the process."""
    command = [sys.executable, "-m", "course", "judge", str(number), str(Path(file).absolute())]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as child:
        titles = json.loads(child.stdout.readline() or "[]")  # it has loaded torch
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
    words = f"no answer within {LIMIT} s, or the process died -> is there a loop that never ends?"
    yield from (result(title, words) for title in titles)


def judge_here(number, file):
    """What that process does: print the titles of the checks, then a line for each result."""
    lines, sys.stdout = sys.stdout, sys.stderr  # what a student prints must not get in between
    print(json.dumps([title(check) for check in checks_of(number).CHECKS]), file=lines, flush=True)
    for line in results(number, file):
        print(json.dumps(line), file=lines, flush=True)


def checks_of(number):
    """The module with a lesson's CHECKS and its ANSWER to the question that was asked before it."""
    return importlib.import_module(f"course.lesson{number}.check")


def title(check):
    return " ".join(check.__doc__.split())


def results(number, file):
    """Yield the result of each check of a lesson."""
    import torch

    torch.set_num_threads(1)  # the models are small: more threads would wait for each other
    checks, student = checks_of(number).CHECKS, None  # loaded before the exercise: they hold torch's own functions
    for check in checks:
        torch.manual_seed(number)
        problem = measured = None
        try:
            student = student or load_exercise(file)
            measured = check(student)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a student's code raises is to be judged)
            problem = in_words(error, file)
        yield result(title(check), problem, measured)


def result(title, problem=None, measured=None):
    """What is known about a check: its sentence, what is wrong, what to do about it, what was measured."""
    symptom, _, remedy = (problem or "").partition(" -> ")
    return {"title": title, "problem": symptom, "remedy": remedy, "measured": measured or ""}


def in_words(error, file):
    """The sentence that a student reads about an error in a check."""
    if isinstance(error, Wrong):
        return str(error)
    if isinstance(error, NotImplementedError):
        return "not written yet: replace `raise NotImplementedError`"
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    if lines:
        return f"{Path(file).name}, line {lines[-1]}: {words}"
    return f"what your function returned could not be used ({words}) -> compare it with the docstring"


# --------------------------------------------------------------------------------------------------- the student's file


def load_exercise(file):
    """The student's file as a module. Raises Wrong if it does not load, or takes its answer from elsewhere."""
    file = Path(file)
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
    nodes = list(ast.walk(tree))
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assigned |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    assigned |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for node in nodes:
        words = None
        if node in imports and sources(node) - ALLOWED:
            words = "an answer must not come from elsewhere: write it yourself, with torch alone"
        if isinstance(node, ast.Name) and node.id in BUILTINS - assigned:
            words = "this is Python's own, and an exercise does without it: if you mean a variable, assign it first"
        if isinstance(node, (ast.Attribute, ast.Subscript)) and owner(node) in imported - assigned:
            if not isinstance(node.ctx, ast.Load):
                words = "this would change it for everybody: keep your value in a variable of your own"
            if isinstance(node, ast.Attribute) and node.attr in MODULES:
                words = "an answer must not come from elsewhere: write it yourself, with torch alone"
        if words:
            raise Wrong(f"{name}, line {node.lineno}, `{ast.unparse(node)}`: {words}")


def sources(node):
    """Where an import statement leads: the names of modules."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    hidden = MODULES & {alias.name for alias in node.names}  # from torch import os
    return {"." * node.level + (node.module or "").split(".")[0], *hidden}


def owner(node):
    """The name at the beginning of a.b.c[d]."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return getattr(node, "id", None)

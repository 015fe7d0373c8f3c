"""How an exercise is judged: its file is loaded, each check of the lesson gets it, and says what is wrong, if anything.

A check is a plain function of check.py that takes the student's module. Its docstring is the sentence that is checked.
It returns nothing, or raises Wrong with a sentence that names the mistake. One point for each green check.
"""

import ast
import importlib
import sys
import traceback
import types
from contextlib import redirect_stdout
from pathlib import Path

import torch

from course.checks import Wrong

HERE = Path(__file__).parent
ROOT = HERE.parent
LESSONS = {  # number: title
    1: "What a vision-language model reads",
    2: "Attention by hand, and why a value and not a key",
    3: "LoRA in ten lines",
    4: "The mask: visual tokens only",
    5: "Heads: one A, a B for each, 1/sqrt(n)",
    6: "The probe: which heads",
    7: "The budget over the layers, and tau",
    8: "An experiment of your own",
}
ALLOWED = {"torch", "math", "itertools", "functools", "collections", "statistics", "typing"}  # to import
MODULES = {"importlib", "builtins", "sys", "os", "subprocess", "inspect", "gc"}  # ways around an import that is seen
FUNCTIONS = {"__import__", "__builtins__", "exec", "eval", "compile", "open", "globals"}


def exercise_file(number):
    return HERE / f"lesson{number}/exercise.py"


def checks_of(number):
    return importlib.import_module(f"course.lesson{number}.check").CHECKS


def load_exercise(file):
    """The student's file as a module. Raises Wrong if it does not load or takes what it should write from this project."""
    try:
        source = file.read_text(encoding="utf-8")
        refuse_imports(ast.parse(source))
    except FileNotFoundError:
        raise Wrong(f"{file.name} is missing: write it again from the lesson") from None
    except SyntaxError as error:
        raise Wrong(f"{file.name}, line {error.lineno}: Python cannot read it ({error.msg})") from None
    student = types.ModuleType("exercise")
    exec(compile(source, str(file), "exec"), vars(student))  # noqa: S102 (to judge it, it has to run)
    return student


def has_holes(file):
    """Whether every function of an exercise still ends in `raise NotImplementedError`."""
    functions = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return all(ast.unparse(function.body[-1]) == "raise NotImplementedError" for function in functions)


def refuse_imports(tree):
    """Raise Wrong if the file imports more than it needs, or hides where an import leads."""
    for node in ast.walk(tree):
        refused = set()
        if isinstance(node, ast.Import):
            refused = {alias.name.split(".")[0] for alias in node.names} - ALLOWED
        if isinstance(node, ast.ImportFrom):
            refused = {"." * node.level + (node.module or "").split(".")[0]} - ALLOWED
            refused |= {alias.name for alias in node.names} & MODULES
        if isinstance(node, ast.Name):
            refused = {node.id} & (MODULES | FUNCTIONS)
        if isinstance(node, ast.Attribute):
            refused = {node.attr} if node.attr in MODULES or node.attr.startswith("__") else set()
        for name in refused:
            raise Wrong(f"the exercise takes its answer from elsewhere ({name}): write it yourself, with torch alone")


def problem(task, file):
    """Run task() of the student's code: None if all is well, else the sentence that the student reads."""
    try:
        with redirect_stdout(sys.stderr):  # what a student prints must not get into the grades
            task()
    except Wrong as wrong:
        return str(wrong)
    except NotImplementedError:
        return "not written yet: replace `raise NotImplementedError`"
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a student's code raises is an answer to be judged)
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        if lines:
            return f"{file.name}, line {lines[-1]}: {said}"
        return f"what your function returned could not be used ({said}): compare it with the docstring"
    return None


def judge(number, file=None, all_checks=True):
    """Yield (the sentence of a check, the problem or None) for a lesson; all_checks False: end after the first red one."""
    file = file or exercise_file(number)
    loaded = []
    broken = problem(lambda: loaded.append(load_exercise(file)), file)
    for check in checks_of(number):
        torch.manual_seed(number)
        found = broken or problem(lambda check=check: check(loaded[0]), file)
        yield " ".join(check.__doc__.split()), found
        if found and not all_checks:
            return


def grade():
    """{"points", "of", "lessons": {number: {"title", "points", "of", "red": {sentence: problem}}}}."""
    lessons = {}
    for number, title in LESSONS.items():
        results = list(judge(number))
        red = {sentence: found for sentence, found in results if found}
        lessons[number] = {"title": title, "points": len(results) - len(red), "of": len(results), "red": red}
    total = {key: sum(lesson[key] for lesson in lessons.values()) for key in ("points", "of")}
    return total | {"lessons": lessons}

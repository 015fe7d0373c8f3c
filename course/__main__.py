"""The course: ten lessons, each a page, a file with holes, and checks that name your mistake. Begin with course/README.md.

    python -m course               the lessons in order, up to the first one that is red
    python -m course 4             one lesson; --hint: what to do about a mistake
    python -m course 4 --reset     the file with holes again; yours is kept as lesson4.old.py
    python -m course train ...     your own adapter through train.py (lesson 10)
"""

import argparse
import shutil
import sys
from pathlib import Path

from course import judge, teacher
from course.judge import EXERCISES, LESSONS, ROOT, Wrong
from parts.files import InputError


def file_of(number):
    return EXERCISES / f"lesson{number}.py"


def reset(numbers):
    """Write exercises with holes. A file that exists is kept beside it, as lessonN.old.py."""
    EXERCISES.mkdir(exist_ok=True)
    for number in numbers:
        if file_of(number).exists():
            file_of(number).replace(EXERCISES / f"lesson{number}.old.py")
        shutil.copyfile(ROOT / f"course/lesson{number}/exercise.py", file_of(number))


def show(number, hint=False, answers=True):
    """Judge a lesson and print its checks up to the first red one; True if all are green.
    hint: print the remedy, too; answers: print the answers to a green lesson's question."""
    page, after = (ROOT / f"course/lesson{number}/{name}.md" for name in ("lesson", "after"))
    print("\n" + page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    for result in judge.judge(number, file_of(number)):
        print(f"  {'red  ' if result['problem'] else 'green'}  {result['title']}")
        if result["measured"]:
            print(f"         {result['measured']}")
        if result["problem"]:
            print(f"\n    {result['problem']}")
            if result["remedy"]:
                print(f"    What to do: {result['remedy'] if hint else f'python -m course {number} --hint'}")
            print(f"\n    Read course/lesson{number}/lesson.md, change exercises/lesson{number}.py.")
            return False
    if answers:
        print("\n" + after.read_text(encoding="utf-8"))
        print(f"Next: course/lesson{number + 1}/lesson.md" if number + 1 in LESSONS else "That was the last lesson.")
    return True


def run(argv):
    """What the command line says; True if all is green."""
    parser = argparse.ArgumentParser(prog="python -m course", description=__doc__.splitlines()[0])
    parser.add_argument("lesson", nargs="?", type=int, choices=LESSONS, help="a single lesson, 1 to 10")
    parser.add_argument("--hint", action="store_true", help="also say what to do about a red check")
    parser.add_argument("--reset", action="store_true", help="write the exercise with its holes again")
    several = {"nargs": "*", "metavar": "FOLDER", "type": Path}
    parser.add_argument("--grade", help="points as CSV, and results.json in each folder", **several)
    parser.add_argument("--class", dest="together", help="what the class measured together in lesson 9", **several)
    parser.add_argument("--hand-out", metavar="FOLDER", type=Path, help="write a copy for students")
    args = parser.parse_args(argv)
    numbers = [args.lesson] if args.lesson else list(LESSONS)
    if args.hand_out:
        return teacher.hand_out(args.hand_out)
    if args.grade is not None:
        return teacher.grade(args.grade or [EXERCISES])
    if args.together is not None:
        return teacher.together(args.together or [EXERCISES])
    if args.reset:
        return reset(numbers)
    reset([number for number in LESSONS if not file_of(number).exists()])
    return all(show(number, args.hint, answers=bool(args.lesson)) for number in numbers)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["judge"]:  # the process that judge.judge starts
            judge.judge_here(int(argv[1]), Path(argv[2]))
        elif argv[:1] == ["train"]:
            from course import mine  # it imports torch

            mine.main(argv[1:])
        elif run(argv) is False:
            sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, Wrong, NotImplementedError) as error:
        print(f"error: {error or 'a hole of the lessons 1, 7 or 10 is still open'}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

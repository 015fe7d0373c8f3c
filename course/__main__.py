"""The course: ten lessons of 20 to 40 minutes, each a page, a file with holes, and checks that name your mistake.

    python -m course               the lessons in order, up to the first one that is red
    python -m course 4             one lesson
    python -m course 4 --hint      what is wrong, and what to do about it
    python -m course 4 --watch     again whenever your file changes
    python -m course 4 --reset     the file with holes again; yours is kept as lesson4.old.py
    python -m course train ...     your own adapter through train.py (lesson 10)

Read course/lesson1/lesson.md first, fill the holes of exercises/lesson1.py, run `python -m course`, and so on.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from course import judge, teacher
from course.judge import EXERCISES, LESSONS, ROOT, Wrong
from parts.files import InputError

PROGRESS = EXERCISES / "progress.json"  # {"green": [numbers], "red": {number: title of the check}}


def reset(numbers):
    """Write exercises with holes. A file that exists is kept beside it, as lessonN.old.py."""
    EXERCISES.mkdir(exist_ok=True)
    for number in numbers:
        file = EXERCISES / f"lesson{number}.py"
        if file.exists():
            file.replace(EXERCISES / f"lesson{number}.old.py")
        shutil.copyfile(ROOT / f"course/lesson{number}/exercise.py", file)
        print(f"written: {file.relative_to(ROOT)}")


def begin():
    """Write the exercises that are missing."""
    reset(number for number in LESSONS if not (EXERCISES / f"lesson{number}.py").exists())


def show(number, hint=False, again=True):
    """Judge a lesson and print its checks up to the first red one; True if all are green. The remedy is printed with
    `hint`, or if the same check was red the last time, too. again: print the answers also if it was green before."""
    progress = json.loads(PROGRESS.read_text()) if PROGRESS.exists() else {"green": [], "red": {}}
    before, last = set(progress["green"]), progress["red"].pop(str(number), None)
    progress["green"] = sorted(before - {number})
    print(f"\nLesson {number}. {LESSONS[number]}")
    for result in judge.judge(number, EXERCISES / f"lesson{number}.py"):
        print(f"  {'red  ' if result['problem'] else 'green'}  {result['title']}")
        if result["measured"]:
            print(f"         {result['measured']}")
        if result["problem"]:
            print(f"\n    {result['problem']}")
            if result["remedy"] and (hint or last == result["title"]):
                print(f"    What to do: {result['remedy']}")
            elif result["remedy"]:
                print(f"    What to do? python -m course {number} --hint")
            print(f"\n    Read course/lesson{number}/lesson.md, change exercises/lesson{number}.py.")
            progress["red"][str(number)] = result["title"]
            break
    else:
        progress["green"] = sorted({*progress["green"], number})
    PROGRESS.write_text(json.dumps(progress))
    green = number in progress["green"]
    if green and (again or number not in before):
        print("\n" + (ROOT / f"course/lesson{number}/after.md").read_text(encoding="utf-8"))
        following = [other for other in LESSONS if other not in progress["green"]]
        rest = f"Next: course/lesson{following[0]}/lesson.md, then python -m course {following[0]}" if following else ""
        print(f"{len(progress['green'])} of {len(LESSONS)} lessons are green. {rest}")
    return green


def watch(numbers, hint):
    """Judge the lessons whenever one of their files has changed, until Ctrl-C."""
    seen = None
    while True:
        times = [(EXERCISES / f"lesson{number}.py").stat().st_mtime for number in numbers]
        if times != seen:
            seen = times
            all(show(number, hint) for number in numbers)
            print("\n(waiting for a change; Ctrl-C ends)")
        time.sleep(1)


def make_parser():
    usage = "python -m course [LESSON] [flags]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    parser.add_argument("lesson", nargs="?", type=int, choices=LESSONS, help="a single lesson, 1 to 10")
    parser.add_argument("--hint", action="store_true", help="also say what to do about a red check")
    parser.add_argument("--watch", action="store_true", help="check again whenever a file changes")
    parser.add_argument("--reset", action="store_true", help="write the lesson's exercise with its holes again")
    group = parser.add_argument_group("for teachers")
    names = {"nargs": "*", "metavar": "FOLDER", "type": Path}
    group.add_argument("--grade", help="print points as CSV, write results.json into each folder", **names)
    group.add_argument("--class", dest="together", help="what the class found in lesson 9 together", **names)
    group.add_argument("--hand-out", metavar="FOLDER", type=Path, help="write a copy for students into a new folder")
    return parser


def run(args):
    """What the flags say; True if all is green."""
    numbers = [args.lesson] if args.lesson else list(LESSONS)
    if args.hand_out:
        return teacher.hand_out(args.hand_out)
    if args.grade is not None:
        return teacher.grade(args.grade or [EXERCISES])
    if args.together is not None:
        return teacher.together(args.together or [EXERCISES])
    if args.reset:
        return reset(numbers)
    begin()
    if args.watch:
        watch(numbers, args.hint)
    return all(show(number, args.hint, again=bool(args.lesson)) for number in numbers)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["judge"]:  # the process that judge.judge starts
            return judge.judge_here(int(argv[1]), Path(argv[2]))
        if argv[:1] == ["train"]:
            from course import mine  # it imports torch

            return mine.main(argv[1:])
        if run(make_parser().parse_args(argv)) is False:
            sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except NotImplementedError:
        print("error: a hole of the lessons 1, 7 or 10 is still open; make them green first", file=sys.stderr)
        sys.exit(2)
    except (InputError, Wrong) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""A process that makes one run of train.py after another: runs.py writes the flags of each to its input, a line a run. What
runs have in common, the processor, the examples and what the encoder gave for their images, is made once."""

import json
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO

import train
from harness import encodings, report


def main():
    """Answers each line of flags with an empty line. A run that fails ends the process; its last line is the answer."""
    encodings.Processor.from_pretrained = cache(encodings.Processor.from_pretrained)
    encodings.load_examples = cache(encodings.load_examples)
    for line in sys.stdin:
        report.STARTED = time.perf_counter()
        printed = StringIO()
        try:
            with redirect_stdout(printed), redirect_stderr(printed):
                train.main(json.loads(line))
        except BaseException as error:  # SystemExit, after a line that says why; or a mistake of the program
            lines = printed.getvalue().strip().splitlines()
            print(lines[-1] if isinstance(error, SystemExit) and lines else repr(error), flush=True)
            raise
        print(flush=True)


if __name__ == "__main__":
    main()

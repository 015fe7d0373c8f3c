"""What the attack tests share: they count their cases and hold each to a line, a time and little memory.

IMAGELORA_ATTACKS=1 draws ten times as many cases; `python -m pytest -s tests/test_attacks_*.py` prints their numbers.
"""

import os
import sys
import time

import pytest

from harness.processes import one_line
from parts.files import InputError

MANY = os.environ.get("IMAGELORA_ATTACKS") == "1"
SECONDS, MEBIBYTES = 2, 500  # of CPU time, which one case may take; by which all may raise the memory


def is_one_line(error, named):
    """An error is one line, not a page, and says what it is about."""
    said = one_line(error)
    assert str(named) in said and len(said.splitlines()) == 1 and len(said) < 2000, said


def most_memory():
    """The most memory that this process has had, in MiB; 0 where the platform does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Count:
    """Counts what came of the cases, and holds them to their time and memory."""

    def __init__(self, what):
        self.what, self.worked, self.refused, self.slowest, self.before = what, 0, 0, 0, most_memory()

    def case(self, named, attempt, *arguments):
        """Run one case: attempt(*arguments) works, or raises an InputError that names `named`."""
        begun = time.process_time()
        try:
            attempt(*arguments)
            self.worked += 1
        except InputError as error:
            is_one_line(error, named)
            self.refused += 1
        self.slowest = max(self.slowest, time.process_time() - begun)

    def close(self):
        more = most_memory() - self.before
        print(
            f"\n{self.what}: {self.worked + self.refused} cases, {self.refused} refused; {self.slowest:.2f} s, ", end=""
        )
        print(f"{more:.0f} MiB more at most")
        assert self.slowest < SECONDS and more < MEBIBYTES


@pytest.fixture
def count(request):
    count = Count(request.node.name)
    yield count
    count.close()

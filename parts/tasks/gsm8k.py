"""GSM8K: sums in words, without an image: what fine-tuning on images must not damage.

    {"question": "Natalia sold clips to 48 of her friends ...", "answer": "... 48+24 = <<48+24=72>>72 clips.\\n#### 72"}

files    <split>.jsonl (github.com/openai/grade-school-math)
splits   train, test; learnt is the solution without the calculator's marks <<...>>
metric   "number": exact match of the number after "####" or, without one there, of the last number of the text
"""

import re
from decimal import Decimal

from parts.tasks.rows import entries, file_of, rows_of

PROMPT = '{}\nThink step by step, and write the final number after "####" at the end.'


def rows(name, root, split):
    file = file_of(root, split, "it is at github.com/openai/grade-school-math", "*.jsonl")
    return rows_of(entries(file), row_of, "a row of GSM8K")


def row_of(row):
    solution = re.sub(r"<<[^<>]*>>", "", row["answer"])
    prompt = PROMPT.format(row["question"])
    yield {"prompt": prompt, "answer": solution, "metric": "number", "reference": answer_of(solution)}


def answer_of(solution):
    """A solution -> the number after its last "####", as a string without commas and "$". A number stays as it is."""
    return solution.rpartition("####")[2].replace(",", "").replace("$", "").strip()


def score(text, reference, *_):
    """Right if the number read from the text equals the reference, a solution with "####" or the number."""
    return (number := parse(text)), float(number is not None and number == parse(answer_of(reference)))


# A minus that is no subtraction and no hyphen (after a digit, letter or bracket), at most three marks of currency (more
# would be counted again from each), digits with commas by the thousand, decimals; but not the 2 of m2, cm^2, CO2.
NUMERAL = re.compile(
    r"((?<![\w)\]%])-)?(?:[\\$£€]{1,3}(-?))?(?<![A-Za-z_^\d])(?<!\d\.)"
    r"((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


def parse(text):
    """The number after the last "####" that a number follows (but no heading, "#### Step 2" or "#### 2. The sum") or else
    the last number of the text: as a string that is equal for equal numbers ("$1,000.00" -> "1000"), or None."""
    text = text.replace("−", "-")
    for tail in reversed(text.split("####")[1:]):
        if number := NUMERAL.search(tail):
            before, after = tail[: number.start()], tail[number.end() :]
            if not re.search(r"\w", before) and not re.match(r"[.)] +[A-Za-z]", after):  # no heading
                return plain(number)
    numbers = [*NUMERAL.finditer(text)]
    return plain(numbers[-1]) if numbers else None


def plain(number):
    """A match of NUMERAL -> "-7.5": without commas, currency, zeros at the ends."""
    *minus, digits = number.groups()
    digits = f"{Decimal(digits.replace(',', '')):f}"  # drops leading zeros
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return "-" + digits if any(minus) and digits != "0" else digits

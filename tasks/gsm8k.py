"""GSM8K: sums in words, without an image: what fine-tuning on images must not damage.

    {"question": "Natalia sold clips to 48 of her friends ...", "answer": "... 48+24 = <<48+24=72>>72 clips.\\n#### 72"}

files    <split>.jsonl (github.com/openai/grade-school-math)
prompt   asks for the steps and for the marks "####" before the number
splits   train, test; learnt is the solution without the calculator's marks <<...>>
metric   "number": exact match of the last number
"""

import re
from decimal import Decimal

from tasks.rows import file_of, json_rows, reading

PROMPT = '{}\nThink step by step, and write the final number behind "####" at the end.'


def rows(name, root, split):
    file = file_of(root, split, "*.jsonl", "it is at github.com/openai/grade-school-math")
    for row, source in json_rows(file):
        with reading(source, "GSM8K"):
            solution = re.sub(r"<<.*?>>", "", row["answer"])
            found = {"prompt": PROMPT.format(row["question"]), "answer": solution}
        yield found | {"metric": "number", "reference": answer_of(solution)}, source


def answer_of(solution):
    """A solution -> the number after its last "####", as a string without commas and "$". A number stays as it is."""
    return solution.rpartition("####")[2].replace(",", "").replace("$", "").strip()


def score(text, reference, *_):
    """Right if the number read from the text equals the reference, a solution with "####" or the number."""
    number = parse(text)
    return number, float(number is not None and number == parse(answer_of(reference)))


# A number: a minus that is no subtraction and no hyphen (after a digit, letter or bracket), a currency, digits with
# commas by the thousand, decimals. Digits after a letter or ^ are part of a name or unit (m2, cm^2, CO2).
NUMERAL = re.compile(
    r"((?<![\w)\]%])-)?(?:[\\$£€]+(-?))?(?<![A-Za-z_^\d])(?<!\d\.)"
    r"((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


def parse(text):
    """The number after the last "####" of generated text or, without that, its last number, as a string that is equal
    for equal numbers ("$1,000.00" -> "1000", "50%" -> "50"), or None."""
    _, mark, tail = text.replace("−", "-").rpartition("####")
    found = NUMERAL.findall(tail)
    if not found:
        return None
    *minus, digits = found[0] if mark else found[-1]
    digits = f"{Decimal(digits.replace(',', '')):f}"  # drops leading zeros
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return "-" + digits if any(minus) and digits != "0" else digits

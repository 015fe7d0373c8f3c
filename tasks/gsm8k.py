"""GSM8K: sums in words, without an image."""

import re
from decimal import Decimal

from tasks.rows import file_of, json_rows, reading

GSM8K_PROMPT = '{}\nThink step by step, and write the final number behind "####" at the end.'


def gsm8k(name, root, split):
    """GSM8K, text only: root/<split>.jsonl (train, test) with "question" and "answer", a solution that ends in "#### 42".
    The calculator's marks <<...>> are left out of what is learnt. Metric: exact match of the last number."""
    for row, source in json_rows(file_of(root, split, "*.jsonl", "see the README for where to get it")):
        with reading(source, "GSM8K"):
            solution = re.sub(r"<<.*?>>", "", row["answer"])
            found = {"prompt": GSM8K_PROMPT.format(row["question"]), "answer": solution}
        yield found | {"metric": "number", "reference": gsm8k_answer(solution)}, source


# A number: a minus that is no subtraction and no hyphen (after a digit, letter or bracket), a currency, digits with
# commas by the thousand, decimals. Digits behind a letter or ^ are part of a name or unit (m2, cm^2, CO2).
NUMERAL = re.compile(
    r"((?<![\w)\]%])-)?(?:[\\$£€]+(-?))?(?<![A-Za-z_^\d])(?<!\d\.)"
    r"((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


def parse_number(text):
    """The number behind the last "####" of generated text or, without that, its last number, as a string that is equal
    for equal numbers ("$1,000.00" -> "1000", "50%" -> "50"), or None."""
    _, mark, tail = text.replace("−", "-").rpartition("####")
    found = NUMERAL.findall(tail)
    if not found:
        return None
    *minus, digits = found[0 if mark else -1]
    digits = f"{Decimal(digits.replace(',', '')):f}"  # drops leading zeros
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return "-" + digits if any(minus) and digits != "0" else digits


def gsm8k_answer(solution):
    """A GSM8K solution -> the number behind its last "####", as a string without commas and "$"; a number stays."""
    return solution.rpartition("####")[2].replace(",", "").replace("$", "").strip()


def score_number(text, reference, *_):
    """GSM8K: right if the number read from the text equals the reference, a solution with "####" or the number."""
    number = parse_number(text)
    return number, float(number is not None and number == parse_number(gsm8k_answer(reference)))

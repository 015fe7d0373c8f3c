"""NExT-QA: questions about videos, five choices.

    video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
    4010069381,369,640,480,how do the two men play the instrument,0,6,CH,roll the handle,tap their feet,...

files    <split>.csv; videos in videos/, each a folder of frames VIDEO/*.jpg, named as the row or map_vid_vidorID.json
         says (github.com/doc-doc/NExT-QA); 8 frames, by frame_count at 30 a second
prompt   that of LLaVA: the options with their letters
splits   train, val, test
metric   "choice": the letter; counted by type (CW, CH, TN, ...) and by causal, temporal, descriptive
"""

import csv
import re

from parts.files import read_json, reading
from parts.tasks.rows import file_of, rows_of

PROMPT = "{}?\n{}\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDE"
GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def rows(name, root, split):
    file = file_of(root, split, "it is at github.com/doc-doc/NExT-QA", "*.csv")
    with reading(file, "a table of NExT-QA"), open(file, encoding="utf-8-sig", newline="") as lines:
        table = list(csv.DictReader(lines))
    named = root / "map_vid_vidorID.json"
    names = read_json(named) if named.exists() else {}  # video -> the name of its folder or file

    def row_of(row):
        options = "\n".join(f"{letter}. {row[f'a{k}']}" for k, letter in enumerate(LETTERS))
        prompt = PROMPT.format(row["question"].strip().rstrip("?"), options)
        asked = {"prompt": prompt, "answer": LETTERS[int(row["answer"])], "metric": "choice"}
        asked |= {"video": f"videos/{names.get(row['video'], row['video'])}", "seconds": int(row["frame_count"]) / 30}
        kind = "TN" if row["type"] == "TP" else row["type"]  # as in the official script
        yield asked | {"kind": kind, "group": GROUPS[row["type"][0]]}

    return rows_of(((row, f"{file}:{i}") for i, row in enumerate(table, 2)), row_of, "a row of NExT-QA")


def score(text, reference, *_):
    """Right if the letter read from the text is the reference, "A".."E"."""
    return (letter := parse(text)), float(letter == reference)


ALONE = r"(?<![\w-])(?<!\w['’])(?:%s)(?![\w+#]|[-'’]\w)"  # "B", "(B)", "B:", but not "Ben", "B's", "C++", "A-level"
LETTER = ALONE % "[A-E]"
CHOICE = ALONE % r"[B-E]|A(?! +(?!is\b|because\b)[a-z])"  # "A dog" has an article, "A is right" a choice
MARKS = r"""[\s:*"'`(\[]*"""  # what may come before the letter: bold, quotes, brackets
PATTERNS = [  # the first that matches counts
    rf"^{MARKS}({CHOICE})",
    rf"(?i:\b(?:answer(?:\s+is)?|(?:option|choice)\s+is)(?:\s+(?:option|choice))?){MARKS}({CHOICE})",
    rf"(?i:\b(?:option|choice)){MARKS}({LETTER})|\(({LETTER})\)",
    rf"({CHOICE})",
]


def parse(text):
    """The letter A..E that generated text chooses, or None. In this order: the letter at the start ("B", "(B) a cup"), the
    one after "answer" ("The answer is (B)."), the one after "option" or in parentheses, any capital letter alone. "A" before
    a lower-case word is an article. A lower-case letter counts if it is the complete text."""
    if small := re.fullmatch(r"\W*([a-e])\W*", text):
        return small[1].upper()
    matches = (re.search(pattern, text.strip()) for pattern in PATTERNS)
    return next((next(filter(None, match.groups())) for match in matches if match), None)

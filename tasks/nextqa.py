"""NExT-QA: questions about videos, five choices."""

import csv
import re

from files import InputError, read_json
from tasks.images import video_frames
from tasks.rows import file_of, reading

NEXTQA_PROMPT = "{}?\n{}\nAnswer with the option's letter from the given choices directly."
NEXTQA_GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}
VIDEO_FRAMES = 8


def nextqa(name, root, split):
    """NExT-QA (VideoQA), multiple choice: root/<split>.csv with video, question, answer (0 to 4), type, a0 ... a4;
    videos in root/videos, each a folder of frames or an animated image, VIDEO or, if map_vid_vidorID.json is there, as it
    says. 8 frames, evenly spread; their rate from the file's clock, else from frame_count at 30 a second (VidOR's).
    Metric: the letter; counted by type (CW, CH, TN, TC, TP, DC, DL, DO) and by causal, temporal, descriptive."""
    file = file_of(root, split, "*.csv", "see the README for where to get it")
    places = root / "map_vid_vidorID.json"
    places = read_json(places) if places.exists() else {}
    with open(file, newline="", encoding="utf-8") as lines:
        for i, row in enumerate(csv.DictReader(lines), start=2):
            source = f"{file}:{i}"
            with reading(source, "NExT-QA"):
                options = "\n".join(f"{letter}. {row[f'a{k}']}" for k, letter in enumerate("ABCDE"))
                found = {"prompt": NEXTQA_PROMPT.format(row["question"].strip().rstrip("?"), options)}
                found |= {"answer": "ABCDE"[int(row["answer"])], "metric": "choice"}
                found |= {"kind": row["type"], "group": NEXTQA_GROUPS[row["type"][0]]}
                video, rate = row["video"], int(row["frame_count"]) / 30
            frames, seconds = video_frames(find_video(root, source, video, places.get(video, video)), VIDEO_FRAMES)
            yield found | {"videos": [frames], "fps": len(frames) / (seconds or rate or 1)}, source


def find_video(root, source, *names):
    for name in names:
        for path in (root / "videos" / f"{name}{suffix}" for suffix in ("", ".gif", ".webp", ".png")):
            if path.exists():
                return path
    hint = f"ffmpeg -i {names[0]}.mp4 -vf fps=2 {root}/videos/{names[0]}/%05d.jpg"
    raise InputError(f"{source}: no folder of frames or animated image {root}/videos/{names[0]}; make one: {hint}")


ALONE = r"(?<![\w-])(?<!\w['’])(?:%s)(?![\w+#]|[-'’]\w)"  # "B", "(B)", "B:", but not "Ben", "B's", "C++", "A-level"
LETTER = ALONE % "[A-E]"
CHOICE = ALONE % r"[B-E]|A(?! +(?!is\b|because\b)[a-z])"  # "A dog" has an article, "A is right" a choice
MARKS = r"""[\s:*"'`(\[]*"""  # what may stand before the letter: bold, quotes, brackets
CHOICE_PATTERNS = [  # the first that is found counts
    rf"^{MARKS}({CHOICE})",
    rf"(?i:\b(?:answer(?:\s+is)?|(?:option|choice)\s+is)(?:\s+(?:option|choice))?){MARKS}({CHOICE})",
    rf"(?i:\b(?:option|choice)){MARKS}({LETTER})|\(({LETTER})\)",
    rf"({CHOICE})",
]


def parse_choice(text):
    """The letter A..E that generated text chooses, or None.

    In this order: the letter at the start ("B", "(B) a cup"), the one after "answer" ("The answer is (B)."), after
    "option" or in parentheses, any capital that stands alone. "A" before a lower-case word is an article. A lower-case
    letter counts if it is the whole text."""
    if small := re.fullmatch(r"\W*([a-e])\W*", text):
        return small[1].upper()
    for pattern in CHOICE_PATTERNS:
        if found := re.search(pattern, text.strip()):
            return next(letter for letter in found.groups() if letter)
    return None


def score_choice(text, reference, *_):
    """Multiple choice: right if the letter read from the text is the reference, "A".."E"."""
    letter = parse_choice(text)
    return letter, float(letter == reference)

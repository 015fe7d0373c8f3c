"""TextVQA: read text in a photograph.

    {"data": [{"image_id": "0054c91397f2fe05", "question": "what is the brand of phone?", "answers": [ten of them]}]}

files    TextVQA_0.5.1_<split>.json, images in train_images/ (textvqa.org/dataset)
prompt   that of LLaVA and Qwen-VL; learnt is the most frequent of the ten answers
splits   train, val (the answers of test are not public)
metric   "vqa": agreement with ten people, see `score`
"""

import re
from collections import Counter

from parts.files import read_json, reading
from parts.tasks.rows import WORDS, file_of, rows_of

PROMPT = "{}\nAnswer the question using a single word or phrase."
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
SAME = {word: str(n) for n, word in enumerate(WORDS["numbers"][:11])} | {"none": "0", "a": "", "an": "", "the": ""}
# Each contraction by its spellings with one apostrophe missing: couldnt've and couldn'tve, but not couldntve. What could
# be another word (its, well, were, id, lets) is not on the official list; one entry is the wrong way round there.
SPELLINGS = {"somebody'd": "somebodyd"}
for word in WORDS["contractions"]:
    SPELLINGS |= {word[:i] + word[i + 1 :]: word for i, letter in enumerate(word) if letter == "'"}


def rows(name, root, split):
    file = file_of(root, split, "it is at textvqa.org/dataset", "TextVQA_0.5.1_*.json")
    with reading(file, "TextVQA's annotations"):
        listed = [*read_json(file)["data"]]
    return rows_of(((row, f"{file}, row {i}") for i, row in enumerate(listed, 1)), row_of, "a row of TextVQA")


def row_of(row):
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("answers are a list of texts")
    asked = {"image": f"{row['image_id']}.jpg", "prompt": PROMPT.format(row["question"])}
    yield asked | {"answer": Counter(answers).most_common(1)[0][0], "metric": "vqa", "reference": answers}


def score(text, reference, *_):
    """reference: ten people's answers. Each is left out in turn; the score is the mean of min(1, matches / 3) with nine."""
    answer = normalize(text)
    matches = [normalize(r) == answer for r in reference]
    thirds = sum(min(3, sum(matches) - left_out) for left_out in matches)
    return answer, thirds / (3 * len(matches))


def normalize(text):
    """An answer as TextVQA compares it. The oddities are the official evaluator's, kept so that scores compare."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    # A mark that is beside a space anywhere vanishes everywhere ("t - shirt-x": "t  shirtx"); else it becomes a space.
    beside_a_space = {mark for mark in PUNCTUATION if f"{mark} " in text or f" {mark}" in text}
    text = text.translate({ord(mark): "" if mark in beside_a_space else " " for mark in PUNCTUATION})
    # A period goes unless a digit follows. (The official pattern means to look at the digit before as well, but it is
    # mistyped; it also stops after 32 periods.)
    text = re.sub(r"\.(?!\d)", "", text, count=32)
    words = [SAME.get(word, word) for word in text.split()]
    return " ".join(SPELLINGS.get(word, word) for word in words if word)

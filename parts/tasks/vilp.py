"""ViLP: one word, against the language prior.

    {"question": "A ball is round. What shape is this ball?", "image1": "image1-0.png", "answer1": "round",
     "image2": "image2-0.png", "answer2": "square", "image3": ..., "answer3": ...}

files    vilp.jsonl, 300 rows, and images; docs/datasets.md converts the hub's ViLP.parquet (data set ViLP/ViLP)
splits   test is everything; train and val are ours (`in_split`, by the question)
metric   "word": the same word after the authors' tables. Image 1 agrees with the language prior: its accuracy is the
         kind "prior". Images 2 and 3 contradict it: they are the kind "score", and the accuracy
"""

from parts.tasks.rows import WORDS, entries, file_of, in_split, rows_of

PROMPT = "Please answer with one word: {}"
TABLES = [{word: str(n) for n, word in enumerate(WORDS["numbers"])}]  # the authors': "seven" -> "7"
TABLES += [{word: one for one, words in WORDS[name].items() for word in words} for name in ("synonyms", "plurals")]


def rows(name, root, split):
    """Three rows of each question, one for each of its images."""

    def row_of(row):
        for i in (1, 2, 3) if in_split(split, row["question"]) else ():
            asked = {"image": row[f"image{i}"], "prompt": PROMPT.format(row["question"]), "metric": "word"}
            yield asked | {"answer": str(row[f"answer{i}"]), "kind": "prior" if i == 1 else "score"}

    file = file_of(root, "vilp", "convert ViLP.parquet as docs/datasets.md says", "*.jsonl")
    return rows_of(entries(file), row_of, "a row of ViLP")


def score(text, reference, *_):
    """Right if both are the same word after the authors' tables, and that word is not "none"."""
    word = normalize(text.replace(".", ""))  # in a prediction all periods go, as in the authors' script
    return word, float(word == normalize(reference) and word != "none")


def normalize(text):
    """A word as ViLP compares it: "Alligator." -> "crocodile", "four" -> "4", "bees" -> "bee"."""
    word = text.lower().strip().removesuffix(".")
    for table in TABLES:
        word = table.get(word, word)
    return word

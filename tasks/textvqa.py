"""TextVQA: read text in a photograph."""

import re

from files import read_json
from tasks.rows import NUMBERS, file_of, reading

TEXTVQA_PROMPT = "{}\nAnswer the question using a single word or phrase."


def textvqa(name, root, split):
    """TextVQA: root/TextVQA_0.5.1_<split>.json, {"data": [{"image_id", "question", "answers" (ten)}]}, images in
    root/train_images. The answer to learn is the most frequent one. Metric: see metrics.vqa; splits train, val (the
    answers of test are not public)."""
    file = file_of(root, split, "TextVQA_0.5.1_*.json", "see the README for where to get it")
    for i, row in enumerate(read_json(file).get("data", []), start=1):
        source = f"{file}, row {i}"
        with reading(source, "TextVQA with answers"):
            answers, prompt = row["answers"], TEXTVQA_PROMPT.format(row["question"])
            found = {"image": f"{row['image_id']}.jpg", "prompt": prompt, "answer": max(answers, key=answers.count)}
        yield found | {"metric": "vqa", "reference": answers}, source


VQA_WORDS = {word: n for word, n in NUMBERS.items() if int(n) <= 10} | {"none": "0", "a": "", "an": "", "the": ""}
VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
VQA_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""

# Each word is known by its spellings with one apostrophe missing: couldnt've and couldn'tve, but not couldntve. What
# could be another word (its, well, were, id, lets) is not on the list; one entry is the wrong way round there.
VQA_SPELLINGS = {
    word[:i] + word[i + 1 :]: word
    for word in VQA_CONTRACTIONS.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def normalize_vqa(text):
    """An answer as TextVQA compares it: lower case, no punctuation, no articles, numbers up to ten as digits,
    contractions with their apostrophes. The oddities are the official evaluator's, kept so that scores compare."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    # A mark that stands beside a space anywhere vanishes everywhere ("t - shirt-x": "t  shirtx"), else it parts words.
    text = text.translate({ord(p): "" if f"{p} " in text or f" {p}" in text else " " for p in VQA_PUNCTUATION})
    # A period goes unless a digit follows, so "2.5" and ".5" stay, and "5." loses its own. (The official pattern means
    # to look at the digit before as well, but its look-behind is mistyped; it also stops after 32 periods.)
    text = re.sub(r"\.(?!\d)", "", text, count=32)
    words = [VQA_WORDS.get(word, word) for word in text.split()]
    return " ".join(VQA_SPELLINGS.get(word, word) for word in words if word)


def score_vqa(text, reference, *_):
    """TextVQA: reference is a list of ten people's answers. Each is left out in turn, and the text scores
    min(1, matches / 3) against the other nine; the result is the mean of the ten."""
    answer = normalize_vqa(text)
    matches = [normalize_vqa(r) == answer for r in reference]
    thirds = sum(min(3, sum(matches) - left_out) for left_out in matches)
    return answer, thirds / (3 * len(matches))

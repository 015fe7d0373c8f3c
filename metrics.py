"""Metrics: generated text -> parsed answer -> score.

    score("iou", "[10, 20, 30, 40]", (9, 20, 31, 40), size, resized)   -> {"parsed", "score", "failed"}
    summary([{"data", "kind", "metric", "score", ...}, ...])            -> accuracies, parse failures, how boxes differ
    paired(a, b)                                                        -> is one method better than another, over seeds

A metric is a function(text, reference, size, resized) -> (parsed, score). `parsed` is what was read from the text,
None where nothing could be read: that counts as failed and scores 0. `score` lies in 0..1. `size` and `resized` are
(width, height) of the image on disk and of what the model saw; only metrics with boxes look at them.
"""

import math
import re
from decimal import Decimal
from statistics import fmean, stdev

# ------------------------------------------------------------------------------------------------------------ boxes


def box_to_model(box, size, resized):
    """A box in pixels of the original image -> whole pixels of the resized one, which is what Qwen2.5-VL writes."""
    sx, sy = resized[0] / size[0], resized[1] / size[1]
    return [round(box[0] * sx), round(box[1] * sy), round(box[2] * sx), round(box[3] * sy)]


def box_from_model(box, size, resized):
    """A box in pixels of the resized image -> pixels of the original."""
    sx, sy = size[0] / resized[0], size[1] / resized[1]
    return [box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy]


def read_numbers(inside):
    """The inside of a bracket, "1, 2.5", as [1.0, 2.5]; [] if anything but numbers stands there. Nine digits before
    the point at most: a model that repeats a digit without end would make a float that is infinite."""
    numbers = inside.split(",")
    if not all(re.fullmatch(r"\s*[-+]?(\d{1,9}(\.\d*)?|\.\d+)\s*", n) for n in numbers):
        return []
    return [float(n) for n in numbers]


def parse_box(text):
    """The first bracket in generated text that holds exactly four numbers, as [x1, y1, x2, y2], or None.
    Qwen's own {"bbox_2d": [...]} is read too."""
    for inside in re.findall(r"\[([^\[\]]*)\]", text):
        numbers = read_numbers(inside)
        if len(numbers) == 4:
            return numbers
    return None


def parse_point(text):
    """The first bracket, [] or (), that holds exactly two numbers (a point) or exactly four (a box: its centre), as
    [x, y], or None."""
    for square, curved in re.findall(r"\[([^\[\]()]*)\]|\(([^\[\]()]*)\)", text):
        numbers = read_numbers(square or curved)
        if len(numbers) == 2:
            return numbers
        if len(numbers) == 4:
            return [(numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2]
    return None


def iou(a, b):
    """Intersection over union of two boxes (x1, y1, x2, y2). 0 for a box whose corners are swapped."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def score_iou(text, reference, size, resized):
    """RefCOCO family, accuracy@0.5: right if the IoU with the reference box is at least 0.5. The reference and
    `parsed` are x1, y1, x2, y2 in pixels of the original image."""
    box = parse_box(text)
    if box is None:
        return None, 0.0
    box = box_from_model(box, size, resized)
    return box, float(iou(box, reference) >= 0.5)


def score_point(text, reference, size, resized):
    """ScreenSpot family: right if the point lies in the reference box (x1, y1, x2, y2 in pixels of the original image),
    edges included. `parsed` is [x, y] in the same pixels.

    Numbers are taken for pixels of the resized image, as Qwen2.5-VL writes them. Nothing is guessed about points on a
    scale of 0..1 or 0..1000: they are scored as written, that is, wrong.
    """
    point = parse_point(text)
    if point is None:
        return None, 0.0
    x, y = (n * now / seen for n, now, seen in zip(point, size, resized, strict=True))  # * first: edges stay exact
    x1, y1, x2, y2 = reference
    return [x, y], float(x1 <= x <= x2 and y1 <= y <= y2)


# ------------------------------------------------------------------------------------------------------------- text


def score_exact(text, reference, *_):
    """Right if the text equals the reference but for white space at its ends."""
    return text.strip(), float(text.strip() == reference.strip())


NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
NUMBERS = {word: str(n) for n, word in enumerate(NUMBER_WORDS.split())}

# TextVQA, the facts of its official evaluator: EvalAIAnswerProcessor and TextVQAAccuracyEvaluator of Pythia and MMF.

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


# ViLP, the facts of its authors' eval_utils.py: which words count as the same. Every look-up is made once, in the order
# numbers, synonyms, plurals, so nothing is followed further (co2 is "carbon dioxide", which itself is "carbondioxide":
# the two differ there, and so they do here).

SYNONYMS = """
    AC: air-conditioner, aircondition, airconditioner; airplane: aeroplane, plane; bag: backpack; bee: beesap;
    bicycle: bike; bigben: clocktower; bus: schoolbus; bush: bushe; car: automobile; carbon dioxide: co2;
    carbondioxide: co₂, carbon dioxide; cat: kitten; checkerboard: checkered; chicken: rooster, roosters; computer:
    pc; crocodile: alligator; crow: raven; cube: cubes, cubic, cubical, cuboid, cuboids, square, squares; cup: teacup;
    curved: zigzag; cushion: pillow; diamond: faceted, jewelries, jewelry; dinosaur: t-rex, trex; dog: dalmatian;
    dolphin: porpoise; eraser: brush; eye: eyesight; faucet: tap; flower: blossoms, bud; fridge: refrigerator,
    refrigerators; glass: crystal; glasses: binoculars, goggles, night-vision; guitar: ukulele; hexagon: hexagonal,
    hexagons; hippo: hippopotamus; kangaroo: wallaby; kettle: teapot; lolipop: candy; los angeles: la; metal: steel;
    motorcycle: motorbike; new york city: nyc, new york; nitrogen: n2; octagon: octagonal; octopus: squid; oven:
    fireplace, stove; oxygen: o2; person: man, men, people, woman, women; phone: cellphone, telephone; pickle:
    cucumber; pipe: pipeline; pitaya: dragonfruit; rainbow: multicolored; rhino: rhinoceros; round: circle, circles,
    circular, roundph, roundpherical, sphere, spheres, spherical; sea: ocean, underwater; seismometer: seismograph;
    ship: airship, boat, boats, sailboat; shoe: slipper, slippers; snake: serpent; space: galaxy; spots: dots,
    polka-dots; straw: hay, thatch; stripes: striped; television: tv; torus: donut, donuts; triangle: triangles,
    triangular; turtle: tortoise; united states: usa; vine: vineyard; violin: cello; water: h2o; wood: logs
"""
PLURALS = """
    ant antelope beak bee bicycle bird book brick bubble camel carrot cat chameleon chicken clock cloud cow crayon
    diamond dog dolphin drum earthquake elephant eye feather field flower fork gill giraffe goat horse kangaroo key
    koala lemon lion lolipop lung needle panda pencil petal pipe porcupine pumpkin rabbit rocket rope scale seahorse
    seal shark shoe shrub skyscraper spinner spinneret squirrel stripe tiger tree turbine wasp whale wheel wind wombat
"""
OTHER_PLURALS = """
    bush: bushes; butterfly: butterflies; cactus: cacti; child: children; fire: flame; firefly: fireflies; foot: feet;
    fungus: fungi; goose: geese; knife: knives; leaf: leaves; lolipop: lollipop, lollipops; medium: media; mouse:
    mice; octopus: octopi; ostrich: ostriches; stimulus: stimuli; tooth: teeth; watch: watches; wolf: wolves
"""


def invert(table):
    """The text "cat: kitten; ship: boat, boats" -> {"kitten": "cat", "boat": "ship", "boats": "ship"}."""
    entries = [" ".join(entry.split()).split(": ") for entry in table.split(";")]
    return {word: one for one, words in entries for word in words.split(", ")}


WORD_TABLES = [NUMBERS, invert(SYNONYMS), {f"{word}s": word for word in PLURALS.split()} | invert(OTHER_PLURALS)]


def normalize_word(text):
    """A word as ViLP compares it: "Alligator." -> "crocodile", "four" -> "4", "bees" -> "bee"."""
    word = text.lower().strip().removesuffix(".")
    for table in WORD_TABLES:
        word = table.get(word, word)
    return word


def score_word(text, reference, *_):
    """ViLP: right if both are the same word after its authors' tables, and that word is not "none"."""
    word = normalize_word(text.replace(".", ""))  # in a prediction all periods go, as in the authors' script
    return word, float(word == normalize_word(reference) and word != "none")


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


# ---------------------------------------------------------------------------------------------------------- scoring

METRICS = {
    "exact": score_exact,
    "iou": score_iou,
    "point": score_point,
    "vqa": score_vqa,
    "choice": score_choice,
    "word": score_word,
    "number": score_number,
}


def score(metric, text, reference, size=None, resized=None):
    """Score one generated text: {"parsed", "score", "failed"}. size, resized: for metrics with boxes."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    parsed, value = METRICS[metric](text, reference, size, resized)
    return {"parsed": parsed, "score": value, "failed": parsed is None}


def mean(values):
    return fmean(values) if values else None


def percentile(values, share):
    """The value below which `share` of the values lie, interpolated linearly between neighbours; None of nothing."""
    if not values:
        return None
    values, place = sorted(values), share * (len(values) - 1)
    low, high = values[math.floor(place)], values[math.ceil(place)]
    return low + (place - math.floor(place)) * (high - low)


def summary(predictions, data=None):
    """Scored rows -> accuracies, parse failures and how predicted boxes differ from the references.

    predictions: dicts with data, kind, group, metric, parsed, score, failed, reference, size, images, perhaps videos.
    data: the data set whose accuracy is "accuracy" (None: all rows); it is that of its rows with images, if it has any,
    and leaves out kind "prior" (ViLP's first image measures what the model would say without looking).
    text_accuracy is that of rows without image and video; by_kind has the mean score of each "data kind" and of each
    "data group"; boxes compares those of `data`. A mean over nothing is None.
    """
    kinds = {}
    for row in predictions:
        kind = row.get("kind") or ""
        for name in dict.fromkeys([kind, row.get("group") or kind]):  # once if they are the same
            kinds.setdefault(f"{row['data']} {name}".strip(), []).append(row["score"])
    own = [row for row in predictions if data in (None, row["data"]) and row.get("kind") != "prior"]
    seen = [row for row in own if row.get("images") or row.get("videos")]
    text_rows = [row["score"] for row in predictions if not row.get("images") and not row.get("videos")]
    return {
        "accuracy": mean([row["score"] for row in seen or own]),
        "text_accuracy": mean(text_rows),
        "by_kind": {name: mean(scores) for name, scores in kinds.items()},
        "parse_failures": sum(bool(row["failed"]) for row in predictions),
        "boxes": compare_boxes([row for row in own if row.get("metric") == "iou" and row["parsed"]]),
    }


def compare_boxes(rows):
    """Where predicted boxes lie and how large they are, against their references; None without rows.

    centre_error: distance of the centres over the diagonal of the image; size_ratio: square root of predicted over
    reference area. A predicted box without area (corners swapped) counts in neither, nor in count.
    """
    if not rows:
        return None
    errors, ratios = [], []
    for row in rows:
        (a1, b1, a2, b2), (x1, y1, x2, y2) = row["parsed"], row["reference"]
        if a2 > a1 and b2 > b1:
            errors.append(math.hypot(a1 + a2 - x1 - x2, b1 + b2 - y1 - y2) / 2 / math.hypot(*row["size"]))
            ratios.append(math.sqrt((a2 - a1) * (b2 - b1) / ((x2 - x1) * (y2 - y1))))
    return {
        "count": len(ratios),
        "centre_error": {"median": percentile(errors, 0.5), "p90": percentile(errors, 0.9)},
        "size_ratio": {
            "p10": percentile(ratios, 0.1),
            "median": percentile(ratios, 0.5),
            "p90": percentile(ratios, 0.9),
        },
    }


# -------------------------------------------------------------------------------------------------------- statistics
# Whether one method scores higher than another, seed by seed.


def t_cdf(t, df):
    """P(T <= t) of Student's distribution. With t = sqrt(df) tan(x) the density is c cos(x)^(df - 1), smooth on a finite
    interval, so Simpson's rule is exact to many places."""
    c = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    end, n = math.atan(abs(t) / math.sqrt(df)), 400
    y = [math.cos(end * i / n) ** (df - 1) for i in range(n + 1)]
    area = c * end / n / 3 * (y[0] + y[n] + 4 * sum(y[1:n:2]) + 2 * sum(y[2:n:2]))
    return 0.5 + math.copysign(area, t)


def t_quantile(p, df):
    """The t with P(T <= t) = p >= 0.5, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return low


def paired(a, b):
    """Paired comparison of two lists (a value a seed): mean difference a - b, its 95 % confidence interval, and the two-sided
    p of the paired t-test. One pair alone, or equal differences, have no interval (None)."""
    differences = [x - y for x, y in zip(a, b)]
    d, n = fmean(differences), len(differences)
    if n < 2 or (s := stdev(differences)) == 0:
        return {"difference": d, "interval": None, "p": None}
    error = s / math.sqrt(n)
    half = t_quantile(0.975, n - 1) * error
    return {"difference": d, "interval": [d - half, d + half], "p": 2 * (1 - t_cdf(abs(d / error), n - 1))}

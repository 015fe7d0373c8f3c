"""The drawn world: images of coloured shapes, questions about them, and sums; without end, all from a seed.

    {"kind": "grounding", "images": [image], "sent": "the ring left of the red square", "bbox": (12, 30, 35, 53)}
    {"kind": "attribute", "images": [image], "prompt": "What colour is the ring?", "answer": "green"}
    {"kind": "text", "images": [], "prompt": "Ada has 3 bags with 4 nuts each. ...", "answer": "3*4=12\n#### 12"}
    {"kind": "naming", ..., "answer": "small red ring, large blue star"}    from left to right; for pretraining only
    {"kind": "listing", ..., "answer": "small red ring [3, 10, 25, 32], large ..."}    for pretraining only

files    none: everything is drawn on the fly; example i of a split is the same for every length
prompt   GROUNDING_PROMPT, or the question itself; of "scenes+25" and so on after 25 words of unrelated text
images   of 196 x 196 pixels (to the tiny model 49 visual tokens), one for all questions about a scene: 3 or 4 things that
         do not touch, on shaded paper. In "words-fog+3images" 3 other scenes come after it
looks    change the light (`in_look`), never the boxes or the words; but in "words" attributes are answered in another
         language, which a change of the visual values can hardly teach, and "prior" shows blurred images in which a shape
         usually has its USUAL colour (9 of 10 in the split "train", never in the others): habit answers wrong
splits   train, val, test: from different seeds
metric   accuracy@0.5 for boxes, exact match for words, both counted by kind

The tiny model was pretrained on `scenes-pretraining`: six scenes of ten by day, with all kinds of examples; one each in
the looks dusk, fog, noise and negative, without a single box: to ask for one in them is the skill to learn.
"""

import itertools
import random
from functools import cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from parts.files import InputError
from parts.tasks.rows import GROUNDING_PROMPT, SPLITS, WORDS

SIDE = 196
SHAPES, COLOURS, FILLER = WORDS["shapes"], WORDS["colours"], WORDS["filler"]  # polygons from the middle, in sides
USUAL = dict(zip(SHAPES, COLOURS))  # the look `prior`: circles are usually red, squares green, ...
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, and sign of the distance
NAMING, LISTING = "Name everything from left to right.", "List everything from left to right."
KNOWN = ("dusk", "fog", "noise", "negative")  # looks in which the tiny model was asked for words, never for boxes
LOOKS = ("day", *KNOWN, "blur", "words", "prior")
DEMO_LOOK, PRETRAINING = "fog", "scenes-pretraining"


def things(rng):
    """3 or 4 things (shape, colour, size, box) that do not touch. A later one for which there is no space is left out."""
    scene = []
    for _ in range(rng.choice((3, 4, 4))):
        for _ in range(50):
            size = rng.choice(("small", "large"))
            side = rng.randint(26, 32) if size == "small" else rng.randint(44, 54)
            x, y = rng.randint(3, SIDE - side - 3), rng.randint(3, SIDE - side - 3)
            box = (x, y, x + side, y + side)
            if not any(touch(box, other) for *_, other in scene):
                scene.append((rng.choice(list(SHAPES)), rng.choice(list(COLOURS)), size, box))
                break
    return scene if len(scene) >= 3 else things(rng)


def touch(a, b):  # or are at most 3 pixels from each other
    return a[0] - 3 <= b[2] and b[0] - 3 <= a[2] and a[1] - 3 <= b[3] and b[1] - 3 <= a[3]


@cache
def paper(big):
    """The background, `big` times as large: a soft shading that differs at every place. It is the same in all scenes."""
    down = Image.linear_gradient("L").resize((SIDE, SIDE))
    across = Image.linear_gradient("L").rotate(90).resize((SIDE, SIDE))
    red = across.point(lambda p: 255 - p // 2)
    green = down.point(lambda p: 250 - p // 2)
    blue = Image.blend(across, down, 0.5).point(lambda p: 150 + p * 2 // 5)
    return Image.merge("RGB", (red, green, blue)).resize((SIDE * big, SIDE * big))


def draw(scene):
    """The image of a scene, drawn at four times the size and reduced, so that edges are smooth."""
    image = paper(4).copy()
    pen = ImageDraw.Draw(image)
    for shape, colour, _, box in scene:
        x1, y1, x2, y2 = (4 * c for c in box)
        fill, w, cx, cy = COLOURS[colour], x2 - x1, (x1 + x2) / 2, (y1 + y2) / 2
        if shape in ("circle", "ring"):
            pen.ellipse((x1, y1, x2, y2), fill if shape == "circle" else None, fill, int(w * 0.22))
        for polygon in SHAPES[shape]:
            pen.polygon([(cx + w * x, cy + w * y) for x, y in polygon], fill)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def in_look(image, look, rng):
    """The image as a look shows it; by day as it was drawn."""
    if look == "dusk":  # warm evening light
        return image.point([p * share for share in (1, 0.85, 0.7) for p in range(256)])
    if look == "fog":
        return image.point(lambda p: p * 0.7 + 70)
    if look == "negative":
        return image.point(lambda p: 255 - p)
    if look == "noise":
        return Image.merge("RGB", [noisy(plane, rng) for plane in image.split()])
    if look in ("blur", "prior"):  # details are lost: here the frozen encoder itself, which never saw it, fails
        return image.filter(ImageFilter.GaussianBlur(6.3))
    return image


def noisy(plane, rng):  # noise from -128 to 127, the mean of two uniform values: a triangle of standard deviation 52
    grain = [Image.frombytes("L", plane.size, rng.randbytes(SIDE * SIDE)) for _ in range(2)]
    return ImageChops.add(plane, ImageChops.add(*grain, scale=2), offset=-128)


def by_habit(thing, rng, share):
    """The thing in another colour: with probability `share` the usual one of its shape, else not that."""
    shape, _, size, box = thing
    others = [colour for colour in COLOURS if colour != USUAL[shape]]
    return shape, USUAL[shape] if rng.random() < share else rng.choice(others), size, box


def around(thing):
    """The box to answer with: one pixel outside the drawing."""
    x1, y1, x2, y2 = thing[3]
    return (x1 - 1, y1 - 1, x2 + 1, y2 + 1)


def names(thing):
    """What a thing can be called, the shortest name first."""
    shape, colour, size, _ = thing
    return [shape, f"{colour} {shape}", f"{size} {shape}", f"{size} {colour} {shape}"]


def own_names(thing, things, count=4):
    """Of the `count` shortest names of a thing those that fit no other one of `things`."""
    return [name for name in names(thing)[:count] if sum(name in names(other) for other in things) == 1]


def expressions(scene, target):
    """All expressions that name the thing `target` (an index) and no other: (plain ones, relations)."""
    related = []
    for other, (relation, (axis, sign)) in itertools.product(range(len(scene)), RELATIONS.items()):
        # how far each thing is on that side of the other one, in pixels; less than 12 are doubtful
        centres = [sign * (box[axis] + box[axis + 2]) / 2 for *_, box in scene]
        distances = [centre - centres[other] for centre in centres]
        if distances[target] >= 12:
            # a name does if it fits the target alone, also among the doubtful ones
            beside = [thing for thing, distance in zip(scene, distances) if distance > 0]
            pairs = itertools.product(own_names(scene[target], beside, 2), own_names(scene[other], scene, 2))
            related += [f"the {name} {relation} the {anchor}" for name, anchor in pairs]
    return [f"the {name}" for name in own_names(scene[target], scene)], related


def attributes(scene):
    """All (question, answer) pairs about one thing or the number of things."""
    shapes, colours = [t[0] for t in scene], [t[1] for t in scene]
    questions = [("How many things are there?", WORDS["numbers"][len(scene)])]
    for shape, colour, size, _ in scene:
        if shapes.count(shape) == 1:
            questions += [(f"What colour is the {shape}?", colour), (f"How large is the {shape}?", size)]
        if colours.count(colour) == 1:
            questions += [(f"What shape is the {colour} thing?", shape), (f"How large is the {colour} thing?", size)]
    return questions


def word_problem(rng):
    """(question, answer) of a sum in words; results from 0 to 54."""
    name, what, kind = (rng.choice(WORDS["sums"][key]) for key in ("names", "things", "kinds"))
    a = rng.randint(*{"+": (2, 20), "-": (5, 30), "*": (2, 6)}[kind])
    b = rng.randint(2, {"+": 20, "-": a, "*": 9}[kind])
    result = {"+": a + b, "-": a - b, "*": a * b}[kind]
    return WORDS["sums"][kind].format(name=name, what=what, a=a, b=b), f"{a}{kind}{b}={result}\n#### {result}"


def naming(scene, boxes):
    """Everything there is, from left to right, with its box or without."""
    ordered = sorted(scene, key=lambda thing: thing[3])
    texts = [names(thing)[-1] for thing in ordered]
    if boxes:
        texts = [f"{text} {list(around(thing))}" for text, thing in zip(texts, ordered)]
    return ", ".join(texts)


def scene_of(look, seed, number):
    """(scene, its image, the generator that draws the questions)."""
    rng = random.Random(f"{seed}-{number}")
    scene = things(rng)
    if look == "prior":
        scene = [by_habit(thing, rng, 0.9 if seed == "train" else 0.0) for thing in scene]
    return scene, in_look(draw(scene), look, rng), rng


def scene_rows(look, seed, number, asked=2):
    """The rows of a scene in a look. seed: the name of the split; asked: questions about attributes."""
    scene, image, rng = scene_of(look, seed, number)

    # three expressions; a relation for every fourth thing, and where nothing plain names it
    targets = [(t, *expressions(scene, t)) for t in rng.sample(range(len(scene)), len(scene))]
    for target, plain, related in ([named for named in targets if any(named[1:])] * 3)[:3]:
        use = related if related and (not plain or rng.random() < 0.25) else plain
        yield {"kind": "grounding", "images": [image], "sent": rng.choice(use), "bbox": around(scene[target])}

    # attributes
    questions = [q for q in attributes(scene) if look != "prior" or q[0].startswith("What colour")]
    for question, answer in rng.sample(questions, min(asked, len(questions))):
        answer = WORDS["foreign"][answer] if look == "words" else answer
        yield {"kind": "attribute", "images": [image], "prompt": question, "answer": answer}

    # everything there is, and the sum
    yield {"kind": "naming", "images": [image], "prompt": NAMING, "answer": naming(scene, boxes=False)}
    yield {"kind": "listing", "images": [image], "prompt": LISTING, "answer": naming(scene, boxes=True)}
    question, answer = word_problem(rng)
    yield {"kind": "text", "images": [], "prompt": question, "answer": answer}


BOXES, NAMES = ("grounding",), ("attribute",)
EVERYTHING = (*BOXES, *NAMES, "naming", "listing", "text")
DRAWN = {  # name -> looks, which the scenes take in turn; kinds of examples; words before, images after what is asked
    "scenes": ((DEMO_LOOK, DEMO_LOOK, DEMO_LOOK, "day"), BOXES + NAMES, 0, 0),
    **{f"scenes-{look}": ((look,), BOXES + NAMES, 0, 0) for look in LOOKS},
    **{f"boxes-{look}": ((look,), BOXES, 0, 0) for look in LOOKS if look != "prior"},
    **{f"words-{look}": ((look,), NAMES, 0, 0) for look in LOOKS if look != "prior"},
    "scenes-prior": (("prior",), NAMES, 0, 0),
    "sums": (("day",), ("text",), 0, 0),
    PRETRAINING: (("day", *KNOWN[:2], "day", "day", *KNOWN[2:], "day", "day", "day"), EVERYTHING, 0, 0),
}
DRAWN |= {f"{name}+{n}": (*DRAWN[name][:2], n, 0) for name in ("scenes", f"scenes-{DEMO_LOOK}") for n in (25, 60)}
DRAWN |= {f"words-{DEMO_LOOK}+{n}images": ((DEMO_LOOK,), NAMES, 0, n) for n in (3, 11)}


def rows(name, root, split):
    if split not in SPLITS:
        raise InputError(f"{name}: no split {split!r}; present: {', '.join(SPLITS)}")
    looks, kinds, words, images = DRAWN[name]
    for number in itertools.count():
        look = looks[number % len(looks)]
        made = pretraining_rows(look, split, number) if name == PRETRAINING else scene_rows(look, split, number)
        others = [scene_of(look, f"{split} other {i}", number)[1] for i in range(images)]
        for i, row in enumerate(made):
            if row["kind"] in kinds:
                row = after_words(row, words) if words else row
                yield row | {"images": row["images"] + others}, f"{name} {split} {number}.{i}"


def after_words(row, words):
    """The row with `words` words of unrelated text before its question."""
    row = dict(row)
    prompt = GROUNDING_PROMPT.format(row.pop("sent")) if "sent" in row else row["prompt"]
    return row | {"prompt": " ".join([*itertools.islice(itertools.cycle(FILLER.split()), words), prompt])}


def pretraining_rows(look, split, number):
    """The rows of a scene that no experiment uses: five questions about attributes; what has boxes only by day; a listing in
    every second scene, a sum in every third; before one row of seven, 5 to 60 words of unrelated text."""
    rng = random.Random(number)
    for row in scene_rows(look, f"pretraining {split}", number, asked=5):
        box, kind = row["kind"] in ("grounding", "listing"), row["kind"]
        if box and look != "day" or kind == "listing" and number % 2 or kind == "text" and number % 3:
            continue
        yield after_words(row, rng.randint(5, 60)) if rng.random() < 1 / 7 else row

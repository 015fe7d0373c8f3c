"""The tiny world: drawn pictures of coloured shapes, questions about them, and sums; all from a seed.

A scene is a picture of 112 x 112 pixels (8 x 8 patches, 16 visual tokens) on paper that shades from left to right
and from top to bottom. On it lie 3 or 4 things that do not touch, each with

    shape    circle, square, triangle, ring, cross, star
    colour   red, green, blue, yellow, purple, black
    size     small (20 to 25 pixels a side) or large (34 to 41)

Each scene comes with seven examples, all but the sum showing the same picture object:

    three    grounding questions in the RefCOCO form. The expression names one thing and no other: by shape, colour and
             shape, size and shape, all three, or by its place beside a second thing that is itself named without doubt
             ("the ring left of the red square": left of, right of, above, below compare the centres, 12 pixels apart
             at least). Answer: the box, one pixel outside the drawing.
    two      questions about attributes ("What colour is the ring?", "What shape is the red thing?", "How large is
             the star?", "How many things are there?"), answered in one word.
    one      listing, for pretraining only: everything there is with its box, from left to right ("small red ring
             [3, 10, 25, 32], large ..."): a dense lesson in where things are, which the grounding questions then build on.
    one      sum in words without a picture, in the form of GSM8K: the working, then "#### " and the result.

A look changes the light on the picture, never the boxes or the words; `words` changes the words instead:

    day      as drawn; what the tiny model was pretrained on
    dusk     warm evening light: pixels x (1, .85, .7)
    fog      pixels x .7 + 70
    blur     out of focus: a Gaussian of radius 6.3 pixels, which also takes details away for good
    noise    normal noise of standard deviation 60 on every value
    negative pixels 255 - p, which the frozen encoder has never seen
    words    day pictures, but attributes are answered in words of another language ("rouge"), which a change of the
             visual values can hardly teach: here Image-LoRA should lose
    prior    blurred pictures in which a shape usually has its usual colour (USUAL; 9 of 10 in the split "train", never in
             the others), and only colours are asked for: who answers by habit is wrong (in the manner of ViLP)

Splits: "train", "val" and "test" are drawn from different seeds; example i of a split is the same for every length.
"""

import random

from PIL import Image, ImageDraw, ImageFilter

from files import InputError

SIDE = 112
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 215),
    "yellow": (245, 205, 30),
    "purple": (145, 50, 170),
    "black": (30, 30, 30),
}
NUMBERS = {3: "three", 4: "four"}
FOREIGN = {  # the words of the look `words`
    "red": "rouge", "green": "vert", "blue": "bleu", "yellow": "jaune", "purple": "violet", "black": "noir",
    "circle": "cercle", "square": "carre", "triangle": "trigone", "ring": "anneau", "cross": "croix", "star": "etoile",
    "small": "petit", "large": "grand", "three": "trois", "four": "quatre",
}  # fmt: skip
USUAL = dict(zip(SHAPES, COLOURS))  # the look `prior`: circles are usually red, squares green, ...
RELATIONS = {  # name -> (axis, sign): the target's centre is on that side of the other's
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
LISTING = "List everything from left to right."
LOOKS = ("day", "dusk", "fog", "blur", "noise", "negative", "words", "prior")
DEMO_LOOK = "blur"
SPLIT_SEEDS = {"train": 1, "val": 2, "test": 3}


def things(rng):
    """3 or 4 things (shape, colour, size, box) that do not touch; a later thing that finds no room is left out."""
    found = []
    for _ in range(rng.choice((3, 4, 4))):
        for _ in range(50):
            size = rng.choice(("small", "large"))
            side = rng.randint(20, 25) if size == "small" else rng.randint(34, 41)
            x, y = rng.randint(3, SIDE - side - 3), rng.randint(3, SIDE - side - 3)
            box = (x, y, x + side, y + side)
            apart = (
                box[2] + 3 < b[0] or b[2] + 3 < box[0] or box[3] + 3 < b[1] or b[3] + 3 < box[1] for *_, b in found
            )
            if all(apart):
                found.append((rng.choice(SHAPES), rng.choice(list(COLOURS)), size, box))
                break
    return found if len(found) >= 3 else things(rng)


def paper():
    """The background: a soft shading that differs at every place."""
    across, down = (
        Image.linear_gradient("L").rotate(90).resize((SIDE, SIDE)),
        Image.linear_gradient("L").resize((SIDE, SIDE)),
    )
    red = across.point(lambda p: 255 - p // 2)
    green = down.point(lambda p: 250 - p // 2)
    blue = Image.blend(across, down, 0.5).point(lambda p: 150 + p * 2 // 5)
    return Image.merge("RGB", (red, green, blue))


def draw(scene):
    """The picture of a scene, drawn at four times the size and reduced, so that edges are smooth."""
    big = 4
    picture = paper().resize((SIDE * big, SIDE * big))
    pen = ImageDraw.Draw(picture)
    for shape, colour, _, box in scene:
        x1, y1, x2, y2 = (big * c for c in box)
        fill, w, cx, cy = COLOURS[colour], x2 - x1, (x1 + x2) / 2, (y1 + y2) / 2
        if shape == "circle":
            pen.ellipse((x1, y1, x2, y2), fill=fill)
        elif shape == "ring":
            pen.ellipse((x1, y1, x2, y2), outline=fill, width=int(w * 0.22))
        elif shape == "square":
            pen.rectangle((x1, y1, x2, y2), fill=fill)
        elif shape == "triangle":
            pen.polygon([(cx, y1), (x2, y2), (x1, y2)], fill=fill)
        elif shape == "cross":
            pen.rectangle((cx - w * 0.15, y1, cx + w * 0.15, y2), fill=fill)
            pen.rectangle((x1, cy - w * 0.15, x2, cy + w * 0.15), fill=fill)
        else:  # a star of four points
            n = w * 0.14
            points = [
                (cx, y1),
                (cx + n, cy - n),
                (x2, cy),
                (cx + n, cy + n),
                (cx, y2),
                (cx - n, cy + n),
                (x1, cy),
                (cx - n, cy - n),
            ]
            pen.polygon(points, fill=fill)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def seen(picture, look, rng):
    """The picture in a look."""
    if look == "dusk":
        red, green, blue = picture.split()
        return Image.merge("RGB", (red, green.point(lambda p: p * 0.85), blue.point(lambda p: p * 0.7)))
    if look == "fog":
        return picture.point(lambda p: p * 0.7 + 70)
    if look in ("blur", "prior"):
        return picture.filter(ImageFilter.GaussianBlur(6.3))
    if look == "noise":
        grain = (Image.frombytes("L", picture.size, rng.randbytes(SIDE * SIDE)) for _ in range(12))
        planes = []
        for plane in picture.split():  # the sum of four uniform values is close to normal
            noise = [sum(values) for values in zip(*(next(grain).tobytes() for _ in range(4)))]
            pixels = (min(255, max(0, round(p + (n - 510) * 60 / 147.8))) for p, n in zip(plane.tobytes(), noise))
            planes.append(Image.frombytes("L", picture.size, bytes(pixels)))
        return Image.merge("RGB", planes)
    if look == "negative":
        return picture.point(lambda p: 255 - p)
    return picture


def expressions(scene, target):
    """All expressions that name the thing `target` (an index) and no other: (plain ones, relations)."""

    def names(thing):
        shape, colour, size, _ = thing
        return [f"{shape}", f"{colour} {shape}", f"{size} {shape}", f"{size} {colour} {shape}"]

    def alone(name, i):
        return sum(name in names(thing) for thing in scene) == 1 and name in names(scene[i])

    def centre(i, axis):
        box = scene[i][3]
        return (box[axis] + box[axis + 2]) / 2

    plain = [f"the {name}" for name in names(scene[target]) if alone(name, target)]
    related = []
    for other in range(len(scene)):
        anchors = [name for name in names(scene[other])[:2] if alone(name, other)]
        for relation, (axis, sign) in RELATIONS.items():
            fitting = [
                i for i in range(len(scene)) if i != other and sign * (centre(i, axis) - centre(other, axis)) >= 12
            ]
            near = [
                i for i in range(len(scene)) if i != other and 0 < sign * (centre(i, axis) - centre(other, axis)) < 12
            ]
            for head in names(scene[target])[:2]:
                same = [i for i in fitting + near if head in names(scene[i])]
                if target in fitting and same == [target]:
                    related += [f"the {head} {relation} the {anchor}" for anchor in anchors]
    return plain, related


def by_habit(scene, rng, share):
    """The scene with its colours drawn anew: each shape has its usual colour with probability `share`, else another."""
    others = {shape: [c for c in COLOURS if c != usual] for shape, usual in USUAL.items()}
    return [
        (shape, USUAL[shape] if rng.random() < share else rng.choice(others[shape]), size, box)
        for shape, _, size, box in scene
    ]


def around(thing):
    """The box to answer with: one pixel outside the drawing."""
    x1, y1, x2, y2 = thing[3]
    return (x1 - 1, y1 - 1, x2 + 1, y2 + 1)


def attributes(scene):
    """All (question, answer) pairs about one thing or the number of things."""
    shapes, colours = [t[0] for t in scene], [t[1] for t in scene]
    questions = [("How many things are there?", NUMBERS[len(scene)])]
    for shape, colour, size, _ in scene:
        if shapes.count(shape) == 1:
            questions += [(f"What colour is the {shape}?", colour), (f"How large is the {shape}?", size)]
        if colours.count(colour) == 1:
            questions += [(f"What shape is the {colour} thing?", shape), (f"How large is the {colour} thing?", size)]
    return questions


def word_problem(rng):
    """(question, answer) of a sum in words; results from 0 to 54."""
    name = rng.choice(("Ada", "Ben", "Eva", "Ida", "Leo", "Max", "Mia", "Tom"))
    what = rng.choice(("apples", "books", "cards", "coins", "eggs", "nuts", "pens", "stones"))
    kind = rng.choice("+-*")
    if kind == "+":
        a, b = rng.randint(2, 20), rng.randint(2, 20)
        return (
            f"{name} has {a} {what} and finds {b} more. How many {what} does {name} have?",
            f"{a}+{b}={a + b}\n#### {a + b}",
        )
    if kind == "-":
        a = rng.randint(5, 30)
        b = rng.randint(2, a)
        return f"{name} has {a} {what} and gives away {b}. How many {what} are left?", f"{a}-{b}={a - b}\n#### {a - b}"
    a, b = rng.randint(2, 6), rng.randint(2, 9)
    return (
        f"{name} has {a} bags with {b} {what} each. How many {what} does {name} have?",
        f"{a}*{b}={a * b}\n#### {a * b}",
    )


def rows(look, split):
    """Endless rows {"kind", "images", "prompt" or "sent", "answer" or "bbox"} of a split in a look, seven a scene."""
    number = 0
    while True:
        rng = random.Random(f"{SPLIT_SEEDS[split]}-{number}")
        scene = things(rng)
        if look == "prior":
            scene = by_habit(scene, rng, 0.9 if split == "train" else 0.0)
        picture = seen(draw(scene), look, rng)
        targets = [(t, *expressions(scene, t)) for t in rng.sample(range(len(scene)), len(scene))]
        named = [(t, plain, related) for t, plain, related in targets if plain or related]
        for target, plain, related in (named * 3)[:3]:
            use = related if related and (not plain or rng.random() < 0.25) else plain
            yield {"kind": "grounding", "images": [picture], "sent": rng.choice(use), "bbox": around(scene[target])}
        questions = attributes(scene)
        if look == "prior":
            questions = [q for q in questions if q[0].startswith("What colour")]
        for question, answer in rng.sample(questions, min(2, len(questions))):
            answer = FOREIGN[answer] if look == "words" else answer
            yield {"kind": "attribute", "images": [picture], "prompt": question, "answer": answer}
        listed = sorted(scene, key=lambda thing: thing[3])
        answer = ", ".join(
            f"{size} {colour} {shape} {list(around(t))}" for t in listed for shape, colour, size, _ in [t]
        )
        yield {"kind": "listing", "images": [picture], "prompt": LISTING, "answer": answer}
        question, answer = word_problem(rng)
        yield {"kind": "text", "images": [], "prompt": question, "answer": answer}
        number += 1


DRAWN = {  # the tiny world of tiny/py: name -> look, kinds of question
    "scenes": (DEMO_LOOK, ("grounding",)),
    **{f"scenes-{look}": (look, ("grounding", "attribute")) for look in LOOKS},
    "scenes-prior": ("prior", ("attribute",)),
    "sums": ("day", ("text",)),
    "scenes-pretraining": ("day", ("grounding", "attribute", "listing", "text")),
}


def drawn(name, root, split):
    """Pictures and questions without end, drawn on the fly; the tiny model was pretrained on "scenes-pretraining"."""
    look, kinds = DRAWN[name]
    if split not in SPLIT_SEEDS:
        raise InputError(f"{name}: no split {split!r}; present: {', '.join(SPLIT_SEEDS)}")
    for number, row in enumerate(rows(look, split)):
        if row["kind"] in kinds:
            yield row, f"{name} {split} {number}"

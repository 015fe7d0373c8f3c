"""ViLP: one word, against the language prior.

    {"question": "A ball is round. What shape is this ball?", "image1": "image1-0.png", "answer1": "round",
     "image2": "image2-0.png", "answer2": "square", "image3": ..., "answer3": ...}

files    vilp.jsonl, 300 rows. The hub has ViLP.parquet (data set ViLP/ViLP); pandas, which this project does without,
         converts it:

             d = pandas.read_parquet("ViLP.parquet")
             for c in ("image1", "image2", "image3"):
                 d[c] = [pathlib.Path(f"{c}-{i}.png").write_bytes(b) and f"{c}-{i}.png" for i, b in enumerate(d[c])]
             d.to_json("vilp.jsonl", orient="records", lines=True)

prompt   asks for one word
splits   test is everything; train and val are ours (`own_split`, by the question)
metric   "word": the same word after the authors' tables. Image 1 agrees with the language prior: its accuracy is the
         kind "prior". Images 2 and 3 contradict it: they are the kind "score", and the accuracy
"""

from parts.files import InputError
from parts.tasks.rows import DIGITS, entries, file_of, own_split, rows_of

PROMPT = "Please answer with one word: {}"


def rows(name, root, split):
    """Three rows of each question, one for each of its images."""
    if split not in ("train", "val", "test"):
        raise InputError(f"{name}: no split {split!r}; present: train, val, test")
    file = file_of(root, "vilp", "*.jsonl", "convert ViLP.parquet as parts/tasks/vilp.py says")

    def row_of(row):
        if split in ("test", own_split(row["question"])):
            for i in (1, 2, 3):
                asked = {"image": row[f"image{i}"], "prompt": PROMPT.format(row["question"]), "metric": "word"}
                yield asked | {"answer": str(row[f"answer{i}"]), "kind": "prior" if i == 1 else "score"}

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


# -- the authors' tables

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
    found = {}
    for entry in " ".join(table.split()).split("; "):
        one, words = entry.split(": ")
        found |= dict.fromkeys(words.split(", "), one)
    return found


TABLES = [DIGITS, invert(SYNONYMS), {f"{word}s": word for word in PLURALS.split()} | invert(OTHER_PLURALS)]

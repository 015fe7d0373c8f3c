"""ViLP: one word, against the language prior."""

from files import InputError
from tasks.rows import NUMBERS, file_of, json_rows, ours, reading

VILP_PROMPT = "Please answer with one word: {}"


def vilp(name, root, split):
    """ViLP: root/vilp.jsonl, 300 rows with "question", "image1" ... "image3", "answer1" ... "answer3" (the hub has them
    as ViLP.parquet; the README has the conversion). Image 1 agrees with the language prior: its accuracy is the kind
    "prior"; images 2 and 3 contradict it: they are the score. Metric: one word, see metrics.word. Splits: see `ours`."""
    if split not in ("train", "val", "test"):
        raise InputError(f"{name}: no split {split!r}; present: train, val, test")
    for row, source in json_rows(file_of(root, "vilp", "*.jsonl", "convert ViLP.parquet as the README says")):
        for i in (1, 2, 3):
            with reading(source, name):
                found = {"image": row[f"image{i}"], "answer": str(row[f"answer{i}"]), "metric": "word"}
                found |= {"prompt": VILP_PROMPT.format(row["question"]), "kind": "prior" if i == 1 else "score"}
            if split in ("test", ours(row["question"])):
                yield found, source


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

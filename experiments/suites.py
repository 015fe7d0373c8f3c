"""The suites, as data: a question, rows, and which rows are compared.

A row is a name and flags for train.py; a new row is one line here. A comparison is (row, against) or (row, against, column).
"""

from typing import NamedTuple

ALL, HALF, FEW = 24, 12, 6  # heads of the tiny model; FEW, a quarter of them, is the authors' default budget
COMMON = (  # what every run has, if its row does not say otherwise; the steps are one pass over the rows
    f"--data scenes --heads {HALF} --steps 150 --limit 4800"
    " --eval-limit 800 --eval-split test --no-base --eval-every 0"
)
SEEDS = (0, 1, 2)
EIGHT = tuple(range(8))


class Suite(NamedTuple):
    question: str
    rows: dict  # {row: flags}
    comparisons: tuple | list = ()
    seeds: tuple = SEEDS


def crossed(a, b):
    """Every row of a with every row of b."""
    return {f"{x}, {y}": f"{a[x]} {b[y]}".strip() for x in a for y in b}


def against(other, rows, *column):
    """Each of the rows compared with one other."""
    return [(row, other, *column) for row in rows if row not in ("base", other)]


def with_lora(row, settings, *column):
    """In each setting the row compared with LoRA."""
    return [(f"{setting}, {row}", f"{setting}, LoRA", *column) for setting in settings]


RANK = {rank: f"--rank {rank} --alpha {2 * rank}" for rank in (1, 2, 4)}

LORA = {"LoRA": "--method lora"}
ENCODER = {"LoRA in the encoder, rank 1": f"--method lora --targets encoder {RANK[1]}"}
METHODS = {"base": "--method none"} | LORA | {"Image-LoRA": ""}  # the last as in COMMON: HALF probed heads
ALL_HEADS = {"all heads": f"--heads {ALL}"}

MAIN = {
    "base": "--method none",
    "full fine-tuning": "--method full",
    "LoRA, rank 8": "--method lora",
    "LoRA, rank 1": f"--method lora {RANK[1]}",
    **ENCODER,
    "Image-LoRA, all heads": f"--heads {ALL}",
    "Image-LoRA, 6 probed heads": "--heads 6",
    "Image-LoRA, 6 random heads": "--heads 6 --selection random",
    "Image-LoRA, 6 heads by weight": "--heads 6 --selection weight-norm",
}
PAIR = "Image-LoRA, 6 probed heads", "Image-LoRA, 6 random heads"
RIVALS = [(row, "LoRA, rank 1") for row in ("Image-LoRA, all heads", "Image-LoRA, 6 probed heads")]
RIVALS += [("Image-LoRA, 6 probed heads", "Image-LoRA, 6 heads by weight"), (*ENCODER, "full fine-tuning")]
BY_DAY = [(row, "LoRA, rank 8", "boxes by day") for row in ("Image-LoRA, all heads", *ENCODER)]

LORAS = {  # where LoRA adapts: flags, and where the search for rank 8's rate begins; a new curve of COST is a line here
    "LoRA q,k,v,o": ("--method lora", 2e-3),
    "LoRA v": ("--method lora --targets v", 8e-3),
    "LoRA in the encoder": ("--method lora --targets encoder", 2e-3),
    "LoRA in the merger": ("--method lora --targets merger", 2e-3),
    "LoRA on the MLPs": ("--method lora --targets mlp", 2e-3),
    "LoRA on all linear layers": ("--method lora --targets q,k,v,o,mlp", 1e-3),
}
COST = {"base": "--method none"}  # a row is "curve / point"
for name, (flags, _) in LORAS.items():
    ranks = (1, 2, 4) if name in ("LoRA q,k,v,o", "LoRA v") else (1,)
    COST |= {f"{name} / rank {rank}": f"{flags} {RANK[rank]}" for rank in ranks} | {f"{name} / rank 8": flags}
COST |= {f"Image-LoRA, rank 8 / {n} heads": f"--heads {n}" for n in (1, 3, FEW, HALF, ALL)}
COST |= {f"Image-LoRA, {HALF} heads / rank {rank}": RANK[rank] for rank in RANK}

BOXES_ALONE = "--data boxes-fog --eval scenes-fog scenes-day sums"  # evaluated as the others are
ALONE = "Image-LoRA, trained on boxes alone", "LoRA, trained on boxes alone"
FORGETTING = METHODS | {"LoRA at a rate of 1e-3": "--method lora --lr 1e-3"}
FORGETTING |= dict(zip(ALONE, (BOXES_ALONE, f"--method lora {BOXES_ALONE}")))

PAPER = "as in the paper"
SWITCHES = {
    "keys": "--ablate path=k",
    "queries": "--ablate path=q",
    "output": "--ablate path=o",
    "text tokens": "--ablate tokens=text",
    "all tokens": "--ablate tokens=all",
    "no 1/sqrt(n)": "--ablate norm=off",
    "one A for all layers": "--ablate shared=model",
    "gamma 1, not learned": "--ablate gamma=fixed",
}

SHARES = {  # words before a question make the visual share smaller, other images after its own make it larger
    "60 words": "--data scenes+60 --eval scenes-fog+60",
    "as it is": "--eval scenes-fog",
    "words alone": "--data words-fog",
    "words, 3 other images": "--data words-fog+3images",
    "words, 11 other images, 20 steps": "--data words-fog+11images --steps 20 --limit 640 --eval-limit 100",
}
TEXT_TOO = "60 words, Image-LoRA on text tokens"

BUDGETS = (1, 3, FEW)
SHORT = "--steps 75 --limit 2400 --eval-limit 480"
SKILLS = {skill: f"--data {skill} {SHORT}" for skill in ("boxes-fog", "words-blur")}

PRIOR = {
    **METHODS,
    "Image-LoRA, 6 heads, rank 8": "--heads 6",
    "Image-LoRA, 6 heads, rank 1": f"--heads 6 {RANK[1]}",
    "Image-LoRA, 1 head, rank 1": f"--heads 1 {RANK[1]}",
}
COMPARE = ("base", "LoRA, rank 8", "LoRA, rank 1", *ENCODER, *PAIR)
LOOKS = {look: f"--data scenes-{look}" for look in ("dusk", "negative", "blur")} | {"new words": "--data scenes-words"}

SUITES = {
    "compare": Suite("The paper's claims in a few minutes, with one seed", {row: MAIN[row] for row in COMPARE}, seeds=(0,)),
    "main": Suite(
        "Does Image-LoRA match standard LoRA, do probed heads beat random ones, and what is forgotten?",
        {row: f"{flags} --eval-limit 4000" for row, flags in MAIN.items()},
        [*against("LoRA, rank 8", MAIN), PAIR, *RIVALS, *BY_DAY],
        EIGHT,
    ),
    "cost": Suite("What do boxes cost, in parameters and in FLOPs?", COST),
    "forgetting": Suite(
        "What is forgotten by day, and does LoRA forget less at a lower rate?",
        FORGETTING,
        [*against("LoRA", FORGETTING, "boxes by day"), (*ALONE, "boxes by day")],
    ),
    "ablation": Suite(
        "Which of the method's decisions matter?",
        {PAPER: ""} | SWITCHES,
        against(PAPER, SWITCHES),
    ),
    "ratio": Suite(
        "Do the savings grow with the visual share of the tokens, and is Image-LoRA as good as LoRA at each share?",
        crossed(SHARES, METHODS) | {TEXT_TOO: f"--ablate tokens=text {SHARES['60 words']}"},
        [*with_lora("Image-LoRA", SHARES), (TEXT_TOO, "60 words, LoRA")],
    ),
    "selection": Suite("Does it matter which heads are chosen, if several skills are asked?", {}, seeds=EIGHT),
    "stability": Suite(
        "Does the selection depend on the probe's examples, seed and look, and do the important heads move in training?",
        ALL_HEADS,
    ),
    "attention": Suite("Does training change how much an answer attends to the image?", ALL_HEADS | LORA),
    "bottleneck": Suite(
        "On questions whose usual answer the image contradicts: does less capacity hold the habit off?",
        {row: f"--data scenes-prior {flags}" for row, flags in PRIOR.items()},
        against("LoRA", PRIOR),
    ),
    "looks": Suite(
        "Where does it win, and where should it lose?",
        crossed(LOOKS, METHODS | ENCODER),
        [pair for row in ("Image-LoRA", *ENCODER) for pair in with_lora(row, LOOKS) + with_lora(row, ["blur", "new words"], "words")],
    ),
}

# The search for learning rates: flags -> the middle of the first three rates that are tried. The smaller the rank, the
# higher is the best rate: the search for 1 begins at four times that for 8. Of LoRA only 1 and 8 are searched, and 2 and 4 take
# the rate of the nearer one.
SEARCHED = dict.fromkeys(["", "--heads 3", f"--heads {ALL}", *SWITCHES.values()], 2e-2)
SEARCHED |= {"--method full": 4e-4, RANK[1]: 8e-2, RANK[2]: 4e-2, RANK[4]: 4e-2}
LIKE = {}  # flags: those whose rate they take
for flags, start in LORAS.values():
    SEARCHED |= {f"{flags} {RANK[1]}": 4 * start, flags: start}
    LIKE |= {f"{flags} {RANK[2]}": f"{flags} {RANK[1]}", f"{flags} {RANK[4]}": flags}

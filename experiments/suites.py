"""The suites, as data: a question, and rows. A row is a name and flags for train.py; a new row is one line here."""

from harness.criteria import CRITERIA

STEPS = 150  # one pass over the 4,800 rows
ALL, HALF, FEW = 24, 12, 6  # heads of the tiny model; FEW, a quarter of them, is the authors' default budget
COMMON = (  # what every run has, if its row does not say otherwise
    f"--data scenes --heads {HALF} --steps {STEPS} --limit 4800"
    " --eval-limit 800 --eval-split test --no-base --eval-every 0"
)
SEEDS = (0, 1, 2)
MORE_SEEDS = {"main": (0, 1, 2, 3, 4)}
MARGIN = 0.02  # of accuracy: a method is "not worse" if its complete confidence interval lies above -MARGIN


def crossed(a, b):
    """Every row of a with every row of b."""
    return {f"{x}, {y}": f"{a[x]} {b[y]}".strip() for x in a for y in b}


def with_data(name, rows):
    """The rows, on another data set."""
    return {row: f"--data {name} {flags}".strip() for row, flags in rows.items()}


BASE = {"base": "--method none"}
LORA = {"LoRA": "--method lora"}
OURS = {"Image-LoRA": ""}  # what COMMON says: HALF probed heads
ALL_HEADS = {"Image-LoRA, all heads": f"--heads {ALL}"}  # they are probed too, so that their scores are known
KEPT = f"--save-every {STEPS // 3} --keep-states"  # three states of the training
ALONE = "trained on boxes alone"
BOXES = "--data boxes-fog --eval scenes-fog --also scenes-day sums"  # evaluated as the others are

SWITCHES = {
    "keys": "--path k",
    "queries": "--path q",
    "output": "--path o",
    "text tokens": "--tokens text",
    "all tokens": "--tokens all",
    "no 1/sqrt(n)": "--no-norm",
    "an A for each head": "--shared none",
    "one A for all layers": "--shared model",
    "B of rank 1": "--outer",
    "gamma 1, not learned": "--no-learn-gamma",
}
RANKS = {f"rank {rank}": f"--rank {rank} --alpha {2 * rank}" for rank in (1, 4, 16)}
TAUS = {f"{FEW} heads, tau {tau}": f"--heads {FEW} --tau {tau}" for tau in (0, 1)}
SHARES = {  # of visual tokens: words before a question make it smaller; the model was pretrained to read so many
    "60 words before each question": "--preamble 60 --eval scenes-fog",
    "25 words": "--preamble 25 --eval scenes-fog",
    "as it is": "",
}
CHOSEN_BY = [name for name in CRITERIA if name not in ("rank1", "chance")]  # chance: the row "random"
NEW_WORDS = "new words"  # a look by day, whose attributes are answered in words of another language
LOOKS = {look: f"--data scenes-{look}" for look in ("dusk", "negative", "blur")}
LOOKS |= {NEW_WORDS: "--data scenes-words"}

SUITES = {
    "main": (
        "Does Image-LoRA match standard LoRA, do probed heads beat random ones, and what is forgotten?",
        {
            "base": "--method none",
            "full fine-tuning": "--method full",
            "LoRA q,k,v,o": "--method lora",
            "LoRA v": "--method lora --targets v",
            "Image-LoRA, all heads": f"--heads {ALL}",
            f"Image-LoRA, {HALF} probed heads": "",
            f"Image-LoRA, {HALF} random heads": "--selection random",
            f"Image-LoRA, {FEW} probed heads": f"--heads {FEW}",
            f"Image-LoRA, {FEW} random heads": f"--heads {FEW} --selection random",
            "Image-LoRA, 3 probed heads": "--heads 3",
            "Image-LoRA, 3 random heads": "--heads 3 --selection random",
            f"LoRA q,k,v,o, {ALONE}": f"--method lora {BOXES}",
            f"Image-LoRA, all heads, {ALONE}": f"--heads {ALL} {BOXES}",
        },
    ),
    "ablation": (
        "Which of the method's decisions matter?",
        {
            "as in the paper": "",
            **SWITCHES,
            **RANKS,
            "1 head": "--heads 1",
            "3 heads": "--heads 3",
            f"{FEW} heads": f"--heads {FEW}",
            f"{ALL} heads": f"--heads {ALL}",
            **TAUS,
        },
    ),
    "ratio": (
        "Do the savings grow with the visual share of the tokens, and is Image-LoRA as good as LoRA at each share?",
        crossed(SHARES, BASE | LORA | OURS),
    ),
    "criteria": (
        "Does it matter by what the heads are chosen?",
        {
            "rank1": f"--heads {FEW}",
            "random": f"--heads {FEW} --selection random",
            **{name: f"--heads {FEW} --selection {name}" for name in CHOSEN_BY},
        },
    ),
    "faithful": (
        "Does a head's probe score say how much a trained adapter loses without it? Are probed heads as good as the best?",
        {
            **LORA,
            **ALL_HEADS,
            "probed heads": f"--heads {FEW}",
            "random heads": f"--heads {FEW} --selection random",
        },
    ),
    "stability": (
        "Does the selection depend on the probe's examples, seed and look, and does that cost accuracy?",
        {
            "probed on the usual data": f"--heads {FEW}",
            "random heads": f"--heads {FEW} --selection random",
        },
    ),
    "drift": (
        "Do the important heads move while they are trained?",
        {"Image-LoRA, all heads": f"--heads {ALL} {KEPT}"},
    ),
    "attention": (
        "How does the attention of the answer to the image change, in the end and during training?",
        {"LoRA": f"--method lora {KEPT}", "Image-LoRA": f"--heads {ALL} {KEPT}"},
    ),
    "bottleneck": (
        "On questions whose usual answer the image contradicts: does less capacity hold the habit off?",
        with_data(
            "scenes-prior",
            {
                **BASE,
                **LORA,
                f"Image-LoRA, {ALL} heads, rank 8": f"--heads {ALL}",
                f"Image-LoRA, {FEW} heads, rank 8": f"--heads {FEW}",
                f"Image-LoRA, {FEW} heads, rank 1": f"--heads {FEW} --rank 1 --alpha 2",
                "Image-LoRA, 1 head, rank 1": "--heads 1 --rank 1 --alpha 2",
            },
        ),
    ),
    "looks": (
        "Where does it win, and where should it lose?",
        crossed(LOOKS, BASE | LORA | OURS),
    ),
}

OURS_SEARCHED = [
    "",
    *RANKS.values(),
    *(f"--path {path}" for path in "kqo"),
    "--tokens text",
    "--tokens all",
    "--no-norm",
    "--shared model",
    "--outer",
]
SEARCHED = {  # flags: the learning rates to try. A row takes the rate of the longest entry whose flags it contains
    **dict.fromkeys(OURS_SEARCHED, (1e-2, 2e-2, 4e-2)),
    "--method lora": (1e-3, 2e-3, 4e-3, 8e-3),
    "--method lora --targets v": (4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "--method full": (2e-4, 4e-4, 8e-4, 1.6e-3),
}

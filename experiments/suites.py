"""The suites, as data: a question, and rows. A row is a name and flags for train.py; a new row is one line here."""

from variants.criteria import CRITERIA

COMMON = "--data scenes --steps 200 --limit 4800 --eval-limit 600 --eval-split test --no-base"
MARGIN = 0.05  # of accuracy: a method is "not worse" if its complete confidence interval lies above -MARGIN
FEW = 5  # heads: a quarter of the tiny model's, the authors' default budget


def crossed(a, b):
    """Every row of a with every row of b."""
    return {f"{x}, {y}": f"{a[x]} {b[y]}".strip() for x in a for y in b}


def with_data(name, rows):
    """The rows, on another data set."""
    return {row: f"--data {name} {flags}".strip() for row, flags in rows.items()}


BASE = {"base": "--method none"}
LORA = {"LoRA": "--method lora"}
OURS = {"Image-LoRA": ""}  # train.py's defaults

RANKS = {f"rank {rank}": f"--rank {rank} --alpha {2 * rank}" for rank in (1, 2, 4, 16, 32)}
BUDGETS = {f"{heads} heads": f"--heads {heads}" for heads in (5, 10, 20)}
TAUS = {f"5 heads, tau {tau}": f"--heads 5 --tau {tau}" for tau in (0, 1, 2)}
SHARES = {  # of visual tokens: words before a question make it smaller, large images make it larger
    "100 words before each question": "--preamble 100",
    "30 words": "--preamble 30",
    "as it is": "",
    "images of 224 pixels": "--min-pixels 50176",
}
CHOSEN_BY = [name for name in CRITERIA if name not in ("rank1", "chance")]  # chance: the row "random"
LOOKS = {look: f"--data scenes-{look}" for look in ("dusk", "fog", "noise", "negative", "words")}
LOOKS |= {"blur": "--data scenes"}

SUITES = {
    "main": (
        "Does Image-LoRA match standard LoRA, do probed heads beat random ones, and what is forgotten?",
        {
            "base": "--method none",
            "full fine-tuning": "--method full",
            "LoRA q,k,v,o": "--method lora",
            "LoRA v": "--method lora --targets v",
            "Image-LoRA, all heads": "--heads 20",
            "Image-LoRA, 15 probed heads": "",
            "Image-LoRA, 15 random heads": "--selection random",
            "Image-LoRA, 5 probed heads": "--heads 5",
            "Image-LoRA, 5 random heads": "--heads 5 --selection random",
        },
    ),
    "ablation": (
        "Which of the method's decisions matter?",
        {
            "as in the paper": "",
            "keys": "--path k",
            "queries": "--path q",
            "output": "--path o",
            "text tokens": "--tokens text",
            "all tokens": "--tokens all",
            "no 1/sqrt(n)": "--no-norm",
            "an A for each head": "--no-shared",
            "gamma 1, not learned": "--no-learn-gamma",
            **RANKS,
            "1 head": "--heads 1",
            **BUDGETS,
            **TAUS,
        },
    ),
    "ratio": (
        "Do the savings grow with the visual share of the tokens?",
        crossed(SHARES, LORA | OURS),
    ),
    "criteria": (
        "Does it matter by what the heads are chosen?",
        {
            "rank1": "--heads 5",
            "random": "--heads 5 --selection random",
            **{name: f"--heads 5 --selection {name}" for name in CHOSEN_BY},
        },
    ),
    "faithful": (
        "Does a head's probe score say how much a trained adapter loses without it?",
        {"Image-LoRA, all heads": "--heads 20"},
    ),
    "stability": (
        "Does the selection depend on the probe's examples, seed and look?",
        {},
    ),
    "drift": (
        "Do the important heads move while they are trained?",
        {"Image-LoRA, all heads": "--heads 20 --save-every 50 --keep-states"},
    ),
    "attention": (
        "How does the attention of the answer to the image change?",
        LORA | {"Image-LoRA": "--heads 20"},
    ),
    "bottleneck": (
        "On questions whose usual answer the image contradicts: does less capacity hold the habit off?",
        with_data(
            "scenes-prior",
            {
                **BASE,
                **LORA,
                "Image-LoRA, 20 heads, rank 8": "--heads 20 --rank 8 --alpha 16",
                "Image-LoRA, 5 heads, rank 8": "--heads 5 --rank 8 --alpha 16",
                "Image-LoRA, 5 heads, rank 1": "--heads 5 --rank 1 --alpha 2",
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
    *(f"--rank {rank}" for rank in (1, 2, 4, 16, 32)),
    *(f"--path {path}" for path in "kqo"),
    "--tokens text",
    "--tokens all",
]
SEARCHED = {  # flags: the learning rates to try. A row takes the rate of the longest entry whose flags it contains
    **dict.fromkeys(OURS_SEARCHED, (5e-3, 1e-2, 2e-2, 4e-2)),
    "--method lora": (1e-3, 2e-3, 4e-3, 8e-3),
    "--method lora --targets v": (4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "--method full": (2e-4, 4e-4, 8e-4, 1.6e-3),
}

"""The suites as data: a question, and rows of flags for train.py. Adding a row is one line here."""

from probe import CRITERIA

COMMON = "--data scenes --steps 200 --limit 4800 --eval-limit 600 --eval-split test --no-base"
MARGIN = 0.05  # of accuracy: a method is "not worse" if the whole confidence interval lies above -MARGIN
FEW = 5  # heads: a quarter of the tiny model's, the authors' default budget


def crossed(a, b):
    """Every row of a with every row of b."""
    return {f"{x}, {y}": f"{a[x]} {b[y]}".strip() for x in a for y in b}


BASE, LORA, OURS = {"base": "--method none"}, {"LoRA": "--method lora"}, {"Image-LoRA": ""}
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
            "gamma 1, not learned": "--no-learn-gate",
            **{f"rank {rank}": f"--rank {rank} --alpha {2 * rank}" for rank in (1, 2, 4, 16, 32)},
            "1 head": "--heads 1",
            **{f"{heads} heads": f"--heads {heads}" for heads in (5, 10, 20)},
            **{f"5 heads, tau {tau}": f"--heads 5 --tau {tau}" for tau in (0, 1, 2)},
        },
    ),
    "ratio": (
        "Do the savings grow with the visual share of the tokens?",
        crossed(
            {
                "100 words before each question": "--preamble 100",
                "30 words": "--preamble 30",
                "as it is": "",
                "pictures of 224 pixels": "--min-pixels 50176",
            },
            LORA | OURS,
        ),
    ),
    "criteria": (
        "Does it matter by what the heads are chosen?",
        {"rank1": "--heads 5", "random": "--heads 5 --selection random"}
        | {name: f"--heads 5 --selection {name}" for name in CRITERIA if name not in ("rank1", "chance")},
    ),
    "faithful": (
        "Does a head's probe score say how much a trained adapter loses without it?",
        {"Image-LoRA, all heads": "--heads 20"},
    ),
    "stability": ("Does the selection depend on the probe's rows, seed and look?", {}),
    "drift": (
        "Do the important heads move while they are trained?",
        {"Image-LoRA, all heads": "--heads 20 --save-every 50 --keep-states"},
    ),
    "attention": (
        "How does the attention of the answer to the picture change?",
        {"LoRA": "--method lora", "Image-LoRA": "--heads 20"},
    ),
    "bottleneck": (
        "On questions whose usual answer the picture contradicts: does less capacity hold the habit off?",
        {name: f"--data scenes-prior {flags}" for name, flags in (BASE | LORA).items()}
        | {
            f"Image-LoRA, {n} head{'s' * (n > 1)}, rank {rank}": f"--data scenes-prior --heads {n} --rank {rank} --alpha {2 * rank}"
            for n, rank in ((20, 8), (5, 8), (5, 1), (1, 1))
        },
    ),
    "looks": (
        "Where does it win, and where should it lose?",
        crossed(
            {look: f"--data scenes-{look}" for look in ("dusk", "fog", "noise", "negative", "words")}
            | {"blur": "--data scenes"},
            BASE | LORA | OURS,
        ),
    ),
}
OURS_SEARCHED = ["", *(f"--rank {rank}" for rank in (1, 2, 4, 16, 32)), *(f"--path {path}" for path in "kqo")]
OURS_SEARCHED += ["--tokens text", "--tokens all"]
SEARCHED = {  # rows whose learning rate is searched; a row takes the rate of the longest entry whose flags it contains
    **dict.fromkeys(OURS_SEARCHED, (5e-3, 1e-2, 2e-2, 4e-2)),
    "--method lora": (1e-3, 2e-3, 4e-3, 8e-3),
    "--method lora --targets v": (4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "--method full": (2e-4, 4e-4, 8e-4, 1.6e-3),
}

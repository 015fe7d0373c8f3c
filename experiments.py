"""The paper's tables, its review's demands and its open questions: each one command.

    python experiments.py rates                     the learning rates that the suites use, searched once
    python experiments.py main --seeds 0 1 2 3 4    a suite
    python experiments.py all                       every suite

A suite is a question and rows; a row is a name and flags for train.py, and runs once for every seed. All rows of a seed
see the same data in the same order. Each run has its folder under --runs; one that has a report is done, one that was
interrupted goes on from its last saved state, so a killed suite is resumed by the same command. A suite writes
results/SUITE.json, results/SUITE.md (its table) and results/SUITE.png. Learning rates are searched on the split "val",
results come from the split "test".
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from statistics import mean, stdev

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch looks for it; nothing here needs it

import torch
from tqdm import tqdm

import figures
import train
from data import Processor, load
from imagelora import load_adapter
from model import VLM, InputError, read_json, write_text
from probe import CRITERIA, head_scores, save_selection, select_heads

HERE = Path(__file__).parent
RATES = HERE / "results/learning-rates.json"
COMMON = "--data scenes --steps 300 --limit 4800 --eval-limit 300 --eval-split test --no-base"
MARGIN = 0.05  # of accuracy: a method is "not worse" than LoRA if the whole confidence interval lies above -MARGIN

# ---------------------------------------------------------------------------------------------------------- the suites
# {suite: (question, {row: flags})}. Adding a row is one line here.

SUITES = {
    "main": (
        "Does Image-LoRA match standard LoRA, do probed heads beat random ones, and what is forgotten?",
        {
            "base": "--method none",
            "full fine-tuning": "--method full",
            "LoRA q,k,v,o": "--method lora",
            "LoRA v": "--method lora --targets v",
            "Image-LoRA, 5 probed heads": "--heads 5",
            "Image-LoRA, 5 random heads": "--heads 5 --selection random",
            "Image-LoRA, all heads": "--selection all",
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
            **{f"{heads} heads": f"--heads {heads}" for heads in (1, 5, 10, 20)},
            **{f"tau {tau}": f"--heads 5 --tau {tau}" for tau in (0, 1, 2)},
        },
    ),
    "criteria": (
        "Does it matter by what the heads are chosen?",
        {criterion: f"--heads 5 --selection {criterion}" for criterion in CRITERIA},
    ),
    "looks": (
        "Where does it win, and where should it lose?",
        {
            f"{look}, {name}": f"--data scenes-{look} {flags}"
            for look in ("dusk", "fog", "blur", "noise", "negative", "words")
            for name, flags in (("base", "--method none"), ("LoRA", "--method lora"), ("Image-LoRA", ""))
        },
    ),
    "faithful": (
        "Does a head's probe score say how much a trained adapter loses without it?",
        {"Image-LoRA, all heads": "--heads 20"},
    ),
    "stability": ("Does the selection depend on the probe's rows, seed and look?", {}),
    "ratio": (
        "Do the savings grow with the visual share of the tokens?",
        {
            f"{share}, {name}": f"{size} {flags}"
            for share, size in (
                ("100 words before each question", "--preamble 100"),
                ("30 words", "--preamble 30"),
                ("as it is", ""),
                ("pictures of 224 pixels", "--min-pixels 50176"),
            )
            for name, flags in (("LoRA", "--method lora"), ("Image-LoRA", ""))
        },
    ),
    "bottleneck": (
        "On questions whose usual answer the picture contradicts: does less capacity hold the habit off?",
        {
            "base": "--data scenes-prior --method none",
            "LoRA": "--data scenes-prior --method lora",
            **{
                f"Image-LoRA, {heads} heads, rank {rank}": f"--data scenes-prior --heads {heads} --rank {rank} --alpha {2 * rank}"
                for heads, rank in ((20, 8), (5, 8), (5, 1), (1, 1))
            },
        },
    ),
    "drift": (
        "Do the important heads move while they are trained?",
        {"Image-LoRA, 20 heads": "--heads 20 --save-every 75 --keep-states", "Image-LoRA, 5 heads": "--heads 5"},
    ),
    "attention": (
        "How does the attention of the answer to the picture change?",
        {"LoRA": "--method lora", "Image-LoRA": "--heads 20"},
    ),
}
SEARCHED = {  # rows whose learning rate is searched; a row takes the rate of the last entry whose flags it contains
    "": (5e-3, 1e-2, 2e-2, 4e-2),
    **{f"--rank {rank}": (5e-3, 1e-2, 2e-2, 4e-2) for rank in (1, 2, 4, 16, 32)},
    "--method lora": (1e-3, 2e-3, 4e-3, 8e-3),
    "--method lora --targets v": (2e-3, 4e-3, 8e-3, 1.6e-2),
    "--method full": (1e-4, 2e-4, 4e-4, 8e-4),
}

# -------------------------------------------------------------------------------------------------------------- runs


def words(flags):
    """ "--rank 8 --no-norm" -> {("--rank", "8"), ("--no-norm",)}."""
    return {tuple(part.split()) for part in re.findall(r"--[^-]\S*(?: (?!--)\S+)*", flags)}


def rate(flags):
    """The learning rate found for a row's flags."""
    if "--method none" in flags:
        return 0.0
    rates = read_json(RATES)["rates"]
    fitting = [key for key in SEARCHED if words(key) <= words(flags)]
    return rates[max(fitting, key=lambda key: len(words(key)))]


def run_all(jobs, args):
    """jobs: {folder: flags}. Run train.py for each that has no report yet, --jobs at a time, each with its share of the
    cores. Raises InputError with the last line that a failed run said."""
    threads = str(max(1, args.cores // args.jobs))

    def one(folder, flags):
        if (folder / "report.json").exists():
            return
        resume = (folder / "state.pt").exists()
        command = ["--resume", str(folder)] if resume else [*flags.split(), "--out", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        command = [sys.executable, str(HERE / "train.py"), *command]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise InputError(f"{folder}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")

    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(jobs), desc=args.suite, unit="run") as bar:
        for future in [pool.submit(one, folder, flags) for folder, flags in jobs.items()]:
            future.result()
            bar.update()
    return {folder: read_json(folder / "report.json") for folder in jobs}


def slug(name):
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def search_rates(args):
    """The same small search for every method and rank: a few rates, one seed, the best accuracy on the split "val"."""
    common = COMMON.replace("--eval-split test", "--eval-split val") + " --also"
    jobs = {
        args.runs / "rates" / f"{slug(key) or 'image-lora'}-{lr}": f"{common} {key} --lr {lr}"
        for key, rates in SEARCHED.items()
        for lr in rates
    }
    reports = iter(run_all(jobs, args).values())
    found = {key: {lr: next(reports)["tuned"]["accuracy"] for lr in rates} for key, rates in SEARCHED.items()}
    best = {key: max(accuracies, key=accuracies.get) for key, accuracies in found.items()}
    write_text(RATES, json.dumps({"flags": common, "accuracy": found, "rates": best}, indent=1) + "\n")


def run_rows(suite, rows, args):
    """{row: [report of each seed]} of a suite; the base model needs no second seed."""
    jobs, owner = {}, {}
    for name, flags in rows.items():
        for seed in args.seeds[:1] if "--method none" in flags else args.seeds:
            folder = args.runs / suite / f"{slug(name)}-{seed}"
            lr = "" if "--method none" in flags else f" --lr {rate(flags)}"
            base = " --base" if "--method none" in flags else ""
            jobs[folder] = f"{COMMON} {flags}{lr}{base} --seed {seed} --probe-seed {seed} {args.more}"
            owner.setdefault(name, []).append(folder)
    reports = run_all(jobs, args)
    return {name: [reports[folder] for folder in folders] for name, folders in owner.items()}


# -------------------------------------------------------------------------------------------------------- statistics


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
    d, n = mean(differences), len(differences)
    if n < 2 or (s := stdev(differences)) == 0:
        return {"difference": d, "interval": None, "p": None}
    error = s / math.sqrt(n)
    half = t_quantile(0.975, n - 1) * error
    return {"difference": d, "interval": [d - half, d + half], "p": 2 * (1 - t_cdf(abs(d / error), n - 1))}


def ranks(values):
    """Ranks from 1; equal values share the mean of their ranks."""
    order = sorted(values)
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]


def spearman(a, b):
    """Rank correlation of two lists; None if one is constant."""
    a, b = ranks(a), ranks(b)
    ma, mb = mean(a), mean(b)
    spread = math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))
    return sum((x - ma) * (y - mb) for x, y in zip(a, b)) / spread if spread else None


def jaccard(a, b):
    """Overlap of two selections {layer: [heads]}: common heads / heads in either."""
    a, b = ({(layer, h) for layer, hs in x.items() for h in hs} for x in (a, b))
    return len(a & b) / len(a | b)


# ------------------------------------------------------------------------------------------------------------ tables


def kinds(report):
    return report["tuned"]["by_kind"] or report["base"]["by_kind"]


MEASURES = {  # column: (value from a report or None, how it is written)
    "new look": (lambda r: r["tuned"]["accuracy"] if r["tuned"]["accuracy"] is not None else r["base"]["accuracy"], "%"),
    "day grounding": (lambda r: kinds(r).get("scenes-day grounding"), "%"),
    "attributes": (lambda r: kinds(r).get("scenes-day attribute"), "%"),
    "text": (lambda r: kinds(r).get("sums text"), "%"),
    "text logits": (lambda r: r["text_logit_max_change"], ".2g"),
    "parameters": (lambda r: r["trainable_parameters"], ",.0f"),
    "FLOPs a step": (lambda r: r["adapter_flops_per_step"], ".2e"),
    "ms a step": (lambda r: r["step_ms"], ".0f"),
}  # fmt: skip


def written(values, form):
    """The mean over the seeds, with the standard deviation if there are several and they differ."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    if form == "%":
        spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * mean(values):.1f}{spread} %"
    return format(mean(values), form)


def signed(percent):
    return f"{100 * percent:+.1f}"


def against(name, comparison):
    """One sentence of a paired comparison with LoRA."""
    interval, p = comparison["interval"], comparison["p"]
    if interval is None:
        return f"{name}: {signed(comparison['difference'])} points, one seed."
    verdict = "not worse" if interval[0] > -MARGIN else "worse" if interval[1] < 0 else "undecided"
    return (
        f"{name}: {signed(comparison['difference'])} points [{signed(interval[0])}, {signed(interval[1])}], p = {p:.3f}, "
        f"{verdict} at a margin of {100 * MARGIN:.0f} points."
    )


def markdown(result):
    """The table of a suite's result, and under it what its comparisons and its analysis say."""
    lines = [f"**{result['question']}**", ""]
    if result["rows"]:
        names = [m for m in MEASURES if any(v is not None for r in result["rows"] for v in r["values"][m])]
        lines += [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        for row in result["rows"]:
            cells = [written(row["values"][m], MEASURES[m][1]) for m in names]
            lines.append(f"| {row['name']} | {' | '.join(cells)} |")
        lines.append("")
    for title, header, rows in result["tables"]:
        lines += [f"{title}:", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows] + [""]
    lines += [f"- {sentence}" for sentence in result["sentences"]]
    lines.append(f"- `{result['command']}`, {result['seconds'] / 60:.0f} minutes on {result['cores']} cores.")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------- analyses
# What a suite says beyond its rows: (suite's reports, args) -> (tables, sentences). A table is (title, header, rows).


def differences_to_lora(reports, args):
    accuracy = {name: [MEASURES["new look"][0](r) for r in rs] for name, rs in reports.items()}
    lora = accuracy["LoRA q,k,v,o"]
    others = [name for name in reports if name not in ("base", "LoRA q,k,v,o")]
    sentences = [against(f"{name} against LoRA", paired(accuracy[name], lora)) for name in others]
    probed, drawn = accuracy["Image-LoRA, 5 probed heads"], accuracy["Image-LoRA, 5 random heads"]
    return [], [*sentences, against("Probed against random heads", paired(probed, drawn))]


def selections(args, suite, name):
    """(heads, scores) that the runs of a row wrote down."""
    files = [args.runs / suite / f"{slug(name)}-{seed}" / "heads.json" for seed in args.seeds]
    return [read_json(file) for file in files]


def agreement_of_criteria(reports, args):
    flat = {name: list(chain(*selections(args, "criteria", name)[0]["scores"])) for name in reports}
    header = ["", *flat]
    rows = [[a, *(f"{spearman(flat[a], flat[b]):+.2f}" for b in flat)] for a in flat]
    return [("Rank correlation of the scores", header, rows)], []


def unevenness(reports, args):
    chosen = [len(hs) for hs in selections(args, "ablation", "as in the paper")[0]["heads"].values()]
    return [], [f"Heads picked in each adapted layer: {chosen}; 1/sqrt(n) matters where these differ."]


def tiny_model(args):
    return VLM.from_pretrained(HERE / "tiny"), Processor.from_pretrained(HERE / "tiny", max_pixels=train.MAX_PIXELS)


def switched_off(reports, args):
    """Every head of a trained adapter switched off (its B set to 0) in turn: accuracy and loss on the held-out rows."""
    vlm, processor = tiny_model(args)
    rows = load("scenes", None, "test", 200)
    settings = train.parse_args(COMMON.split())
    known = train.encode_pictures(settings, vlm, processor, rows)
    batches = [processor(rows[i : i + 50], share_images=True, known=known) for i in range(0, len(rows), 50)]
    table, sentences = [], []
    for seed in args.seeds:
        folder = args.runs / "faithful" / f"{slug('Image-LoRA, all heads')}-{seed}"
        adapter, scores = load_adapter(folder / "adapter.safetensors", vlm), read_json(folder / "heads.json")["scores"]

        def measured():
            predictions = train.evaluate(settings, vlm, processor, rows, "scenes", known)
            with torch.no_grad():
                loss = mean(vlm.loss(batch).item() for batch in batches)
            return mean(p["score"] for p in predictions), loss

        whole = measured()
        drops = []
        for layer, heads in adapter.heads.items():
            B = adapter.layers[str(layer)].B.data
            for i, h in enumerate(heads):
                kept = B[i].clone()
                B[i] = 0
                accuracy, loss = measured()
                drops.append((scores[layer][h], whole[0] - accuracy, loss - whole[1]))
                B[i] = kept
        adapter.detach()
        score, lost, rise = zip(*drops)
        table.append([seed, f"{spearman(score, lost):+.2f}", f"{spearman(score, rise):+.2f}"])
    header = ["seed", "score and lost accuracy", "score and rise of the loss"]
    return [("Rank correlation over the heads", header, table)], sentences


def stable(reports, args):
    """Selections of 5 heads by probes of other sizes, seeds and looks, against 256 rows of the demo's look, seed 0."""
    vlm, processor = tiny_model(args)
    settings = train.parse_args(COMMON.split())

    def probe(look="blur", count=256, seed=0):
        rows = load(f"scenes-{look}", None, "train", 400)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
        known = train.encode_pictures(settings, vlm, processor, [rows[i] for i in order])
        return head_scores(vlm, (processor([rows[i]], known=known) for i in order), seed=seed)

    reference = probe()
    table = []
    variants = [(f"{n} rows, seed {s}", {"count": n, "seed": s}) for n in (1, 4, 16, 64, 256) for s in args.seeds]
    variants += [(f"look {look}, 256 rows", {"look": look}) for look in ("day", "fog", "noise", "negative")]
    for name, how in tqdm(variants, desc="stability"):
        scores = probe(**how)
        overlap = jaccard(select_heads(scores, 5), select_heads(reference, 5))
        correlation = spearman(scores.flatten().tolist(), reference.flatten().tolist())
        table.append([name, f"{overlap:.2f}", f"{correlation:+.2f}"])
    return [
        ("Against 256 rows of the look blur, seed 0", ["probe", "overlap (Jaccard)", "rank correlation"], table)
    ], []


def probe_attached(vlm, processor, args, seed):
    """Scores of the model as it is, adapter included, by 64 training rows of the demo's look."""
    rows = load("scenes", None, "train", 400)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:64].tolist()
    return head_scores(vlm, (processor([rows[i]]) for i in order), seed=seed)


def moving(reports, args):
    """Probe the model at its saved states; and train the second half with the heads that a probe half way picks, or with
    the old ones again."""
    table, jobs = [], {}
    for seed in args.seeds:
        vlm, processor = tiny_model(args)
        first = probe_attached(vlm, processor, args, seed)
        folder = args.runs / "drift" / f"{slug('Image-LoRA, 20 heads')}-{seed}"
        adapter = load_adapter(folder / "adapter.safetensors", vlm)
        for state in sorted(folder.glob("state-*.pt"), key=lambda file: int(file.stem.split("-")[1])):
            for p, saved in zip(adapter.parameters(), torch.load(state, weights_only=True)["parameters"]):
                p.data.copy_(saved)
            scores = probe_attached(vlm, processor, args, seed)
            correlation = spearman(first.flatten().tolist(), scores.flatten().tolist())
            overlap = jaccard(select_heads(first, 5), select_heads(scores, 5))
            table.append([seed, state.stem.split("-")[1], f"{correlation:+.2f}", f"{overlap:.2f}"])
        adapter.detach()

        half = args.runs / "drift" / f"half-{seed}"
        flags = f"{COMMON} --heads 5 --lr {rate('')} --steps 150 --seed {seed} {args.more}"
        run_all({half: flags}, args)
        load_adapter(half / "adapter.safetensors", vlm)
        save_selection(half / "later.json", select_heads(probe_attached(vlm, processor, args, seed), 5))
        for name, heads in (("static", "heads.json"), ("re-selected", "later.json")):
            more = f"--selection {half / heads} --continue-from {half / 'adapter.safetensors'}"
            jobs[args.runs / "drift" / f"{name}-{seed}"] = f"{flags} {more}"
    accuracy = [r["tuned"]["accuracy"] for r in run_all(jobs, args).values()]
    header = ["seed", "step", "rank correlation with step 0", "overlap of 5 heads with step 0"]
    compared = against(
        "Second half with heads selected anew against the old ones", paired(accuracy[1::2], accuracy[::2])
    )
    return [("20 heads in training, probed as they are", header, table)], [compared.replace("not worse", "no worse")]


def attending(reports, args):
    """The share of the attention of the answer's tokens that goes to visual tokens, by layer; and a map of the first
    picture for every layer's head that changes most."""
    vlm, processor = tiny_model(args)
    rows = load("scenes", None, "test", 60)
    batches = [processor(rows[i : i + 20]) for i in range(0, len(rows), 20)]

    def shares():
        """[L, H]: mean over the supervised positions; and the maps of the first row, [L, H, its visual tokens]."""
        total, maps = 0, None
        with torch.no_grad():
            for batch in batches:
                weights = torch.stack(vlm(batch, return_weights=True)[1])  # [L, B, H, T, T]
                to_image = (weights * batch.visual_mask[:, None, None]).sum(-1)  # [L, B, H, T]
                asks = batch.follows != -100
                total = total + (to_image * asks[:, None]).sum((1, 3)) / asks.sum() / len(batches)
                if maps is None:
                    maps = weights[:, 0][:, :, asks[0]].mean(2)[..., batch.visual_mask[0]]
        return total, maps

    seen = {"base": shares()}
    for name in reports:
        adapter = load_adapter(args.runs / "attention" / f"{slug(name)}-{args.seeds[0]}" / "adapter.safetensors", vlm)
        seen[name] = shares()
        adapter.detach()
    header = ["layer", *seen]
    table = [[i, *(f"{share[i].mean():.3f}" for share, _ in seen.values())] for i in range(vlm.config.layers)]
    moved = [
        [i, *(f"{(share[i] - seen['base'][0][i]).abs().max():.3f}" for share, _ in seen.values())]
        for i in range(vlm.config.layers)
    ]
    heads = (seen["Image-LoRA"][0] - seen["base"][0]).abs().argmax(dim=1).tolist()
    maps = {
        name: [(f"layer {i}, head {h}", found[i, h].tolist()) for i, h in enumerate(heads)]
        for name, (_, found) in seen.items()
    }
    out = HERE / "results" if args.out is None else args.out
    figures.attention(out / "attention-maps.png", rows[0].images[0], train.expression(rows[0].prompt), maps)
    return [
        ("Share of the answer's attention that goes to visual tokens, mean over heads", header, table),
        ("Largest change of that share in one head", header, moved),
    ], []


ANALYSES = {
    "main": differences_to_lora,
    "ablation": unevenness,
    "criteria": agreement_of_criteria,
    "faithful": switched_off,
    "stability": stable,
    "drift": moving,
    "attention": attending,
}

# --------------------------------------------------------------------------------------------------------- the command


def run_suite(suite, args):
    question, rows = SUITES[suite]
    start = time.perf_counter()
    args.suite = suite
    reports = run_rows(suite, rows, args) if rows else {}
    tables, sentences = ANALYSES[suite](reports, args) if suite in ANALYSES else ([], [])
    trained = sum(r["wall_seconds"] for rs in reports.values() for r in rs) / args.jobs  # those of earlier calls too
    result = {
        "suite": suite,
        "question": question,
        "seeds": args.seeds,
        "rows": [
            {
                "name": name,
                "flags": rows[name],
                "values": {m: [value(r) for r in reports[name]] for m, (value, _) in MEASURES.items()},
            }
            for name in reports
        ],
        "tables": tables,
        "sentences": sentences,
        "seconds": max(time.perf_counter() - start, trained),
        "cores": args.cores,
        "command": f"python experiments.py {suite} --seeds {' '.join(map(str, args.seeds))}",
    }
    folder = HERE / "results" if args.out is None else args.out
    write_text(folder / f"{suite}.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / f"{suite}.md", markdown(result))
    if result["rows"]:
        values = {row["name"]: [v for v in row["values"]["new look"] if v is not None] for row in result["rows"]}
        figures.dots(folder / f"{suite}.png", values, question, "accuracy in the new look")
    print(f"\n{markdown(result)}\n  written to {folder}/{suite}.json, .md" + (", .png" if result["rows"] else ""))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=[*SUITES, "rates", "all"], metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one a core)")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="where the runs' folders are")
    parser.add_argument("--out", type=Path, help="where the tables go (default: results)")
    parser.add_argument("--more", default="", help='further flags for every run, such as "--steps 50"')
    args = parser.parse_args(argv)
    args.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    args.jobs, args.suite = args.jobs or args.cores, "rates"
    try:
        if "rates" in args.suites or not RATES.exists():
            search_rates(args)
        for suite in SUITES if "all" in args.suites else [s for s in args.suites if s != "rates"]:
            run_suite(suite, args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

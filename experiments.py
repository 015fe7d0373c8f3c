"""The paper's tables, its review's demands and its open questions: each one command.

    python experiments.py rates                     the learning rates that the suites use, searched once
    python experiments.py main --seeds 0 1 2 3 4    a suite
    python experiments.py all                       every suite
    python experiments.py main --out results-3b --more "--model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco ..."

A suite is a question and rows; a row is a name and flags for train.py, and runs once for every seed. All rows of a seed
see the same data in the same order. A run has a folder under --runs, named by its flags, so that suites share runs; one
that has a report is done, one that was interrupted goes on from its last saved state: the same command resumes a killed
suite. A suite writes SUITE.json, SUITE.md (its tables) and SUITE.png (the first column of each table) into --out.
Learning rates are searched on the split "val", results come from the split "test".
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch looks for it; nothing here needs it

import torch
from tqdm import tqdm

import figures
import train
from imagelora import load_adapter
from metrics import paired
from model import InputError, read_json, write_text
from probe import CRITERIA, head_scores, jaccard, save_selection, select_heads, spearman

HERE = Path(__file__).parent
COMMON = "--data scenes --steps 200 --limit 4800 --eval-limit 600 --eval-split test --no-base"
MARGIN = 0.05  # of accuracy: a method is "not worse" if the whole confidence interval lies above -MARGIN
FEW = 5  # heads: a quarter of the tiny model's, the authors' default budget

# ---------------------------------------------------------------------------------------------------------- the suites
# {suite: (question, {row: flags})}. Adding a row is one line here; what a suite says beyond its rows is in ANALYSES.


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

# -------------------------------------------------------------------------------------------------------------- runs


def words(flags):
    """ "--rank 8 --no-norm" -> {("--rank", "8"), ("--no-norm",)}."""
    return {tuple(part.split()) for part in re.findall(r"--[^-]\S*(?: (?!--)\S+)*", flags)}


def rate(flags, args):
    """The learning rate found for a row's flags; 0 where nothing is trained."""
    if "--method none" in flags:
        return 0.0
    rates = read_json(args.out / "learning-rates.json")["rates"]
    fitting = [key for key in SEARCHED if words(key) <= words(flags)]
    return rates[max(fitting, key=lambda key: len(words(key)))]


def run_all(rows, args, common=COMMON):
    """[flags] -> [report]: train.py for each that has no report yet, --jobs at a time, each with its share of the cores.
    Raises InputError with the last line that a failed run said."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, args.cores // args.jobs))}

    def one(flags):
        command = f"{common} {flags} {args.more}".split()
        name = f"{re.sub(r'[^A-Za-z0-9.]+', '-', flags).strip('-')[:60]}-{hashlib.sha1(repr(command).encode()).hexdigest()[:6]}"
        folder = args.runs / name
        if not (folder / "report.json").exists():
            command = ["--resume", str(folder)] if (folder / "state.pt").exists() else [*command, "--out", str(folder)]
            command = [sys.executable, str(HERE / "train.py"), *command]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                raise InputError(f"{folder}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        bar.update()
        return read_json(folder / "report.json")

    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(rows), desc=args.suite, unit="run") as bar:
        return list(pool.map(one, rows))


def search_rates(args):
    """The same small search for every method and rank: a few rates, one seed, the best accuracy on the split "val"."""
    common = COMMON.replace("--eval-split test", "--eval-split val") + " --also"
    pairs = [(key, lr) for key, rates in SEARCHED.items() for lr in rates]
    reports = run_all([f"{key} --lr {lr}".strip() for key, lr in pairs], args, common)
    found = {key: {} for key in SEARCHED}
    for (key, lr), report in zip(pairs, reports):
        found[key][lr] = report["tuned"]["accuracy"]
    best = {key: max(accuracies, key=accuracies.get) for key, accuracies in found.items()}
    result = {"flags": f"{common} {args.more}".strip(), "rates": best, "accuracy": found}
    write_text(args.out / "learning-rates.json", json.dumps(result, indent=1) + "\n")


def run_rows(rows, args):
    """{row: flags} -> {row: [report of each seed]}; the base model needs no second seed."""
    jobs = []
    for name, flags in rows.items():
        for seed in args.seeds[:1] if "--method none" in flags else args.seeds:
            lr = "--base" if "--method none" in flags else f"--lr {rate(flags, args)}"
            jobs.append((name, f"{flags} {lr} --seed {seed} --probe-seed {seed}".strip()))
    reports = {name: [] for name in rows}
    for (name, _), report in zip(jobs, run_all([flags for _, flags in jobs], args)):
        reports[name].append(report)
    return reports


# ------------------------------------------------------------------------------------------------------------ tables
# A table is (title, {row: {column: [a value a seed]}}).


def kinds(report):
    return report["tuned"]["by_kind"] or report["base"]["by_kind"]


def accuracy(report):
    return report["base" if report["method"] == "none" else "tuned"]["accuracy"]


MEASURES = {  # column: (value of a report or None, how it is written)
    "new look": (accuracy, "%"),
    "day grounding": (lambda r: kinds(r).get("scenes-day grounding"), "%"),
    "attributes": (lambda r: kinds(r).get("scenes-day attribute"), "%"),
    "text": (lambda r: kinds(r).get("sums text"), "%"),
    "text logits": (lambda r: r["text_logit_max_change"], ".2g"),
    "parameters": (lambda r: r["trainable_parameters"], ",.0f"),
    "FLOPs a step": (lambda r: r["adapter_flops_per_step"], ".2e"),
    "ms a step": (lambda r: r["step_ms"], ".0f"),
}  # fmt: skip
FORMS = {column: form for column, (_, form) in MEASURES.items()} | {
    "visual share": "%",
    "FLOPs over LoRA's": "%",
    "lost accuracy": "%",
}


def written(values, form):
    """The mean over the seeds, with the standard deviation if there are several."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    factor, places, unit = (100, ".1f", " %") if form == "%" else (1, form, "")
    spread = f" ± {factor * stdev(values):{places}}" if len(values) > 1 and form in ("%", ".2f") else ""
    return f"{factor * mean(values):{places}}{spread}{unit}"


def compared(name, a, b):
    """One sentence of a paired comparison: `name` against another, accuracies a and b."""
    c = paired(a, b)
    if c["interval"] is None:
        return f"{name}: {100 * c['difference']:+.1f} points."
    low, high = c["interval"]
    p = "p < 0.001" if c["p"] < 0.001 else f"p = {c['p']:.3f}"
    verdict = "not worse" if low > -MARGIN else "worse" if high < 0 else "undecided"
    return (
        f"{name}: {100 * c['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], {p}, "
        f"{verdict} at a margin of {100 * MARGIN:.0f} points."
    )


def markdown(result):
    """A suite's tables, and under them what its comparisons and its analysis say."""
    lines = [f"**{result['question']}**", ""]
    for title, rows in result["tables"]:
        columns = [c for c in next(iter(rows.values())) if any(v is not None for r in rows.values() for v in r[c])]
        lines += [f"{title}:", ""] if title else []
        lines += [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        for name, row in rows.items():
            cells = [written(row[c], FORMS.get(c, ".2f")) for c in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"- {sentence}" for sentence in result["sentences"]]
    lines.append(f"- `{result['command']}`, {result['minutes']:.0f} minutes on {result['cores']} cores.")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------- analyses
# What a suite says beyond its rows: ({row: reports}, args) -> (tables, sentences).


def folder(report):
    return Path(report["arguments"]["out"])


def scores_of(report):
    """The probe's scores, [L, G], that a run wrote down."""
    return torch.tensor(read_json(folder(report) / "heads.json")["scores"])


def model_and_rows(args, data="", split="test", limit=300):
    """(settings, vlm, processor, at most `limit` rows of the suites' data set, their pictures encoded)."""
    settings = train.parse_args(f"{COMMON} {data} {args.more}".split())
    vlm, processor = train.load_model(settings)
    limit = min(limit, (settings.limit if split == "train" else settings.eval_limit) or limit)
    rows = train.load_rows(settings, settings.data, settings.data_root, split, limit, processor)
    rows = [e for e in rows if e.images]
    return settings, vlm, processor, rows, train.encode_pictures(settings, vlm, processor, rows)


def accuracies(reports):
    return {name: [accuracy(r) for r in rs] for name, rs in reports.items()}


def compare_with_lora(reports, args):
    """Every row against the first LoRA, and probed heads against as many random ones."""
    found, lora = accuracies(reports), next(name for name in reports if name.startswith("LoRA"))
    others = [name for name in reports if name not in ("base", lora)]
    sentences = [compared(f"{name}, against LoRA", found[name], found[lora]) for name in others]
    for name in others:
        if (drawn := name.replace("probed", "random")) != name:
            sentences.append(compared(f"{name}, against random ones", found[name], found[drawn]))
    return [], sentences


def look_by_look(reports, args):
    found = accuracies(reports)
    looks = [name.removesuffix(", LoRA") for name in reports if name.endswith(", LoRA")]
    pairs = [(look, found[f"{look}, Image-LoRA"], found[f"{look}, LoRA"]) for look in looks]
    return [], [compared(f"{look}, Image-LoRA against LoRA", ours, lora) for look, ours, lora in pairs]


def unevenness(reports, args):
    chosen = [[len(hs) for hs in r["heads"].values()] for r in reports["as in the paper"]]
    return [], [f"Heads picked in each adapted layer, by seed: {chosen}; 1/sqrt(n) matters where these differ."]


def savings(reports, args):
    """The visual share of the tokens, and the adapter FLOPs of Image-LoRA over those of LoRA: in proportion."""
    table = {}
    for name in reports:
        if name.endswith(", LoRA"):
            share = name.removesuffix(", LoRA")
            lines = (folder(reports[name][0]) / "log.jsonl").read_text().splitlines()
            log = [json.loads(line) for line in lines]
            visual = sum(x["visual_tokens"] for x in log) / sum(x["tokens"] for x in log)
            pairs = zip(reports[f"{share}, Image-LoRA"], reports[name])
            ratios = [a["adapter_flops_per_step"] / b["adapter_flops_per_step"] for a, b in pairs]
            table[share] = {
                "visual share": [visual],
                "FLOPs over LoRA's": [mean(ratios)],
                "one over the other": [mean(ratios) / visual],
            }
    return [("Visual share of the tokens and adapter FLOPs", table)], []


def agreement(reports, args):
    """Rank correlation of the criteria's scores, seed by seed."""
    scored = [name for name in reports if name != "random"]
    found = {name: [scores_of(r).flatten().tolist() for r in reports[name]] for name in scored}
    table = {a: {b: [spearman(*pair) for pair in zip(found[a], found[b])] for b in scored} for a in scored}
    return [("Rank correlation of the scores", table)], []


def switched_off(reports, args):
    """Every head of a trained adapter switched off (its B set to 0) in turn: accuracy and loss on held-out rows."""
    settings, vlm, processor, rows, known = model_and_rows(args)
    batches = [processor(rows[i : i + 50], True, known).to(vlm.device) for i in range(0, len(rows), 50)]

    def measured():
        predictions = train.evaluate(settings, vlm, processor, rows, settings.data, known)
        with torch.no_grad():
            return mean(p["score"] for p in predictions), mean(vlm.loss(batch).item() for batch in batches)

    table = {
        "score and lost accuracy": {"rank correlation": []},
        "score and rise of the loss": {"rank correlation": []},
    }
    drops = {"the median head": {"lost accuracy": []}, "the worst head": {"lost accuracy": []}}
    for report in next(iter(reports.values())):
        adapter, scores = load_adapter(folder(report) / "adapter.safetensors", vlm), scores_of(report)
        whole, found = measured(), []
        for layer, heads in adapter.heads.items():
            B = adapter.layers[str(layer)].B.data
            for i, h in enumerate(heads):
                kept = B[i].clone()
                B[i] = 0
                right, loss = measured()
                found.append((scores[layer, h].item(), whole[0] - right, loss - whole[1]))
                B[i] = kept
        adapter.detach()
        score, *lost = zip(*found)
        for row, values in zip(table.values(), lost):
            row["rank correlation"].append(spearman(score, values))
        for row, value in zip(drops.values(), (median(lost[0]), max(lost[0]))):
            row["lost accuracy"].append(value)
    return [("Over the heads of a trained adapter", table), ("Accuracy lost without one head", drops)], []


def probed(vlm, processor, rows, known, count, seed):
    """Scores of the model as it is, an adapter included, by `count` of the rows."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return head_scores(vlm, (processor([rows[i]], known=known).to(vlm.device) for i in order), seed=seed)


def agreeing(a, b):
    """Two tensors of scores, [L, G], as two measures."""
    overlap = jaccard(select_heads(a, FEW), select_heads(b, FEW))
    return overlap, spearman(a.flatten().tolist(), b.flatten().tolist())


OVERLAP = (f"overlap of {FEW} heads (Jaccard)", "rank correlation")


def stable(reports, args):
    """Selections by probes of other sizes, seeds and looks, against 256 rows of the suites' look and a seed of its own."""
    _, *stage = model_and_rows(args, split="train", limit=1200)  # model, processor, rows, known pictures
    reference = probed(*stage, 256, seed=99)
    table = {}
    for count in (1, 4, 16, 64, 256):
        found = [agreeing(probed(*stage, count, seed), reference) for seed in args.seeds]
        table[f"{count} row{'s' * (count > 1)}"] = dict(zip(OVERLAP, zip(*found)))
    for look in ("day", "dusk", "fog", "noise", "negative"):
        _, *stage = model_and_rows(args, f"--data scenes-{look}", "train", 1200)
        found = [agreeing(probed(*stage, 256, seed), reference) for seed in args.seeds]
        table[f"look {look}, 256 rows"] = dict(zip(OVERLAP, zip(*found)))
    return [("Against 256 other rows of the look blur", table)], []


def moving(reports, args):
    """Probe the model at its saved states; and train the second half with the heads that a probe half way picks, or with
    the old ones again."""
    _, vlm, processor, rows, known = model_and_rows(args, split="train", limit=1200)
    table, second = {}, []
    for seed, report in zip(args.seeds, reports["Image-LoRA, all heads"]):
        first = probed(vlm, processor, rows, known, 64, seed)
        found = {"before, other rows": probed(vlm, processor, rows, known, 64, seed + 1000)}
        adapter = load_adapter(folder(report) / "adapter.safetensors", vlm)
        for state in sorted(folder(report).glob("state-*.pt"), key=lambda file: int(file.stem.split("-")[1])):
            for p, saved in zip(adapter.parameters(), torch.load(state, weights_only=True)["parameters"]):
                p.data.copy_(saved)
            name = f"after {state.stem.split('-')[1]} steps"
            found[name] = probed(vlm, processor, rows, known, 64, seed)
        adapter.detach()
        for name, scores in found.items():
            for column, value in zip(OVERLAP, agreeing(scores, first)):
                table.setdefault(name, {}).setdefault(column, []).append(value)

    half = f"--heads {FEW} --lr {rate('', args)} --steps 100"
    halves = run_all([f"{half} --seed {seed} --probe-seed {seed}" for seed in args.seeds], args)
    for seed, report in zip(args.seeds, halves):
        adapter = load_adapter(folder(report) / "adapter.safetensors", vlm)
        later = select_heads(probed(vlm, processor, rows, known, 64, seed), FEW)
        adapter.detach()
        save_selection(folder(report) / "later.json", later)
        for heads in ("heads.json", "later.json"):
            start = f"--continue-from {folder(report) / 'adapter.safetensors'} --selection {folder(report) / heads}"
            second.append(f"{half} --seed {seed} {start}")
    found = [accuracy(r) for r in run_all(second, args)]
    sentence = compared(f"Second 100 steps with {FEW} heads picked anew, against the old ones", found[1::2], found[::2])
    return [("Probes of the model in training, against one before it", table)], [sentence]


def attending(reports, args):
    """The share of the attention of the answer's tokens that goes to visual tokens; and maps over the first picture of the
    head that changes most in each layer."""
    *_, vlm, processor, rows, known = model_and_rows(args, limit=60)
    batches = [processor(rows[i : i + 20], known=known).to(vlm.device) for i in range(0, len(rows), 20)]

    @torch.no_grad()
    def shares():
        """[L, H]: mean over the supervised positions; and the maps of the first row, [L, H, its visual tokens]."""
        total, maps = 0, None
        for batch in batches:
            weights = torch.stack(vlm(batch, return_weights=True)[1])  # [L, B, H, T, T]
            to_image = (weights * batch.visual_mask[:, None, None]).sum(dim=-1)  # [L, B, H, T]
            asks = batch.follows != -100  # [B, T]: the positions whose next token is supervised
            total = total + (to_image * asks[:, None]).sum(dim=(1, 3)) / asks.sum() / len(batches)
            if maps is None:
                maps = weights[:, 0][:, :, asks[0]].mean(dim=2)[..., batch.visual_mask[0]]
        return total, maps

    seen = {"base": [shares()]}
    for name, rs in reports.items():
        seen[name] = []
        for report in rs:
            adapter = load_adapter(folder(report) / "adapter.safetensors", vlm)
            seen[name].append(shares())
            adapter.detach()
    base, layers = seen["base"][0][0], range(vlm.config.layers)
    table = {
        name: {
            "mean over heads": [share.mean().item() for share, _ in found],
            "largest change of one": [(share - base).abs().max().item() for share, _ in found],
            **{f"layer {i}": [share[i].mean().item() for share, _ in found] for i in layers},
        }
        for name, found in seen.items()
    }
    heads = (seen["Image-LoRA"][0][0] - base).abs().argmax(dim=1).tolist()
    maps = {
        name: [(f"layer {i}, head {h}", found[0][1][i, h].tolist()) for i, h in enumerate(heads)]
        for name, found in seen.items()
    }
    caption = train.expression(rows[0].prompt)
    figures.attention(args.out / "attention-maps.png", train.open_image(rows[0].images[0]), caption, maps)
    return [("Share of the answer's attention that goes to visual tokens", table)], []


ANALYSES = {
    "main": compare_with_lora,
    "ablation": unevenness,
    "ratio": savings,
    "criteria": agreement,
    "faithful": switched_off,
    "stability": stable,
    "drift": moving,
    "attention": attending,
    "bottleneck": compare_with_lora,
    "looks": look_by_look,
}

# --------------------------------------------------------------------------------------------------------- the command


def run_suite(suite, args):
    question, rows = SUITES[suite]
    reports = run_rows(rows, args)
    start = time.perf_counter()
    tables, sentences = ANALYSES[suite](reports, args) if suite in ANALYSES else ([], [])
    trained = sum(r["wall_seconds"] for rs in reports.values() for r in rs) / args.jobs  # those of earlier calls too
    measured = {
        name: {column: [value(r) for r in rs] for column, (value, _) in MEASURES.items()}
        for name, rs in reports.items()
    }
    result = {
        "question": question,
        "seeds": args.seeds,
        "flags": rows,
        "tables": [*([("", measured)] if rows else []), *tables],
        "sentences": sentences,
        "minutes": (trained + time.perf_counter() - start) / 60,
        "cores": args.cores,
        "command": f"python experiments.py {suite} --seeds {' '.join(map(str, args.seeds))}",
    }
    write_text(args.out / f"{suite}.json", json.dumps(result, indent=1) + "\n")
    render(args.out / f"{suite}.json")
    print(f"\n{(args.out / suite).with_suffix('.md').read_text()}\n  written to {args.out}/{suite}.json, .md, .png")


def render(file):
    """SUITE.json -> SUITE.md and SUITE.png beside it."""
    result, panels = read_json(file), []
    write_text(file.with_suffix(".md"), markdown(result))
    for title, found in result["tables"]:
        column = next(iter(next(iter(found.values()))))
        shown = f"{title}: {column}" if title else "accuracy in the new look"
        panels.append((shown, {name: row[column] for name, row in found.items()}))
    figures.dots(file.with_suffix(".png"), result["question"], panels)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=[*SUITES, "rates", "all"], metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one a core)")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="where the runs' folders are")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the tables go (default: results)")
    parser.add_argument("--more", default="", help='further flags for every run, such as "--steps 50"')
    args = parser.parse_args(argv)
    args.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    args.jobs, args.suite = args.jobs or args.cores, "rates"
    try:
        if "rates" in args.suites or not (args.out / "learning-rates.json").exists():
            search_rates(args)
        for suite in SUITES if "all" in args.suites else [s for s in args.suites if s != "rates"]:
            args.suite = suite
            run_suite(suite, args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""What a suite says beyond its rows: ({row: reports}, args) -> (tables, sentences)."""

import json
from pathlib import Path
from statistics import mean, median

import torch

import train
from experiments.comparisons import compared, jaccard, spearman
from experiments.runs import rate, run_all
from experiments.suites import COMMON, FEW
from experiments.tables import accuracy
from files import read_json
from harness import figures
from harness.arguments import parse_args
from harness.encodings import encode_pictures
from harness.evaluate import evaluate
from harness.report import expression
from imagelora import load_adapter
from probe import head_scores, save_selection, select_heads
from tasks.images import open_image


def folder(report):
    return Path(report["arguments"]["out"])


def scores_of(report):
    """The probe's scores, [L, G], that a run wrote down."""
    return torch.tensor(read_json(folder(report) / "heads.json")["scores"])


def model_and_rows(args, data="", split="test", limit=300):
    """(settings, vlm, processor, at most `limit` rows of the suites' data set, their pictures encoded)."""
    settings = parse_args(f"{COMMON} {data} {args.more}".split())
    vlm, processor = train.load_model(settings)
    limit = min(limit, (settings.limit if split == "train" else settings.eval_limit) or limit)
    rows = train.load_rows(settings, settings.data, settings.data_root, split, limit, processor)
    rows = [e for e in rows if e.images]
    return settings, vlm, processor, rows, encode_pictures(settings, vlm, processor, rows)


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
        predictions = evaluate(settings, vlm, processor, rows, settings.data, known)
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
    caption = expression(rows[0].prompt)
    figures.attention(args.out / "attention-maps.png", open_image(rows[0].images[0]), caption, maps)
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

"""What a suite says beyond its rows.

First the analyses that need only the reports of the runs; then those that measure trained models again. Each returns
tables, sentences or both; ANALYSES, at the end, says which suite has which, and what it uses.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch

import train
from backbones.layers import weights_kept
from data import Processor
from experiments.comparisons import compared, jaccard, spearman
from experiments.runs import rate, read_rates, run_all
from experiments.suites import COMMON, FEW
from experiments.tables import accuracies, accuracy
from files import read_json
from harness import figures
from harness.encodings import encode_images, load_examples
from harness.evaluate import evaluate
from harness.processes import choose_device
from imagelora import load_adapter
from model import VLM, attend
from probe import head_scores, save_selection, select_heads
from tasks import TASKS
from tasks.images import open_image


def folder(report):
    return Path(report["arguments"]["out"])


def adapter_file(report):
    return folder(report) / "adapter.safetensors"


def scores_of(report):
    """The probe's scores, [L, G], that a run wrote down."""
    return torch.tensor(read_json(folder(report) / "heads.json")["scores"])


# ========== From the reports alone ==========


def compare_with_lora(reports):
    """Sentences: every row against the first LoRA, and probed heads against as many random ones."""
    found = accuracies(reports)
    lora = next(row for row in reports if row.startswith("LoRA"))
    others = [row for row in reports if row not in ("base", lora)]
    sentences = [compared(f"{row}, against LoRA", found[row], found[lora]) for row in others]
    for row in others:
        if "probed" in row:
            drawn = row.replace("probed", "random")
            sentences.append(compared(f"{row}, against random ones", found[row], found[drawn]))
    return sentences


def compare_look_by_look(reports):
    """Sentences: Image-LoRA against LoRA, in each look."""
    found, sentences = accuracies(reports), []
    for row in reports:
        if row.endswith(", LoRA"):
            look = row.removesuffix(", LoRA")
            ours = found[f"{look}, Image-LoRA"]
            sentences.append(compared(f"{look}, Image-LoRA against LoRA", ours, found[row]))
    return sentences


def heads_of_layers(reports):
    """A sentence: how unevenly the heads are spread over the layers. 1/sqrt(n) can only matter if they are."""
    counts = []
    for report in reports["as in the paper"]:
        counts.append([len(heads) for heads in report["heads"].values()])
    return [f"Heads picked in each adapted layer, by seed: {counts}; 1/sqrt(n) matters where these differ."]


def savings(reports):
    """A table: the visual share of the tokens, and the adapter FLOPs of Image-LoRA over those of LoRA. The second is in
    proportion to the first."""
    table = {}
    for row, loras in reports.items():
        if not row.endswith(", LoRA"):
            continue
        name = row.removesuffix(", LoRA")

        # The share of visual tokens, from the log of the first run: one line a step.
        lines = (folder(loras[0]) / "log.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        visual = sum(step["visual_tokens"] for step in steps) / sum(step["tokens"] for step in steps)

        # FLOPs against FLOPs, seed by seed.
        pairs = zip(reports[f"{name}, Image-LoRA"], loras)
        ratio = mean(ours["adapter_flops_per_step"] / lora["adapter_flops_per_step"] for ours, lora in pairs)
        table[name] = {"visual share": [visual], "FLOPs over LoRA's": [ratio], "one over the other": [ratio / visual]}
    return [("Visual share of the tokens and adapter FLOPs", table)]


def agreement(reports):
    """A table: rank correlation of the criteria's scores, seed by seed."""
    scores = {}
    for criterion, found in reports.items():
        if criterion != "random":  # which has no scores
            scores[criterion] = [scores_of(report).flatten().tolist() for report in found]
    table = {}
    for a, of_a in scores.items():
        table[a] = {}
        for b, of_b in scores.items():
            table[a][b] = [spearman(x, y) for x, y in zip(of_a, of_b)]
    return [("Rank correlation of the scores", table)]


# ========== With the model ==========


@dataclass(frozen=True)
class Stage:
    """A model, and examples with images to measure it on."""

    vlm: VLM
    processor: Processor
    examples: list
    encoded: dict  # {image key: visual embeddings}
    predict: Callable  # () -> an answer to every example, generated and scored

    def batch(self, examples, share_images=False):
        return self.processor(examples, share_images, self.encoded).to(self.vlm.device)

    def batches(self, size, share_images=False):
        starts = range(0, len(self.examples), size)
        return [self.batch(self.examples[i : i + size], share_images) for i in starts]

    def probe(self, count, seed):
        """Scores [L, G] of the heads, by `count` of the examples. A model with an adapter is probed with it."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.examples), generator=generator)[:count].tolist()
        return head_scores(self.vlm, (self.batch([self.examples[i]]) for i in order), seed=seed)


def model_and_examples(more, data="", split="test", limit=300):
    """The Stage of the suites: their model, and at most `limit` examples of their data set.

    more: further flags, as for the runs; data: flags for another data set. Whatever train.py and its harness offer is
    called here and nowhere else.
    """
    args = train.arguments(f"{COMMON} {data} {more}".split())
    device, dtype = choose_device(args.device, args.dtype)
    limits = train.pixel_limits(args.min_pixels, args.max_pixels, None)
    vlm, processor = train.load_model(args.model, dtype, device, *limits)

    most = args.limit if split == "train" else args.eval_limit
    limit = min(limit, most or limit)
    examples = load_examples(processor, args.data, args.data_root, split, limit, preamble=args.preamble)
    examples = [example for example in examples if example.images]
    encoded = encode_images(vlm, processor, examples, args.cache_vision)

    def predict():
        room = args.max_new_tokens or TASKS[args.data].new_tokens
        return evaluate(vlm, processor, examples, args.data, room, encoded, args.eval_batch, args.share_images)

    return Stage(vlm, processor, examples, encoded, predict)


def switched_off(reports, more):
    """Two tables: every head of a trained adapter is switched off in turn. Do accuracy and loss on held-out examples
    follow the head's probe score?"""
    stage = model_and_examples(more)
    batches = stage.batches(50, share_images=True)

    def measure():
        """(accuracy, loss)."""
        right = mean(prediction["score"] for prediction in stage.predict())
        with torch.no_grad():
            return right, mean(stage.vlm.loss(batch).item() for batch in batches)

    by_accuracy, by_loss, medians, worst = [], [], [], []  # a value for each seed
    for report in next(iter(reports.values())):
        adapter, scores = load_adapter(adapter_file(report), stage.vlm), scores_of(report)
        accuracy_with_all, loss_with_all = measure()

        score_of_head, lost, risen = [], [], []  # a value for each head
        for layer, head, (right, loss) in without_each_head(adapter, measure):
            score_of_head.append(scores[layer, head].item())
            lost.append(accuracy_with_all - right)
            risen.append(loss - loss_with_all)
        adapter.detach()

        by_accuracy.append(spearman(score_of_head, lost))
        by_loss.append(spearman(score_of_head, risen))
        medians.append(median(lost))
        worst.append(max(lost))

    correlations = {
        "score and lost accuracy": {"rank correlation": by_accuracy},
        "score and rise of the loss": {"rank correlation": by_loss},
    }
    drops = {
        "the median head": {"lost accuracy": medians},
        "the worst head": {"lost accuracy": worst},
    }
    return [("Over the heads of a trained adapter", correlations), ("Accuracy lost without one head", drops)]


def without_each_head(adapter, measure):
    """Yield (layer, head, what `measure` says without it) for every head of an adapter. A head with B = 0 is off."""
    for layer, heads in adapter.heads.items():
        B = adapter.layers[str(layer)].B.data  # [n, R, K]
        for i, head in enumerate(heads):
            kept = B[i].clone()
            B[i] = 0
            yield layer, head, measure()
            B[i] = kept


OVERLAP = (f"overlap of {FEW} heads (Jaccard)", "rank correlation")


def agreeing(a, b):
    """How alike two probes are, by their scores [L, G]: the two measures that OVERLAP names."""
    overlap = jaccard(select_heads(a, FEW), select_heads(b, FEW))
    return overlap, spearman(a.flatten().tolist(), b.flatten().tolist())


def stable(seeds, more):
    """A table: probes of other sizes, seeds and looks, against one with 256 examples of the suites' look and a seed of its
    own."""
    blurred = model_and_examples(more, split="train", limit=1200)
    reference = blurred.probe(256, seed=99)
    table = {}

    def compare(name, stage, count):
        found = [agreeing(stage.probe(count, seed), reference) for seed in seeds]
        table[name] = dict(zip(OVERLAP, zip(*found)))

    for count in (1, 4, 16, 64, 256):
        plural = "s" if count > 1 else ""
        compare(f"{count} example{plural}", blurred, count)
    for look in ("day", "dusk", "fog", "noise", "negative"):
        stage = model_and_examples(more, f"--data scenes-{look}", split="train", limit=1200)
        compare(f"look {look}, 256 examples", stage, 256)
    return [("Against 256 other examples of the look blur", table)]


def moving(reports, seeds, rates, launcher):
    """A table: the model probed at its saved states. A sentence: does it help to pick the heads again half way?"""
    stage = model_and_examples(launcher.more, split="train", limit=1200)
    table = {}
    for seed, report in zip(seeds, reports["Image-LoRA, all heads"]):
        first = stage.probe(64, seed)
        for name, scores in probes_of_training(stage, report, seed):
            row = table.setdefault(name, {column: [] for column in OVERLAP})
            for column, value in zip(OVERLAP, agreeing(scores, first)):
                row[column].append(value)

    old, new = second_halves(stage, seeds, rate("", rates), launcher)
    sentence = compared(f"Second 100 steps with {FEW} heads picked again, against the old ones", new, old)
    return [("Probes of the model in training, against one before it", table)], [sentence]


def probes_of_training(stage, report, seed):
    """Yield (name, scores [L, G]): a second probe of the frozen model, then the model at each saved state of a run."""
    yield "before, other examples", stage.probe(64, seed + 1000)

    def steps(file):
        return int(file.stem.removeprefix("state-"))

    adapter = load_adapter(adapter_file(report), stage.vlm)
    for file in sorted(folder(report).glob("state-*.pt"), key=steps):
        state = torch.load(file, weights_only=True)
        for parameter, saved in zip(adapter.parameters(), state["parameters"]):
            parameter.data.copy_(saved)
        yield f"after {steps(file)} steps", stage.probe(64, seed)
    adapter.detach()


def second_halves(stage, seeds, lr, launcher):
    """Train 100 steps; then 100 more, with the same heads and with those that a probe half way picks. (accuracies with the
    old heads, with the new ones), a value for each seed."""
    half = f"--heads {FEW} --lr {lr} --steps 100"
    first_halves = run_all([f"{half} --seed {seed} --probe-seed {seed}" for seed in seeds], launcher, "drift")

    # Pick the heads again half way, with the adapter attached.
    runs = []
    for seed, report in zip(seeds, first_halves):
        adapter = load_adapter(adapter_file(report), stage.vlm)
        later = select_heads(stage.probe(64, seed), FEW)
        adapter.detach()
        save_selection(folder(report) / "later.json", later)
        for heads in ("heads.json", "later.json"):
            start = f"--continue-from {adapter_file(report)} --selection {folder(report) / heads}"
            runs.append(f"{half} --seed {seed} {start}")

    found = [accuracy(report) for report in run_all(runs, launcher, "drift")]
    return found[::2], found[1::2]


def attending(reports, more, picture):
    """A table: the share of the attention of the answer's tokens that goes to visual tokens. Also draws `picture`: maps
    over the first image, in each layer of the head that changes most."""
    stage = model_and_examples(more, limit=60)
    batches = stage.batches(20)

    # {row: [(shares [L, H], maps [L, H, visual tokens of the first example]) of each seed]}
    found = {"base": [visual_attention(stage.vlm, batches)]}
    for row, of_seeds in reports.items():
        found[row] = []
        for report in of_seeds:
            adapter = load_adapter(adapter_file(report), stage.vlm)
            found[row].append(visual_attention(stage.vlm, batches))
            adapter.detach()

    base, _ = found["base"][0]
    table = {}
    for row, of_seeds in found.items():
        shares = [share for share, _ in of_seeds]
        table[row] = {
            "mean over heads": [share.mean().item() for share in shares],
            "largest change of one": [(share - base).abs().max().item() for share in shares],
        }
        for layer in range(len(base)):
            table[row][f"layer {layer}"] = [share[layer].mean().item() for share in shares]

    # The maps of the first seed.
    ours, _ = found["Image-LoRA"][0]
    changed_most = (ours - base).abs().argmax(dim=1).tolist()  # [L]
    maps = {}
    for row, of_seeds in found.items():
        _, weights = of_seeds[0]
        maps[row] = [(f"layer {i}, head {h}", weights[i, h].tolist()) for i, h in enumerate(changed_most)]
    example = stage.examples[0]
    figures.attention(picture, open_image(example.images[0]), example.caption or example.prompt, maps)
    return [("Share of the answer's attention that goes to visual tokens", table)]


@torch.no_grad()
def visual_attention(vlm, batches):
    """(shares [L, H] of the attention that goes to visual tokens, mean over the positions that predict the answer;
    maps [L, H, N]: the attention to each visual token of the first example)."""
    shares, maps = 0, None
    for batch in batches:
        with weights_kept(vlm.model.layers, attend) as kept:
            vlm(batch)
        weights = torch.stack(kept)  # [L, B, H, T, T]
        to_image = (weights * batch.visual_mask[:, None, None]).sum(dim=-1)  # [L, B, H, T]
        predicts = torch.zeros_like(batch.visual_mask)  # [B, T]: the next token is one of the answer
        predicts.view(-1)[batch.answer_index] = True
        share = (to_image * predicts[:, None]).sum(dim=(1, 3)) / predicts.sum()  # [L, H]
        shares = shares + share / len(batches)
        if maps is None:
            first = weights[:, 0][:, :, predicts[0]].mean(dim=2)  # [L, H, T]
            maps = first[..., batch.visual_mask[0]]
    return shares, maps


# ========== Which suite has which ==========

ANALYSES = {  # suite: (reports, seeds, out, launcher) -> (tables, sentences)
    "main": lambda reports, *_: ([], compare_with_lora(reports)),
    "ablation": lambda reports, *_: ([], heads_of_layers(reports)),
    "ratio": lambda reports, *_: (savings(reports), []),
    "criteria": lambda reports, *_: (agreement(reports), []),
    "faithful": lambda reports, seeds, out, launcher: (switched_off(reports, launcher.more), []),
    "stability": lambda reports, seeds, out, launcher: (stable(seeds, launcher.more), []),
    "drift": lambda reports, seeds, out, launcher: moving(reports, seeds, read_rates(out), launcher),
    "attention": lambda reports, seeds, out, launcher: (
        attending(reports, launcher.more, out / "attention-maps.png"),
        [],
    ),
    "bottleneck": lambda reports, *_: ([], compare_with_lora(reports)),
    "looks": lambda reports, *_: ([], compare_look_by_look(reports)),
}

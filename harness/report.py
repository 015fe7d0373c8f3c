"""What a run says: at its start, at each step, as a report, as pictures, as a table.

predictions: {"base": [...], "tuned": [...]}; main_data: the data set whose accuracy is the run's; out: the run's folder.
"""

import json
import math
import platform
import re
import subprocess
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from statistics import mean

import torch

from harness import figures
from harness.arguments import data_set
from harness.evaluate import CURVE_ROWS
from harness.processes import RANK, WORLD
from parts.backbones import nf4
from parts.devices import peak_memory
from parts.files import InputError, write_text
from parts.tasks.answers import summary
from parts.tasks.scenes import DRAWN

PACKAGES = ("torch", "safetensors", "tokenizers", "pillow", "tqdm")
STARTED = time.perf_counter()


def show_example(processor, example):
    """Print one example as the model reads it, the supervised part marked; runs of image tokens are counted."""
    ids, answer_start, _ = processor.tokens(example)
    text = processor.tokenizer.decode(ids[:answer_start], skip_special_tokens=False)
    text = re.sub(r"(<\|(?:image|video)_pad\|>)\1*", lambda run: f"{run[1]} x {len(run[0]) // len(run[1])}", text)
    answer = processor.tokenizer.decode(ids[answer_start:], skip_special_tokens=False)
    print("example  " + text.replace("\n", "\n         ") + f">>>{answer}<<<")


def show_method(vlm, method, parameters, steps, rows, lr, heads):
    """Print what will be trained. rows: examples of one step."""
    trainable, (total, _) = sum(p.numel() for p in parameters), nf4.size(vlm)
    print(f"method   {method}: {trainable:,} trainable parameters ({trainable / total:.2%})")
    if heads:
        selected, of = sum(map(len, heads.values())), vlm.config.layers * vlm.config.value_heads
        layers = ", ".join(f"layer {layer}: {of_layer}" for layer, of_layer in heads.items())
        print(f"heads    {selected} of {of} value heads are adapted; {layers}")
    print(f"training {steps} steps of {rows} rows, learning rate {lr:g}")
    if steps < 10:
        print(f"warning  {steps} steps of {rows} rows: hardly anything will be learnt; try --epochs 20, or --batch 1")


def show_probe(out, heads, scores):
    """Print every value head with its score, the highest first, and draw the map. scores [L][G]; heads {layer: [heads]}.
    Raises InputError if nothing was probed."""
    if RANK > 0:  # the first process speaks for all
        return
    if scores is None:
        raise InputError("--probe-only: nothing to probe; --method and --selection must be ones that look at heads")
    ranked = [(score, layer, h) for layer, of_layer in enumerate(scores) for h, score in enumerate(of_layer)]
    print("layer head      score")
    for score, layer, h in sorted(ranked, reverse=True):
        print(f"{layer:5} {h:4} {score:10.4g}" + "  selected" * (h in heads.get(layer, [])))
    figures.head_map(out / "heads.png", scores, heads)
    print(f"drawn in {out / 'heads.png'}")


def log_steps(record, device):
    """Wait for the device, and log the steps whose results were not read yet. Returns a few words about the last one for the
    progress bar. Raises InputError if a loss or the norm of a gradient is not finite."""
    lines, results = zip(*record.unread)
    results = torch.stack(results).tolist()  # the CPU waits
    ms = 1000 * (time.perf_counter() - record.begun) / len(lines)
    for line, (loss, norm) in zip(lines, results):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            problem = f"loss {loss}, norm of the gradient {norm} at step {line['step']}"
            raise InputError(f"{problem}; lower --lr (now {line['lr']:.3g}), or use --dtype float32; what was saved stays")
        line |= {"loss": loss, "norm": norm, "ms": ms}
    if RANK == 0:  # the file grows while the run lives
        with open(record.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    record.log, record.unread = [*record.log, *lines], []
    peak = peak_memory(device)
    memory = "memory not measured" if peak is None else f"{peak / 2**20:.0f} MiB"
    return "loss {loss:.3f}, lr {lr:.1e}, {ms:.0f} ms ({wait_ms:.0f} data), ".format(**line) + memory


def commit():
    """The git commit of this code, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "HEAD"]
    with suppress(OSError):  # no git on this machine
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip() or None


def measured(vlm, adapter, parameters, record, logit_change, predictions, main_data):
    """What a run measured, for report.json. record.log: a line a step; record.curve: accuracies on the way."""
    flops = [adapter.flops(line["tokens"], line["visual_tokens"]) for line in record.log] if adapter else []
    summaries = {when: summary(of_model, main_data) for when, of_model in predictions.items()}
    return {
        "steps": record.step,
        "trainable_parameters": sum(p.numel() for p in parameters),
        "parameters": nf4.size(vlm)[0],
        "adapter_flops_per_step": mean(flops) if flops else None,
        "train_seconds": sum(line["ms"] for line in record.log) / 1000,
        "wall_seconds": time.perf_counter() - STARTED,
        "processes": WORLD,
        "peak_memory_bytes": peak_memory(vlm.device),
        "parse_failures": {when: s.pop("parse_failures") for when, s in summaries.items()},
        "boxes_in_another_scale": {when: s.pop("boxes_in_another_scale") for when, s in summaries.items()},
        **summaries,
        "curve": curve(record, predictions, main_data),
        "text_logit_max_change": logit_change,
        "heads": adapter.heads if adapter else None,
    }


def curve(record, predictions, main_data):
    """[(step, accuracy)] by the first rows of the main data set: before, on the way, after."""
    base, tuned = ([p for p in predictions[w] if p["data"] == main_data][:CURVE_ROWS] for w in ("base", "tuned"))
    ends = (0, summary(base)["accuracy"]), *record.curve, (record.step, summary(tuned)["accuracy"])
    return [(step, accuracy) for step, accuracy in ends if accuracy is not None]


def write(out, arguments, measured, predictions, command):
    """Write report.json and predictions.jsonl. arguments: {flag: value}."""
    made_by = {name: arguments[name] for name in ("method", "seed")} | {"data": data_set(arguments["data"])[0]}
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    how = {"arguments": arguments, "versions": versions, "command": " ".join(command), "commit": commit()}
    lines = [p | {"when": when} for when, of_model in predictions.items() for p in of_model]
    write_text(out / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_text(out / "report.json", json.dumps(made_by | measured | how, indent=1, allow_nan=False) + "\n")


def draw(out, report, record, held_out, predictions, main_data):
    """heads.png, curve.png and examples.png, each if there is something to show. Of drawn data also scene.png, an image
    to ask about, since no file holds them. held_out: {data set: examples}."""
    if record.scores:
        figures.head_map(out / "heads.png", record.scores, report["heads"])
    if record.log:
        losses = [(line["step"], line["loss"]) for line in record.log]
        figures.curve(out / "curve.png", losses, report["curve"])
    if items := telling_items(held_out, predictions, main_data):
        figures.examples(out / "examples.png", items)
        if main_data in DRAWN:
            figures.save(items[0]["image"], out / "scene.png")


def telling_items(held_out, predictions, main_data, count=12):
    """The items of examples.png. Of the main data set those that base and tuned answer differently come first, and a
    failure is among them; then an item of each other data set. Of a video the frame in the middle is shown."""
    asked = [example for examples in held_out.values() for example in examples]
    own, others = [], {}
    for example, base, tuned in zip_longest(asked, predictions["base"], predictions["tuned"]):
        answers = {when: answer for when, answer in (("base", base), ("tuned", tuned)) if answer}
        if len(example.visuals) == 1 and answers:
            frames, data = example.visuals[0].frames, (base or tuned)["data"]
            item = {"image": frames[len(frames) // 2], "reference": example.answer}
            item["caption"] = f"{data}: " * (data != main_data) + (example.caption or example.prompt)
            item["scores"] = {when: answer["score"] for when, answer in answers.items()}
            item |= {when: answer["parsed"] for when, answer in answers.items()}
            if data == main_data:
                own.append(item)
            else:
                others.setdefault(data, item)
    own.sort(key=lambda item: len({*item["scores"].values()}) < 2)
    end = count - 1 - len(others)
    failures = [item for item in own[end:] if not any(item["scores"].values())]
    return [*own[:end], *failures[:1], *others.values()]


def print_end(report, main_data, out):
    """The run in a few lines: its accuracies, what it cost, what to look at and to do next."""

    def words(value, form):
        return "not measured" if value is None else format(value, form)

    base, tuned = report["base"]["by_kind"], report["tuned"]["by_kind"]
    rows = [("", "base", "tuned")]
    rows += [(kind, words(base.get(kind), ".1%"), words(tuned.get(kind), ".1%")) for kind in base | tuned]
    counts = ("parse_failures", "boxes_in_another_scale")
    rows += [(name.replace("_", " "), *report[name].values()) for name in counts if any(report[name].values())]
    print()
    for name, of_base, of_tuned in rows:
        print(f"  {name:32}{of_base:>14}{of_tuned:>14}")

    trainable, total, flops = (report[name] for name in ("trainable_parameters", "parameters", "adapter_flops_per_step"))
    print(f"\n  largest change of a text logit  {words(report['text_logit_max_change'], '.3g')}")
    print(f"  trainable parameters            {trainable:,} ({trainable / total:.2%} of {total:,})")
    print(f"  adapter FLOPs a step            {'not measured' if flops is None else f'{flops / 1e6:,.1f} million'}")

    others = "that has an image" if report["method"] == "image-lora" else "else"
    pictures = sorted(file.name for file in out.glob("*.png"))
    print(f"\n  to learn: {main_data}; at risk: all {others}")
    print(f"  written to {out}; look at {', '.join(pictures) or 'report.json'}")
    if flops is not None:
        image = out / "scene.png" if main_data in DRAWN else "FILE"
        print(f"  ask it:  python -m harness.ask --adapter {out / 'adapter.safetensors'} --image {image} --find TEXT")
        print("  compare: --method lora, --selection random, --heads N; python train.py --help has all flags")

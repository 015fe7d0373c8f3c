"""What a run says: at its start, as pictures, as a table."""

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from harness import figures
from tasks.images import open_image
from tasks.rows import GROUNDING_PROMPT

HERE = Path(__file__).parent.parent


def show_example(processor, example):
    """Print one row as the model reads it, the supervised part marked; runs of image tokens are counted."""
    ids, supervised = processor.tokens(example)
    text = processor.tokenizer.decode(ids[:supervised], skip_special_tokens=False)
    text = re.sub(r"(<\|(?:image|video)_pad\|>)\1*", lambda run: f"{run[1]} x {len(run[0]) // len(run[1])}", text)
    answer = processor.tokenizer.decode(ids[supervised:], skip_special_tokens=False)
    print("example  " + text.replace("\n", "\n         ") + f">>>{answer}<<<")


def versions():
    packages = ("torch", "safetensors", "tokenizers", "pillow", "tqdm")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def commit():
    """The git commit of this code, or None outside a checkout."""
    command = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def draw_figures(out, report, scores, log, examples, predictions):
    """heads.png, curve.png and examples.png; predictions: {"base": [...], "tuned": [...]} for the examples."""
    if report["heads"]:
        figures.head_map(out / "heads.png", scores, report["heads"])
    if log:
        accuracy = [(0, report["base"]["accuracy"]), (report["steps"], report["tuned"]["accuracy"])]
        losses = [(line["step"], line["loss"]) for line in log]
        figures.curve(out / "curve.png", losses, [point for point in accuracy if point[1] is not None])
    items = []
    for i, e in enumerate(examples):
        if len(e.visuals) == 1 and len(items) < 12:
            (image,) = e.visuals
            image = image[len(image) // 2] if isinstance(image, tuple) else image  # of a video, the frame in the middle
            item = {"image": open_image(image), "caption": expression(e.prompt), "reference": e.answer}
            for name, when in (("before", "base"), ("after", "tuned")):
                if predictions[when]:
                    found = predictions[when][i]["parsed"]
                    is_point = predictions[when][i]["metric"] == "point" and found
                    item[name] = [found[0] - 4, found[1] - 4, found[0] + 4, found[1] + 4] if is_point else found
            items.append(item)
    if items:
        figures.examples(out / "examples.png", items)


def expression(prompt):
    """What a RefCOCO prompt asks for; any other prompt as it is."""
    before, behind = GROUNDING_PROMPT.split("{}")
    return prompt.removeprefix(before).removesuffix(behind)


def print_table(report):
    """The run in a few lines: before, after and what it cost."""

    def shown(value, form):
        return "not measured" if value is None else format(value, form)

    base, tuned = report["base"]["by_kind"], report["tuned"]["by_kind"]
    rows = [(kind, shown(base.get(kind), ".1%"), shown(tuned.get(kind), ".1%")) for kind in base | tuned]
    failures = report["parse_failures"]
    rows.append(("answers without a box", str(failures["base"]), str(failures["tuned"])))
    print(f"\n  {'':32}{'before':>14}{'after':>14}")
    for name, before, after in rows:
        print(f"  {name:32}{before:>14}{after:>14}")
    boxes = report["tuned"]["boxes"] or report["base"]["boxes"]
    if boxes and boxes["count"]:
        centre, size = boxes["centre_error"], boxes["size_ratio"]
        print(
            f"\n  box centres off by              {centre['median']:.1%} of the diagonal (90 %: up to {centre['p90']:.1%})"
        )
        print(f"  box sizes over the true ones    {size['median']:.2f} (80 %: {size['p10']:.2f} to {size['p90']:.2f})")
    trainable, total = report["trainable_parameters"], report["parameters"]
    print(f"\n  largest change of a text logit  {shown(report['text_logit_max_change'], '')}")
    print(f"  trainable parameters            {trainable:,} ({trainable / total:.2%} of {total:,})")
    print(f"  adapter FLOPs a step            {shown(report['adapter_flops_per_step'], '.3g')}")
    print(f"  seconds until the first step    {shown(report['seconds_to_first_step'], '.1f')}")

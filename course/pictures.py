"""The pictures of the course, drawn with Pillow: `python -m course.pictures [FOLDER]`.

Each goes to lessonN/picture.png under the folder, by default course/. Their background is white, for dark pages too.
The picture of lesson 6 is docs/method.svg. Most are drawn from the real tiny model; costs.png from results/main.json;
lesson9/boxes.png from lesson9/boxes.json, the first answers of the demo's run, which `first_boxes` takes from its folder.
"""

import json
import sys
from pathlib import Path
from statistics import fmean, stdev

import torch
from PIL import Image

from course.real import scenes, sum_in_words, tiny
from data import Example, load
from harness import figures
from harness.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, canvas, font
from imagelora import ImageLoRA
from model import attend
from parts.backbones.layers import weights_kept
from parts.files import read_json, write_text
from parts.tasks.boxes import iou
from probe import head_scores, select_heads

HERE = Path(__file__).parent
BOXES = HERE / "lesson9/boxes.json"


def row_of_tokens():
    """Lesson 1: an image, its grid of visual tokens, and the row that the model reads."""
    _, processor = tiny()
    image = scenes(1)[0].images[0]
    batch = processor([Example([image], "What colour is the ring?", "red")])
    picture, pen = canvas(1200, 420)
    pen.text((30, 20), "What the model reads", BLACK, font(28))
    grid = processor.grid(scenes(1)[0].visuals[0])
    columns, side = grid[2] // processor.config.vision.merge, 210
    picture.paste(image.resize((side, side), Image.Resampling.BICUBIC), (30, 80))
    for i in range(columns + 1):
        edge = 30 + i * side / columns
        pen.line((edge, 80, edge, 80 + side), GREEN, 2)
        pen.line((30, edge + 50, 30 + side, edge + 50), GREEN, 2)
    words = [
        f"{image.width} x {image.height} pixels, {grid[1]} x {grid[2]} patches",
        f"2 x 2 patches are one visual token: {columns} x {columns} = {columns**2}",
        f"The row has {batch.input_ids.shape[1]} tokens. Green: visual. Orange: supervised. Grey: all other text.",
    ]
    for i, line in enumerate(words):
        pen.text((280, 110 + 44 * i), line, BLACK, font(23))
    pen.line((135, 296, 135, 320), GREEN, 5)
    pen.polygon([(135, 332), (125, 316), (145, 316)], GREEN)
    T = batch.input_ids.shape[1]
    width = (1200 - 60) / T
    for t in range(T):
        colour = PALE
        if batch.visual_mask[0, t]:
            colour = GREEN
        if batch.labels[0, t] >= 0:
            colour = ORANGE
        pen.rectangle((30 + t * width, 340, 30 + (t + 1) * width - 2, 390), colour)
    return picture


def who_looks_at_whom():
    """Lesson 2: the attention weights of one head, a row a query, a column a key; the visual span in green."""
    vlm, processor = tiny()
    batch = processor([Example(scenes(1)[0].images[:1], "What colour is the ring?", "red")])
    with torch.no_grad(), weights_kept(vlm.model.layers, attend) as kept:
        vlm(batch)
    weights = kept[3][0].mean(dim=0)  # [T, T]: the mean over the heads of layer 3
    T, cell, left, top = len(weights), 7, 150, 110
    picture, pen = canvas(left + T * cell + 420, top + T * cell + 30)
    pen.text((20, 16), "Who looks at whom (layer 3, mean of its heads)", BLACK, font(26))
    pen.text((left, 60), "looked at", BLACK, font(20))
    pen.text((20, top + 40), "who looks", BLACK, font(20))
    for i in range(T):
        for j in range(i + 1):
            strength = min(1, 4 * weights[i, j].item() ** 0.5 / 2)
            x, y = left + j * cell, top + i * cell
            pen.rectangle((x, y, x + cell - 1, y + cell - 1), figures.shade(strength))
    visual = batch.visual_index.tolist()
    first, last = visual[0], visual[-1] + 1
    pen.rectangle((left + first * cell, top - 12, left + last * cell, top - 4), GREEN)
    pen.rectangle((left - 14, top + first * cell, left - 6, top + last * cell), GREEN)
    pen.rectangle((left + first * cell, top + last * cell, left + last * cell, top + T * cell), outline=ORANGE, width=4)
    x = left + T * cell + 30
    words = ("Green: the visual tokens.", "White: the future. No one", "looks there.", "")
    words += ("In the orange box text looks", "at the image. What it takes", "from there are values.")
    for i, line in enumerate(words):
        pen.text((x, top + 20 + 34 * i), line, BLACK, font(22))
    return picture


def low_rank():
    """Lesson 3: a weight of 256 x 256 and two factors of rank 8, to scale."""
    picture, pen = canvas(920, 430)
    pen.text((30, 20), "A frozen weight and the two factors of LoRA, to scale", BLACK, font(26))
    n, R, top = 256, 8, 90
    pen.rectangle((40, top, 40 + n, top + n), PALE, GREY, 3)
    pen.text((40 + n / 2, top + n / 2), "W", BLACK, font(40), anchor="mm")
    pen.text((40 + n / 2, top + n + 30), f"{n} x {n} = {n * n:,} frozen", BLACK, font(22), anchor="mm")
    pen.text((350, top + n / 2), "+", BLACK, font(50), anchor="mm")
    pen.rectangle((420, top, 420 + R, top + n), ORANGE)
    pen.text((450, top + n / 2), "A, random", BLACK, font(24), anchor="lm")
    pen.rectangle((600, top + n / 2 - R / 2, 600 + n, top + n / 2 + R / 2), ORANGE)
    pen.text((600 + n / 2, top + n / 2 - 30), "B, zero at the start", BLACK, font(24), anchor="mm")
    pen.text((640, top + n + 30), f"rank {R}: 2 x {n} x {R} = {2 * n * R:,} trained", BLACK, font(22), anchor="mm")
    return picture


def what_changes():
    """Lesson 4: how much the logits of each position change, in a row with an image and in one without."""
    vlm, processor = tiny()
    batch = processor([Example(scenes(1)[0].images[:1], "What colour is the ring?", "red"), sum_in_words()])
    torch.manual_seed(4)
    heads = {layer: list(range(vlm.config.value_heads)) for layer in range(vlm.config.layers)}
    adapter = ImageLoRA(vlm.config, heads, gamma=0.3)
    with torch.no_grad():
        before = vlm(batch)
        adapter.attach(vlm)
        for layer in adapter.layers.values():
            layer.B.normal_(std=0.3)
        after = vlm(batch)
    adapter.detach()
    change = (after - before).abs().amax(dim=-1)  # [B, T]
    picture, pen = canvas(1200, 470)
    pen.text((30, 16), "The largest change of a logit, token by token, under a random Image-LoRA", BLACK, font(26))
    names = ("with an image (green: visual tokens, blue: text)", "without an image: exactly 0")
    T = batch.input_ids.shape[1]
    width, tallest = 1140 / T, change.max().item()
    for row, name in enumerate(names):
        bottom = 240 + 190 * row
        pen.text((30, bottom - 170), name, BLACK, font(22))
        for t in range(int(batch.attention_mask[row].sum())):
            x, visual = 30 + t * width, bool(batch.visual_mask[row, t])
            height = 110 * change[row, t].item() / tallest
            pen.rectangle((x, bottom - height, x + width - 2, bottom), GREEN if visual else BLUE)
            pen.rectangle((x, bottom + 4, x + width - 2, bottom + 12), GREEN if visual else PALE)
    return picture


@torch.no_grad()
def probed():
    """The probe's scores of the tiny model on scenes in fog, [L, G]."""
    vlm, processor = tiny()
    return head_scores(vlm, [processor([example]) for example in scenes(16)])


def three_taus(scores):
    """Lesson 7: the selection at three values of tau, side by side."""
    cell, left, top = 40, 60, 120
    L, G = scores.shape
    picture, pen = canvas(left + 3 * (G * cell + 130), top + L * cell + 50)
    pen.text((20, 16), "Six heads of the tiny model, by the same scores", BLACK, font(26))
    for i, (tau, words) in enumerate(((0, "all layers alike"), (0.5, "between"), (1, "in proportion"))):
        x = left + i * (G * cell + 130)
        pen.text((x, top - 50), f"tau = {tau}", BLACK, font(22))
        pen.text((x, top - 26), words, BLACK, font(18))
        figures.head_grid(pen, (x, top), cell, scores.tolist(), select_heads(scores, 6, tau))
    pen.text((20, top + L * cell + 16), "row: layer; column: value head; framed: selected; right: the quota of the layer", BLACK, font(18))
    return picture


def four_verdicts():
    """Lesson 8: four made-up intervals against zero and the margin."""
    picture, pen = canvas(1100, 400)
    pen.text((30, 16), "A difference with its 95 % interval, margin 2 points", BLACK, font(26))
    cases = (("better", 1, 5), ("worse", -5, -0.8), ("equivalent", -1.2, 1.5), ("undecided", -3, 4.5))
    axes = figures.Axes(picture, (60, 80, 880, 340), (-6.5, 6.5), (len(cases), 0), size=20)
    pen.rectangle((*axes.at(-2, 0), *axes.at(2, len(cases))), PALE)
    axes.ticks("g", count=7)
    pen.line((*axes.at(0, 0), *axes.at(0, len(cases))), BLACK, 2)
    for i, (name, low, high) in enumerate(cases):
        (x1, y), (x2, _) = axes.at(low, i + 0.5), axes.at(high, i + 0.5)
        pen.line((x1, y, x2, y), BLUE, 5)
        for end in (x1, x2):
            pen.line((end, y - 10, end, y + 10), BLUE, 5)
        axes.mark((low + high) / 2, i + 0.5, ORANGE, ORANGE, radius=8)
        pen.text((920, y), name, BLACK, font(26), anchor="lm")
    return picture


def first_boxes(run, count=6):
    """Keep the first boxes in fog of a run, nothing chosen: `python -c "from course.pictures import first_boxes;
    first_boxes('runs/demo')"`. Base and tuned answer the same held-out questions."""
    lines = (Path(run) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {"base": {}, "tuned": {}}
    for answer in map(json.loads, lines):
        if answer["data"] == "scenes-fog" and answer["kind"] == "grounding":
            answers[answer["when"]][answer["source"]] = answer["parsed"]
    found = [{when: answers[when][source] for when in answers} for source in [*answers["base"]][:count]]
    command = read_json(Path(run) / "report.json")["command"]
    write_text(BOXES, json.dumps({"command": command, "answers": found}) + "\n")


def before_and_after(path):
    """Lesson 8: the same held-out scenes with the box of the base model and that of the tuned one."""
    asked = [example for example in load("scenes-fog", None, "val", 20) if not isinstance(example.answer, str)]
    items = []
    for example, answers in zip(asked, read_json(BOXES)["answers"]):
        right = {when: iou(box, example.answer) >= 0.5 for when, box in answers.items()}
        tile = {"image": example.images[0], "caption": example.caption, "reference": example.answer, "right": right}
        items.append(tile | answers)
    figures.examples(path, items, columns=3, side=260)


def what_it_costs():
    """Of the suite `main`: boxes in fog against the adapter's FLOPs. A mark is the mean of the seeds, a bar -+ one
    standard deviation; the marks of random heads are open, their labels below."""
    ((_, rows),) = read_json(HERE.parent / "experiments/results/main.json")["tables"]
    series = {
        "Image-LoRA, probed heads": (BLUE, BLUE, {n: f"Image-LoRA, {n} probed heads" for n in ("3", "6", "12")}),
        "random heads": (GREY, "white", {n: f"Image-LoRA, {n} random heads" for n in ("3", "6", "12")}),
        "LoRA, all tokens": (ORANGE, ORANGE, {"v": "LoRA v", "q, k, v, o": "LoRA q,k,v,o"}),
    }
    series["Image-LoRA, probed heads"][2]["all 24"] = "Image-LoRA, all heads"
    picture, pen = canvas(860, 530)
    pen.text((20, 16), "Boxes in fog: mean and standard deviation of five seeds", BLACK, font(22))
    figures.legend(pen, 80, 74, {name: colours for name, (*colours, _) in series.items()}, 17)
    axes = figures.Axes(picture, (80, 110, 830, 450), (4e6, 6e8), (0.55, 0.9), log_x=True)
    axes.ticks("k", "g%")
    axes.words(x="FLOPs of the adapter in a training step")
    (base,) = set(rows["base"]["boxes"])
    axes.line([(4e6, base), (6e8, base)], BLACK)
    pen.text(axes.at(5e8, base + 0.01), f"frozen model, {base:.1%}", BLACK, font(16), anchor="rs")
    for colour, inside, names in series.values():
        points = {label: (fmean(rows[name]["FLOPs a step"]), rows[name]["boxes"]) for label, name in names.items()}
        axes.line([(cost, fmean(boxes)) for cost, boxes in points.values()], colour)
        for label, (cost, boxes) in points.items():
            low, high = fmean(boxes) - stdev(boxes), fmean(boxes) + stdev(boxes)
            axes.line([(cost, low), (cost, high)], colour, 3)
            axes.mark(cost, fmean(boxes), colour, inside, 7)
            (x, below), (_, above) = axes.at(cost, low), axes.at(cost, high)
            where = (x, below + 8) if inside == "white" else (x, above - 22)
            pen.text(where, label, BLACK, font(16), anchor="mt")
    return picture


def draw(folder):
    """Write all pictures into `folder` and its folders lessonN."""
    scores = probed()
    pictures = {1: row_of_tokens(), 2: who_looks_at_whom(), 3: low_rank(), 5: what_changes()}
    pictures |= {8: three_taus(scores), 9: four_verdicts()}
    for number, picture in pictures.items():
        figures.save(picture, folder / f"lesson{number}/picture.png", optimize=True)
    figures.head_map(folder / "lesson7/picture.png", scores.tolist(), select_heads(scores, 6))
    before_and_after(folder / "lesson9/boxes.png")
    figures.save(what_it_costs(), folder / "costs.png", optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

"""The pictures of the course that show something measured: `python -m course.pictures [FOLDER]`.

Each goes to lessonN/picture.png under the folder, by default course/. The lessons 3, 6 and 9 have drawings that are kept by
hand, as SVG. The answers in lesson9/boxes.json are the first boxes in fog of the demo's predictions.jsonl, nothing chosen.
"""

import sys
from pathlib import Path

import torch

from course.real import logits, scenes, sum_in_words, tiny
from data import Example, load
from harness import figures
from harness.figures import BLACK, BLUE, GREEN, ORANGE, PALE, canvas, font
from imagelora import ImageLoRA
from model import attend
from parts.backbones.layers import weights_kept
from parts.files import read_json
from probe import head_scores, select_heads

HERE = Path(__file__).parent


def question():
    """A question about the first scene, with its answer."""
    return Example(scenes(1)[0].images[:1], "What colour is the star?", "black")


def row_of_tokens():
    """Lesson 1: an image, its grid of visual tokens, and the row that the model reads."""
    processor, example = tiny()[1], question()
    batch = processor([example])
    picture, pen = canvas(1200, 460)
    pen.text((30, 20), "What the model reads", BLACK, font(28))
    picture.paste(example.images[0].resize((210, 210)), (30, 70))
    for i in range(8):
        pen.line((30 + 30 * i, 70, 30 + 30 * i, 280), GREEN, 2)
        pen.line((30, 70 + 30 * i, 240, 70 + 30 * i), GREEN, 2)
    words = "196 x 196 pixels, 14 x 14 patches\n\n2 x 2 patches are one visual token: 7 x 7 = 49\n\nThe row has"
    words += f" {batch.input_ids.shape[1]} tokens. Green: visual; orange: supervised; grey: all other text."
    pen.multiline_text((280, 90), words, BLACK, font(23))
    x, y = 30, 310
    for token, visual, label in zip(batch.input_ids[0], batch.visual_mask[0], batch.labels[0]):
        word = "" if visual else processor.tokenizer.decode([int(token)], skip_special_tokens=False).replace("\n", "\\n")
        width = 22 if visual else int(font(17).getlength(word)) + 11
        if x + width > 1170:
            x, y = 30, y + 44
        text = ORANGE if label >= 0 else PALE
        pen.rectangle((x, y, x + width - 3, y + 34), GREEN if visual else text)
        pen.text((x + 4, y + 17), word, BLACK, font(17), anchor="lm")
        x += width
    return picture


def where_it_looks():
    """Lesson 2: how much the last token of the question looks at each of the 7 x 7 visual tokens, in three layers."""
    (vlm, processor), example = tiny(), question()
    batch = processor([example.question()])
    with torch.no_grad(), weights_kept(vlm.model.layers, attend) as kept:
        vlm(batch)
    picture, pen = canvas(1160, 360)
    pen.text((20, 16), f"Where the last token looks: {example.prompt!r}", BLACK, font(26))
    picture.paste(example.images[0].resize((245, 245)), (20, 90))
    for i, layer in enumerate((1, 3, 5)):
        on_image = kept[layer][0, :, -1].mean(dim=0)[batch.visual_mask[0]]  # [49], the mean over the heads
        pen.text((305 + 285 * i, 60), f"layer {layer}: {on_image.sum():.0%} on the image", BLACK, font(19))
        for token, weight in enumerate(on_image.tolist()):
            x, y = 305 + 285 * i + 35 * (token % 7), 90 + 35 * (token // 7)
            pen.rectangle((x, y, x + 33, y + 33), figures.shade(weight / on_image.max().item()))
    return picture


def what_changes():
    """Lesson 5: how much the logits of each position change, in a row with an image and in one without."""
    vlm, processor = tiny()
    batch = processor([question(), sum_in_words()])
    torch.manual_seed(4)
    adapter = ImageLoRA(vlm.config, dict.fromkeys(range(6), range(4)), gamma=0.3)
    for layer in adapter.layers.values():
        layer.B.data.normal_(std=0.3)
    change = (logits(batch, adapter.updates) - logits(batch)).abs().amax(dim=-1)  # [B, T]
    picture, pen = canvas(1200, 470)
    pen.text((30, 16), "The largest change of a logit, token by token, under a random Image-LoRA", BLACK, font(26))
    width = 1140 / batch.input_ids.shape[1]
    for row, name in enumerate(("with an image (green: visual tokens, blue: text)", "without an image")):
        bottom = 240 + 190 * row
        pen.text((30, bottom - 170), name, BLACK, font(22))
        if not change[row].any():
            pen.text((600, bottom - 60), "exactly 0", BLACK, font(34), anchor="mm")
        for t in range(int(batch.attention_mask[row].sum())):
            x, visual = 30 + t * width, bool(batch.visual_mask[row, t])
            height = 110 * (change[row, t] / change.max()).item()
            pen.rectangle((x, bottom - height, x + width - 2, bottom), GREEN if visual else BLUE)
    return picture


def selections(scores, title, columns):
    """Lessons 7 and 8: scores, row a layer and column a head, with different heads framed. columns: {name: {layer: [heads]}}."""
    picture, pen = canvas(60 + 290 * len(columns), 410)
    pen.text((20, 16), title, BLACK, font(24))
    for i, (name, heads) in enumerate(columns.items()):
        pen.text((60 + 290 * i, 60), name, BLACK, font(20))
        figures.head_grid(pen, (60 + 290 * i, 120), 40, scores.tolist(), heads)
    return picture


def draw(folder):
    """Write all pictures into the folders lessonN of `folder`."""
    vlm, processor = tiny()
    scores = head_scores(vlm, [processor([example]) for example in scenes(16)])
    split = {f"tau = {tau}": select_heads(scores, 6, tau) for tau in (0, 0.5, 1)}
    pictures = {1: row_of_tokens(), 2: where_it_looks(), 5: what_changes()}
    pictures[7] = selections(scores, "Scores of all heads", {"the darker, the higher": {}})
    pictures[8] = selections(scores, "Six heads, by the same scores", split)
    for number, picture in pictures.items():
        figures.save(picture, folder / f"lesson{number}/picture.png", optimize=True)

    # Lesson 9: the same held-out scenes with the box of the base model and that of the tuned one.
    asked = [example for example in load("scenes-fog", None, "val", 20) if not isinstance(example.answer, str)]
    items = []
    for example, answers in zip(asked, read_json(HERE / "lesson9/boxes.json")["answers"]):
        items.append({"image": example.images[0], "caption": example.caption, "reference": example.answer} | answers)
    figures.examples(folder / "lesson9/boxes.png", items, columns=3, side=260)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

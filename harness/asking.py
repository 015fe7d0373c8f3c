"""Questions without a data set: about some images, or about every image of a folder."""

import json
from pathlib import Path

from data import Example
from harness import figures
from harness.encodings import like_batches
from harness.processes import progress
from parts.files import InputError, write_text
from parts.tasks.boxes import box_from_model, parse_box
from parts.tasks.images import open_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # of --predict


def ask(vlm, processor, examples, room):
    """Generate answers to questions: [(text, its box in pixels of the only image's file, or None)]."""
    batch = processor(examples).to(vlm.device)
    found = []
    for example, ids in zip(examples, vlm.generate(batch, room)):
        text = processor.decode(ids)
        box = parse_box(text)
        if box is not None and len(example.visuals) == 1:
            (visual,) = example.visuals
            found.append((text, box_from_model(box, visual.size, processor.box_scale(visual))))
        else:
            found.append((text, None))
    return found


def answer(vlm, processor, images, prompt, room, size, tune, out):
    """--prompt: about a list of images, or about each image of a folder, `size` at a time. tune() attaches the adapter, if
    there is one."""
    if isinstance(images, str):
        return answer_folder(vlm, processor, images, prompt, room, size, tune, out)
    return answer_one(vlm, processor, images, prompt, room, tune, out)


def answer_one(vlm, processor, images, prompt, room, tune, out):
    """One question about any images, answered by the frozen model and, if tune() attaches an adapter, with that. Boxes
    in the answers are drawn on the image, if it is one."""
    item = {"caption": prompt}
    for when in ("base", "tuned") if tune else ("base",):
        if when == "tuned":
            tune()
        ((text, box),) = ask(vlm, processor, [Example(images, prompt, source="--prompt")], room)
        item[when] = box or text
        print(f"{when:8} {text}")
        if box:
            print(f"         box in pixels of the image: {[round(c) for c in box]}")
    if len(images) == 1:
        figures.examples(out / "answer.png", [item | {"image": open_image(images[0])}], side=640)
        print(f"         drawn in {out / 'answer.png'}")


def answer_folder(vlm, processor, folder, prompt, room, size, tune, out):
    """The same question about every image of a folder, `size` at a time, answered with the adapter if there is one: a line
    each in predictions.jsonl. Raises InputError if there is no image."""
    files = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"--predict {folder}: no image there ({', '.join(IMAGE_SUFFIXES)})")
    if tune:
        tune()
    examples, answers = [Example([file], prompt, source=str(file)) for file in files], {}
    with progress(total=len(files), desc="answering") as bar:
        for numbers in like_batches(processor, examples, size, share_images=False):
            answers |= zip(numbers, ask(vlm, processor, [examples[i] for i in numbers], room))
            bar.update(len(numbers))
    rows = [
        {"image": str(f), "prompt": prompt, "text": answers[i][0], "box": answers[i][1]} for i, f in enumerate(files)
    ]
    write_text(out / "predictions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"answers  to {len(files)} images: {out / 'predictions.jsonl'}")

"""Questions about images, answered by a model without and with an adapter:

    python -m harness.ask --adapter runs/.../adapter.safetensors --image photo.jpg --find "the red cup"
    python -m harness.ask --model Qwen/Qwen2.5-VL-3B-Instruct --folder photos --prompt "How many people are there?"

Further flags are those of train.py: --model, --max-pixels, --max-new-tokens, --device, --dtype, --quantize, --out.
"""

import json
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from data import Example
from harness import ending, figures
from harness.arguments import Parser, parse_args
from harness.loading import load_model
from harness.processes import progress
from imagelora import load_adapter
from parts.files import InputError, write_text
from parts.tasks.boxes import box_from_model, parse_box
from parts.tasks.images import open_image
from parts.tasks.rows import GROUNDING_PROMPT

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # of images in a folder
AT_ONCE = 8  # images of a folder
NEW_TOKENS = 200  # of an answer, if --max-new-tokens does not say


def arguments(argv):
    """The command line -> (flags of this program, flags of train.py)."""
    parser = Parser(usage="python -m harness.ask [flags]", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--image", nargs="*", default=[], metavar="FILE", help="one question about these images together")
    parser.add_argument("--folder", metavar="FOLDER", help="the same question about every image of a folder")
    parser.add_argument("--prompt", metavar="TEXT", help="the question")
    parser.add_argument("--find", metavar="TEXT", help='where is it? "the red cup" is put into the prompt for boxes')
    asked, others = parser.parse_known_args(argv)
    if (asked.prompt is None) == (asked.find is None):
        parser.error("--prompt or --find: give one of the two")
    if asked.image and asked.folder:
        parser.error("--image and --folder exclude each other")
    if asked.find is not None:
        asked.prompt = GROUNDING_PROMPT.format(asked.find)
    return asked, parse_args(["--method", "none", *others], methods=["none"], criteria=[])


def ask(vlm, processor, examples, max_new_tokens):
    """Answers to questions: [(text, its box in pixels of the only image's file, or None)]."""
    answers = []
    for example, ids in zip(examples, vlm.generate(processor(examples).to(vlm.device), max_new_tokens)):
        text = processor.decode(ids)
        box = parse_box(text)
        if box is None or len(example.visuals) != 1:
            answers.append((text, None))
        else:
            (visual,) = example.visuals
            answers.append((text, box_from_model(box, visual.size, processor.box_scale(visual))))
    return answers


def ask_once(vlm, processor, images, prompt, args):
    """One question, answered by the frozen model and, if there is one, with the adapter. Boxes are drawn on the image."""
    item = {"caption": prompt}
    for when in ("base", "tuned") if args.adapter else ("base",):
        if when == "tuned":
            load_adapter(args.adapter, vlm)
        ((text, box),) = ask(vlm, processor, [Example(images, prompt)], args.max_new_tokens or NEW_TOKENS)
        item[when] = box or text
        print(f"{when:8} {text}")
        if box:
            print(f"         box in pixels of the image: {[round(c) for c in box]}")
    if len(images) == 1:
        file = Path(args.out or "runs/ask") / "answer.png"
        figures.examples(file, [item | {"image": open_image(images[0])}], side=640)
        print(f"         drawn in {file}")


def ask_folder(vlm, processor, folder, prompt, args):
    """The same question about every image of a folder, with the adapter if there is one: a line each in
    predictions.jsonl. Raises InputError if there is no image."""
    files = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"--folder {folder}: no image ({', '.join(SUFFIXES)})")
    if args.adapter:
        load_adapter(args.adapter, vlm)
    lines = []
    with progress(total=len(files), desc="answering") as bar:
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            answers = ask(vlm, processor, [Example([file], prompt) for file in some], args.max_new_tokens or NEW_TOKENS)
            for file, (text, box) in zip(some, answers):
                lines.append({"image": str(file), "prompt": prompt, "text": text, "box": box})
            bar.update(len(some))
    out = Path(args.out or "runs/ask") / "predictions.jsonl"
    write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(f"answers  to {len(files)} images: {out}")


def main(argv=None):
    with ending.in_one_line():
        asked, args = arguments(argv)
        vlm, processor = load_model(args)
        if asked.folder:
            ask_folder(vlm, processor, asked.folder, asked.prompt, args)
        else:
            ask_once(vlm, processor, asked.image, asked.prompt, args)


if __name__ == "__main__":
    main()

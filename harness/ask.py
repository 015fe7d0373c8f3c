"""Questions without a data set: one about some images, or the same one about every image of a folder.

    python -m harness.ask --adapter runs/.../adapter.safetensors --image photo.jpg --find "the red cup"
    python -m harness.ask --model Qwen/Qwen2.5-VL-3B-Instruct --folder photos --prompt "What is this?"

Further flags are those of train.py: --max-pixels, --max-new-tokens, --device, --dtype, --quantize, --out.
"""

import json
import time
from pathlib import Path

from PIL import Image

from data import Example
from harness import figures
from harness.arguments import Parser, parse_args
from harness.encodings import load_model, load_processor
from harness.processes import in_one_line, progress
from imagelora import load_adapter
from parts.files import InputError, write_text
from parts.tasks.boxes import box_from_model, parse_box
from parts.tasks.images import FORMATS
from parts.tasks.rows import GROUNDING_PROMPT

ENDINGS = [suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS]


def ask(vlm, processor, example, max_new_tokens):
    """Generate an answer: (text, the box in it, in pixels of the only image, or None)."""
    (ids,) = vlm.generate(processor([example]).to(vlm.device), max_new_tokens or 200)
    text = processor.decode(ids)
    box = parse_box(text) if len(example.images) == 1 else None
    if box:
        box = box_from_model(box, example.visuals[0].size, processor.box_scale(example.visuals[0]))
    return text, box


def ask_folder(answer, prompt, folder, file):
    """The answer about every image of a folder: each is a line of `file`, written as it comes. A bad image is named,
    counted and left out."""
    entries, left_out = sorted(Path(folder).glob("*")), 0
    images = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in ENDINGS]
    if not images:
        raise InputError(f"--folder {folder}: no image in it ({' '.join(ENDINGS)})")
    write_text(file, "")
    with open(file, "a", encoding="utf-8", buffering=1) as lines:  # 1: every line is written at its end
        for image in progress(images, desc="answering"):
            try:
                text, box = answer(Example([image], prompt, source=str(image)))
            except InputError as error:
                print(f"left out {error}")
                left_out += 1
                continue
            row = {"image": str(image), "prompt": prompt, "text": text, "box": box}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    others = ", ".join(["", *(entry.name for entry in sorted({*entries} - {*images}))])  # folders too
    print(f"answers  to {len(images) - left_out} images of {folder}: {file}; left out: {left_out} images{others:.500}")


def main(argv=None):
    parser = Parser(usage="python -m harness.ask [flags]", description="Ask about images. Other flags: those of train.py.")
    images, question = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--image", nargs="+", default=[], metavar="FILE", help="one question about these images")
    images.add_argument("--folder", help="the same question about every image of a folder")
    question.add_argument("--prompt", metavar="TEXT", help="any question")
    question.add_argument("--find", metavar="TEXT", help='asks for the box of "the red cup"')
    with in_one_line():
        asked, others = parser.parse_known_args(argv)
        args = parse_args(["--method", "none", *others])
        if "model" not in args.given and not args.adapter:
            raise InputError("which model? add --adapter FILE, or --model: a checkpoint folder, a hub id or tiny")
        prompt = asked.prompt if asked.find is None else GROUNDING_PROMPT.format(asked.find)
        example, out = Example(asked.image, prompt), Path(args.out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-ask")
        processor, item = load_processor(args), {"caption": prompt}
        processor.tokens(example)  # a bad file ends here, before the model is loaded
        vlm = load_model(args)
        # About a folder only the tuned model is asked, if there is one.
        for when in ("base", "tuned") if args.adapter else ("base",):
            if when == "tuned":
                load_adapter(args.adapter, vlm)
            if not asked.folder:
                text, box = ask(vlm, processor, example, args.max_new_tokens)
                item[when] = box or text
                print(f"{when:8} {text}" + (f"\n         box in pixels of the image: {[round(c) for c in box]}" if box else ""))
        if asked.folder:
            ask_folder(lambda e: ask(vlm, processor, e, args.max_new_tokens), prompt, asked.folder, out / "predictions.jsonl")
        if len(asked.image) == 1:
            figures.examples(out / "answer.png", [item | {"image": asked.image[0]}], side=640)
            print(f"         drawn in {out / 'answer.png'}")


if __name__ == "__main__":
    main()

"""Questions without a data set: one about some images, or the same one about every image of a folder.

    python -m harness.ask --adapter runs/.../adapter.safetensors --image photo.jpg --find "the red cup"
    python -m harness.ask --model Qwen/Qwen2.5-VL-3B-Instruct --folder photos --prompt "What is this?"
"""

import argparse
import json
import time
from pathlib import Path

from PIL import Image

from data import Example, Processor
from harness import ending, figures, report, state
from harness.loading import pixel_limits
from harness.processes import choose_device, progress
from imagelora import load_adapter
from model import VLM
from parts.files import InputError, read_metadata
from parts.tasks.boxes import box_from_model, parse_box
from parts.tasks.images import FORMATS, open_image
from parts.tasks.rows import GROUNDING_PROMPT

ROOT = Path(__file__).parent.parent
MAX_NEW_TOKENS = 200
ENDINGS = [suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS]


def load(name, adapter, max_pixels, device, dtype):
    """(vlm, processor) of the model `name`; None: of the model that the adapter file names."""
    name = name or (read_metadata(adapter).get("model") if adapter else None)
    if not name:
        raise InputError(f"{adapter or 'which model?'}: add --model, a checkpoint folder, a hub id or tiny")
    device, dtype = choose_device(device, dtype)
    checkpoint = ROOT / "parts/tiny" if name == "tiny" else name
    vlm = VLM.from_pretrained(checkpoint, dtype, device)
    report.show_model(name, vlm)
    return vlm, Processor.from_pretrained(checkpoint, *pixel_limits(None, max_pixels, adapter))


def ask(vlm, processor, images, prompt):
    """Generate an answer: (text, the box in it, in pixels of the only image, or None)."""
    example = Example(images, prompt, source=", ".join(map(str, images)))
    (ids,) = vlm.generate(processor([example]).to(vlm.device), MAX_NEW_TOKENS)
    text, box = processor.decode(ids), parse_box(processor.decode(ids))
    if box is None or len(images) != 1:
        return text, None
    (visual,) = example.visuals
    return text, box_from_model(box, visual.size, processor.box_scale(visual))


def ask_once(vlm, processor, images, prompt, adapter, out):
    """Print what the base model answers, and what it answers with the adapter; draw the boxes on the only image."""
    item = {"caption": prompt}
    for when in ("base", "tuned") if adapter else ("base",):
        if when == "tuned":
            load_adapter(adapter, vlm)
        text, box = ask(vlm, processor, images, prompt)
        print(f"{when:8} {text}")
        if box:
            print(f"         box in pixels of the image: {[round(c) for c in box]}")
        item[when] = box or text
    if len(images) == 1:
        figures.examples(out / "answer.png", [item | {"image": open_image(images[0])}], side=640)
        print(f"drawn in {out / 'answer.png'}")


def ask_folder(vlm, processor, folder, prompt, out):
    """Ask about every image of a folder. An answer is a line of predictions.jsonl, written as it comes. A bad image is
    named, counted and left out."""
    entries = sorted(Path(folder).glob("*"))
    if folders := [entry.name for entry in entries if entry.is_dir()]:
        print(f"left out the folders in {folder}: {', '.join(folders)}")
    images = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in ENDINGS]
    if not images:
        raise InputError(f"--folder {folder}: no image in it ({' '.join(ENDINGS)})")
    bad = 0
    with open(out / "predictions.jsonl", "w", encoding="utf-8") as lines:
        for image in progress(images, desc="answering"):
            try:
                text, box = ask(vlm, processor, [image], prompt)
            except InputError as error:
                print(f"left out {error}")
                bad += 1
                continue
            row = {"image": str(image), "prompt": prompt, "text": text, "box": box}
            print(json.dumps(row, ensure_ascii=False), file=lines, flush=True)
    print(f"answers  to {len(images) - bad} images, {bad} left out: {out / 'predictions.jsonl'}")


def main(argv=None):
    parser = argparse.ArgumentParser(usage="python -m harness.ask [flags]", description=__doc__.partition("\n")[0])
    images, question = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group(required=True)
    add = parser.add_argument
    add("--model", help="checkpoint folder, hub id or tiny (default: the model that --adapter names)")
    add("--adapter", help="adapter.safetensors of a run")
    images.add_argument("--image", nargs="+", default=[], metavar="FILE", help="one question about these images")
    images.add_argument("--folder", help="the same question about every image of a folder")
    question.add_argument("--prompt", metavar="TEXT", help="any question")
    question.add_argument("--find", metavar="TEXT", help='asks for the box of "the red cup"')
    add("--max-pixels", type=int, help="largest area of a resized image (default: as the adapter was trained)")
    add("--device", default="auto", help="cpu, cuda, ... (default: cuda if there is one)")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--out", type=Path, default=f"runs/{time.strftime('%Y%m%d-%H%M%S')}-ask", help="folder (default: runs/TIME-ask)")
    args = parser.parse_args(argv)
    with ending.in_one_line():
        state.check_place(args.out)
        args.out.mkdir(parents=True, exist_ok=True)
        vlm, processor = load(args.model, args.adapter, args.max_pixels, args.device, args.dtype)
        prompt = args.prompt or GROUNDING_PROMPT.format(args.find)
        if not args.folder:
            ask_once(vlm, processor, args.image, prompt, args.adapter, args.out)
            return
        if args.adapter:
            load_adapter(args.adapter, vlm)
        ask_folder(vlm, processor, args.folder, prompt, args.out)


if __name__ == "__main__":
    main()

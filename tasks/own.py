"""Your own data: `jsonl`, rows with images, boxes or text only; `llava`, conversations as LLaVA has them.

    {"image": "photo.jpg", "sent": "the red cup", "bbox": [x1, y1, x2, y2]}
    {"images": ["a.png", "b.png"], "prompt": "Is <image> or <image> sharper?", "answer": "the second"}
    {"prompt": "17 + 25 =", "answer": "42"}

    [{"image": "photo.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                              {"from": "gpt", "value": "a cup"}, ...]}, ...]

files    jsonl: <split>.jsonl; llava: <split>.json; names of images are relative to the folder
prompt   yours; "sent" is put into GROUNDING_PROMPT. Images come before it, or where it says "<image>"
splits   the names of your files
metric   exact match; for boxes, in pixels of the image as it is on disk, accuracy@0.5
"""

from files import InputError
from tasks.rows import PLACE, file_of, json_rows, place_images, reading

KEYS = ("image", "images", "prompt", "answer", "bbox", "width", "height", "kind")  # what is read, and "sent"


def jsonl(name, root, split):
    for row, source in json_rows(file_of(root, split, "*.jsonl", "no .jsonl file at all")):
        if not isinstance(row, dict):
            yield row, source  # `checked` complains
            continue
        found = {key: row[key] for key in KEYS if key in row}
        if "sent" in row:
            found["caption"] = row["sent"]
        if isinstance(row.get("prompt"), str):
            found["prompt"] = place_images(row["prompt"], row, source)
        yield found, source


def llava(name, root, split):
    """Every answer of a conversation is a row of its own, with the turns before it as its history."""
    for row, source in json_rows(file_of(root, split, "*.json", "no .json file at all")):
        with reading(source, "conversations"):
            who, said = zip(*((turn["from"], turn["value"]) for turn in row["conversations"]))
            if list(who) != ["human", "gpt"] * (len(who) // 2):
                raise InputError(f"{source}: turns must alternate human, gpt; they are {list(who)}")
            if any(PLACE in text for text in said[1:]):
                raise InputError(f"{source}: {PLACE} in a later turn; images are taken in the first one only")
            said = place_images(said[0], row, source), *said[1:]
            turns = list(zip(said[::2], said[1::2]))
        images = {key: row[key] for key in ("image", "images") if key in row}
        for i, (prompt, answer) in enumerate(turns):
            yield images | {"prompt": prompt, "answer": answer, "history": tuple(turns[:i])}, source

"""Your own rows: `jsonl`, and conversations as LLaVA has them: `llava`."""

from files import InputError
from tasks.rows import PLACE, file_of, json_rows, placed, reading

# what is read of your own rows
OWN = ["image", "images", "prompt", "sent", "answer", "bbox", "width", "height", "kind"]


def jsonl(name, root, split):
    """Your own rows in root/<split>.jsonl: "image" or "images" (paths relative to root; none: text only), "prompt" or
    "sent" (put into the RefCOCO prompt), "answer" (text) or "bbox" (x1, y1, x2, y2 in pixels of the image). Images stand
    before the prompt, or where it says "<image>". Metric: exact match, IoU for boxes."""
    for row, source in json_rows(file_of(root, split, "*.jsonl", "no .jsonl file at all")):
        if isinstance(row, dict):
            row = {key: row[key] for key in OWN if key in row}
            if isinstance(row.get("prompt"), str):
                row["prompt"] = placed(row["prompt"], row, source)
        yield row, source


def llava(name, root, split):
    """Conversations as LLaVA has them, root/<split>.json: [{"image" or "images", "conversations": [{"from": "human" or
    "gpt", "value"}, ...]}]. Every answer is a row of its own, behind the turns before it. Metric: exact match."""
    for row, source in json_rows(file_of(root, split, "*.json", "no .json file at all")):
        with reading(source, "conversations"):
            who, said = zip(*((turn["from"], turn["value"]) for turn in row["conversations"]))
            if list(who) != ["human", "gpt"] * (len(who) // 2):
                raise InputError(f"{source}: turns must alternate human, gpt; they are {list(who)}")
            if any(PLACE in text for text in said[1:]):
                raise InputError(f"{source}: {PLACE} in a later turn; images are taken in the first one only")
            said = placed(said[0], row, source), *said[1:]
            pairs = list(zip(said[::2], said[1::2]))
        for i, (prompt, answer) in enumerate(pairs):
            seen = {key: row[key] for key in ("image", "images") if key in row}
            yield seen | {"prompt": prompt, "answer": answer, "history": tuple(pairs[:i])}, source

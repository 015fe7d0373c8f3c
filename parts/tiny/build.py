"""Writes the tiny model's tokenizer.json, and the ids of its tokens into config.json, beside this file. Run once:
`python parts/tiny/build.py`. The sizes of the model are in config.json itself; the weights come from training.

The tokenizer is byte-level BPE, as Qwen's, so that it can write any text, and splits numbers into digits, as Qwen's (a
small model learns the tens of a coordinate long before the units). The words of the tiny world are one token each, a
comma and the space after it are one, and so are the beginning and the end of a box in JSON: a box is some 14 tokens.
"""

import json
import re
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from parts.backbones.qwen2_5_vl import Config
from parts.files import read_json, write_text
from parts.tasks.rows import BOX_ANSWER, GROUNDING_PROMPT, WORDS
from parts.tasks.scenes import COLOURS, FILLER, SHAPES, scene_rows

SPECIAL = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
KEYS = {"bos_token_id": "endoftext", "eos_token_id": "im_end", "vision_token_id": "vision_pad"}  # in config.json
KEYS |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
KEYS |= {"image_token_id": "image_pad", "video_token_id": "video_pad"}
BOX_BEGINS, BOX_ENDS = BOX_ANSWER.format("[|]").split("|")
PIECES = rf"{re.escape(BOX_BEGINS)}|{re.escape(BOX_ENDS)}|" + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|[^\s\p{L}\p{N}]+ ?[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus():
    """The words of the tiny world, each often enough to become one token, with and without a space before it."""
    text = [f"system\n{Config.system}", "user\n", "assistant\n", "\n", "\n#### "]
    text += [FILLER, f" {FILLER}", GROUNDING_PROMPT.format("the"), BOX_ANSWER.format([1, 2, 3, 4])]
    for number in range(500):
        for row in scene_rows("day", "train", number):
            text += [row.get("prompt", ""), row.get("sent", ""), row.get("answer", "")]
    text += [*SHAPES, *COLOURS, "three", "four", *WORDS["foreign"].values(), "small", "large"]
    return [t for t in text for _ in range(3)]


def build_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = Sequence([Split(Regex(PIECES), "isolated"), ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        special_tokens=[AddedToken(f"<|{name}|>", special=True, normalized=False) for name in SPECIAL],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def token_ids(tokenizer):
    """What config.json says about the tokens: {key: id}, and their number."""
    ids = {key: tokenizer.token_to_id(f"<|{name}|>") for key, name in KEYS.items()}
    return ids | {"vocab_size": tokenizer.get_vocab_size()}


def main():
    tokenizer = build_tokenizer()
    tokenizer.save(str(HERE / "tokenizer.json"))
    config = read_json(HERE / "config.json") | token_ids(tokenizer)
    write_text(HERE / "config.json", json.dumps(config, indent=2) + "\n")
    print(f"{config['vocab_size']} tokens")


if __name__ == "__main__":
    main()

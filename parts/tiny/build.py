"""Writes the tiny model's config.json, tokenizer.json, preprocessor_config.json and generation_config.json, in the
checkpoint format of Qwen2.5-VL, into this folder. Run once: `python parts/tiny/build.py`; the weights come from training.

The tokenizer is byte-level BPE, as Qwen's, so that it can write any text, and splits numbers into digits, as Qwen's (a
small model learns the tens of a coordinate long before the units). The words of the tiny world are one token each, a
comma and the space after it are one, and so are the beginning and the end of a box in JSON: a box is some 14 tokens.
"""

import json
import re
import sys
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from parts.backbones.qwen2_5_vl import Config
from parts.tasks.rows import BOX_ANSWER, GROUNDING_PROMPT
from parts.tasks.scenes import COLOURS, COUNTS, FILLER, FOREIGN, SHAPES, scene_rows

SPECIAL = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
BOX_BEGINS, BOX_ENDS = BOX_ANSWER.format("[|]").split("|")
PIECES = rf"{re.escape(BOX_BEGINS)}|{re.escape(BOX_ENDS)}|" + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|[^\s\p{L}\p{N}]+ ?[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus():
    """The words of the tiny world, each often enough to become one token, with and without a space before it."""
    text = [f"system\n{Config.system}", "user\n", "assistant\n", "\n", "\n#### "]
    text += [FILLER, f" {FILLER}", GROUNDING_PROMPT.format("the"), BOX_ANSWER.format([1, 2, 3, 4])]
    for number in range(500):
        for row in scene_rows("day", "train", number):
            text += [row.get("prompt", ""), row.get("sent", ""), row.get("answer", "")]
    text += [*SHAPES, *COLOURS, *COUNTS.values(), *FOREIGN.values(), "small", "large"]
    return [t for t in text for _ in range(3)]


def build_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        special_tokens=[AddedToken(f"<|{name}|>", special=True, normalized=False) for name in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def build_config(tokenizer):
    token = {name: tokenizer.token_to_id(f"<|{name}|>") for name in SPECIAL}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "bos_token_id": token["endoftext"],
        "eos_token_id": token["im_end"],
        "vision_start_token_id": token["vision_start"],
        "vision_end_token_id": token["vision_end"],
        "vision_token_id": token["vision_pad"],
        "image_token_id": token["image_pad"],
        "video_token_id": token["video_pad"],
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "vocab_size": tokenizer.get_vocab_size(),
        "torch_dtype": "float32",
        "vision_config": {
            "depth": 4,
            "hidden_act": "silu",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": 128,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
    }


PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 401408,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def main():
    tokenizer = build_tokenizer()
    config = build_config(tokenizer)
    tokenizer.save(str(HERE / "tokenizer.json"))
    end, start = config["eos_token_id"], config["bos_token_id"]
    generation = {"eos_token_id": [end, start], "pad_token_id": start}
    files = {"config.json": config, "preprocessor_config.json": PREPROCESSOR, "generation_config.json": generation}
    for name, content in files.items():
        (HERE / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{config['vocab_size']} tokens")


if __name__ == "__main__":
    main()

"""Two tiny models of the Qwen3-VL family, one with DeepStack and one without, otherwise the same. (DeepStack's mergers are
a third more weights.) They are for one question (the suite `deepstack` of experiments/): does DeepStack, a second road for
what an image shows, cost Image-LoRA what it gains? They are not in the repository; both are made in 74 minutes, side by
side on two cores:

    python tiny/deepstack.py                        writes runs/deepstack/with-start and without-start
    python train.py --model runs/deepstack/with-start --out runs/deepstack/with PRETRAINING
    python train.py --model runs/deepstack/without-start --out runs/deepstack/without PRETRAINING

The first command prints the others in full. A start has the tiny model's weights wherever the family has a tensor of the same name
and shape (token embeddings, the decoder's projections, norms and MLPs, the encoder's attention), so that pretraining is
short. The rest is random.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from backbones.qwen3_vl import Config
from files import read_json
from model import VLM

FOLDER = Path("runs/deepstack")
BLOCKS = {"with": [0, 1, 2], "without": []}  # of the encoder, whose features go to the decoder's layers 0, 1, 2
PRETRAINING = (
    "--data scenes-pretraining --method full --no-base --dtype float32 --batch 32 --accumulate 2 --steps 2400 --lr 1e-3"
    " --limit 100000 --eval-every 0 --eval-limit 700 --warmup 0.03 --save-every 100"
)
INSIDE = [  # what a Qwen3-VL configuration has under text_config
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
]


def configuration(tiny, blocks):
    """config.json of a Qwen3-VL with the sizes of the tiny model's, and DeepStack features from these encoder blocks."""
    outside = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    sizes = ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size")
    vision = {name: tiny["vision_config"][name] for name in (*sizes, "temporal_patch_size", "spatial_merge_size")}
    vision |= {"in_channels": 3, "hidden_act": "gelu_pytorch_tanh", "num_position_embeddings": 14 * 14}
    text = {name: tiny[name] for name in INSIDE} | {"head_dim": 16, "attention_bias": False}
    text["rope_scaling"] = {"mrope_interleaved": True, "mrope_section": [2, 3, 3], "rope_type": "default"}
    return {name: tiny[name] for name in outside} | {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": vision | {"deepstack_visual_indexes": blocks},
    }


def main():
    tiny = VLM.from_pretrained(HERE).state_dict()
    for name, blocks in BLOCKS.items():
        vlm = VLM.from_scratch(Config.from_dict(configuration(read_json(HERE / "config.json"), blocks)))
        kept = {n: t for n, t in vlm.state_dict().items() if n in tiny and tiny[n].shape == t.shape}
        vlm.load_state_dict({n: tiny[n] for n in kept}, strict=False)
        start = FOLDER / f"{name}-start"
        vlm.save(start)
        shutil.copyfile(HERE / "tokenizer.json", start / "tokenizer.json")
        preprocessor = read_json(HERE / "preprocessor_config.json") | {
            "image_processor_type": "Qwen2VLImageProcessorFast"
        }
        preprocessor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "Qwen3VLProcessor"}
        (start / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
        total, same = (sum(t.numel() for t in part.values()) for part in (vlm.state_dict(), kept))
        print(f"{start}: {total:,} parameters, {same:,} of them the tiny model's")
        print(f"    python train.py --model {start} --out {FOLDER / name} {PRETRAINING}")


if __name__ == "__main__":
    main()

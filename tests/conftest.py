"""What the tests share: one thread, a small random checkpoint in the hub's format, pictures, the shared real data."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from attacks import count  # noqa: F401 (a fixture)

from backbones.qwen2_5_vl import Config
from data import Example, Processor
from model import VLM

SHARED = Path(os.environ.get("IMAGELORA_TEST_DATA", ROOT / "../shared/data"))
torch.set_num_threads(int(os.environ.get("IMAGELORA_TEST_THREADS", "1")))  # one, unless a run asks for more

SMALL = {  # 3 layers x 2 value heads; every part of the architecture at least once
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "rope_theta": 10000.0,
}
SMALL_VISION = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
REAL_PATCHES = {"patch_size": 14, "spatial_patch_size": 14, "spatial_merge_size": 2, "window_size": 112}
REAL_PREPROCESSOR = {"patch_size": 14, "merge_size": 2}  # the tiny model has other ones


def small_config(base=ROOT / "tiny/config.json", tied=False):
    """The parsed config.json of a small model with the tokens of `base`."""
    raw = json.loads(Path(base).read_text()) | SMALL | {"tie_word_embeddings": tied}
    raw["vision_config"] = raw["vision_config"] | SMALL_VISION | REAL_PATCHES | {"fullatt_block_indexes": [1]}
    return raw


def write_checkpoint(folder, seed=0, tied=False, source=ROOT / "tiny", raw=None):
    """A checkpoint with random weights, biases and norms included, and the tokenizer of `source`."""
    vlm = VLM.from_scratch(Config.from_dict(raw or small_config(source / "config.json", tied)), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for p in vlm.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    vlm.save(folder)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    preprocessor = json.loads((source / "preprocessor_config.json").read_text()) | REAL_PREPROCESSOR
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def picture(width, height, seed=0):
    """A picture of coarse random colours."""
    cells = Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(8 * 8 * 3))
    return cells.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("small"))


@pytest.fixture
def vlm(checkpoint):
    return VLM.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def processor(checkpoint):
    return Processor.from_pretrained(checkpoint)


@pytest.fixture
def mixed(processor):
    """Rows with one image, without, with two; padded."""
    return processor(
        [
            Example([picture(90, 60)], "Where is the ring?", "[1, 2, 3, 4]"),
            Example([], "How many apples are left?", "12"),
            Example([picture(60, 60, 1), picture(60, 90, 2)], "Which?", "the left one"),
        ]
    )


@pytest.fixture(scope="session")
def finished(checkpoint, tmp_path_factory):
    """(folder, report) of one short run of train.py."""
    from short_run import run

    out = tmp_path_factory.mktemp("run")
    return out, run(checkpoint, out)


@pytest.fixture(scope="session")
def shared():
    """The folder of real photographs, annotations and vocabulary."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED} (set IMAGELORA_TEST_DATA)")
    return SHARED


def randomised(adapter, seed=0):
    """The adapter with random parameters: as if trained."""
    generator = torch.Generator().manual_seed(seed)
    for p in adapter.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    return adapter

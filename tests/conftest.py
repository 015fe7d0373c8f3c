"""What the tests share: one thread, a small random checkpoint in the hub's format, pictures, the shared real data."""

import json
import os
import random
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data import Example, Processor
from model import VLM
from parts.backbones import FAMILIES

SHARED = Path(os.environ.get("IMAGELORA_TEST_DATA", ROOT / "../shared/data"))
torch.set_num_threads(int(os.environ.get("IMAGELORA_TEST_THREADS", "1")))  # one, unless a run asks for more
by_hand = pytest.mark.skipif(os.environ.get("IMAGELORA_SLOW") != "1", reason="set IMAGELORA_SLOW=1; CI does")
DEVICE = torch.device(os.environ.get("IMAGELORA_TEST_DEVICE", "cpu"))  # of tests/test_gpu.py; cuda: runs may use it too


def pytest_configure():
    if DEVICE.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same tests on every machine


# 3 layers x 2 value heads, every part of the architecture at least once; the heads of the small Qwen3-VL together are
# wider than the model (4 x 24 is not 64), and it has a table of 6 x 6 positions and two features.
SMALL = json.loads((ROOT / "tests/small.json").read_text())


def small_config(family="qwen2_5_vl", base=ROOT / "parts/tiny/config.json", tied=False):
    """The parsed config.json of a small model of a family, with the tokens of `base`."""
    base = json.loads(Path(base).read_text())
    tokens = {name: base[name] for name in SMALL["tokens"]} | {"tie_word_embeddings": tied}
    small = SMALL[family] | tokens
    return small | {"text_config": small["text_config"] | tokens} if "text_config" in small else small


SMALL_CONFIGS = {family: partial(small_config, family) for family in ("qwen2_5_vl", "qwen3_vl")}


def write_checkpoint(folder, seed=0, tied=False, source=ROOT / "parts/tiny", raw=None, family="qwen2_5_vl"):
    """A checkpoint with random weights, biases and norms included, and the tokenizer of `source`."""
    raw = raw or small_config(family, source / "config.json", tied)
    vlm = VLM(FAMILIES[raw["model_type"]].Config.from_dict(raw))
    weights, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    for name, p in vlm.named_parameters():
        p.data.fill_(not name.endswith("bias"))
        if p.dim() > 1:
            p.data.normal_(std=p[0].numel() ** -0.5, generator=weights)
        p.data += 0.1 * torch.randn(p.shape, generator=noise)
    vlm.save(folder)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    preprocessor = SMALL[f"{raw['model_type']} preprocessor"]
    if raw["model_type"] == "qwen2_5_vl":
        preprocessor = json.loads((source / "preprocessor_config.json").read_text()) | preprocessor
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def picture(width, height, seed=0):
    """A picture of coarse random colours."""
    cells = Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(8 * 8 * 3))
    return cells.resize((width, height), Image.Resampling.BICUBIC)


def pytest_generate_tests(metafunc):
    """A module that has FAMILIES runs each of its tests that uses a checkpoint once for each family in it."""
    families = getattr(metafunc.module, "FAMILIES", None)
    if families and "checkpoint" in metafunc.fixturenames:
        metafunc.parametrize("checkpoint", families, indirect=True)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """{family: the folder of its small checkpoint}."""
    return {name: write_checkpoint(tmp_path_factory.mktemp(name), family=name) for name in SMALL_CONFIGS}


@pytest.fixture(scope="session")
def checkpoint(request, checkpoints):
    return checkpoints[getattr(request, "param", "qwen2_5_vl")]


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
def finished(checkpoints, tmp_path_factory):
    """(folder, report) of one short run of train.py."""
    from short_run import run

    out = tmp_path_factory.mktemp("run")
    return out, run(checkpoints["qwen2_5_vl"], out)


@pytest.fixture(scope="session")
def shared():
    """The folder of real photographs, annotations and vocabulary."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED} (set IMAGELORA_TEST_DATA)")
    return SHARED


def randomised(adapter, seed=0, size=1):
    """The adapter with random parameters: as if trained."""
    generator = torch.Generator().manual_seed(seed)
    for p in adapter.parameters():
        p.data = size * torch.randn(p.shape, generator=generator)
    return adapter

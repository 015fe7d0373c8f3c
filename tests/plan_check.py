"""The plan against the memory that a training takes: `python tests/plan_check.py`, by hand, on Linux, some minutes.

For each case a process of its own builds a model of random weights and makes two steps on a batch of the planned shapes, on
the CPU in float32. Measured is by how much the process's memory rises above its level before the model is built, when all
modules are imported and every kernel was used once; planned is what `--plan` prints as "together". Every
tensor has pages of its own, which the system gets back when the tensor is freed: so the memory shows whether the plan knows
all tensors. One case has the usual settings of glibc's malloc, which keeps freed pieces of less than 32 MiB. The report is
results/plan-check.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

warnings.filterwarnings("ignore", "Failed to initialize NumPy")

import torch
from conftest import ROOT, small_config
from timing import peak_above

import train
from harness.planning import plan
from harness.shapes import ANSWER, BEFORE, batch_of
from imagelora import METHODS
from model import VLM
from parts.backbones import FAMILIES
from parts.backbones.layers import compute_twice

SIZES = {  # of the decoder and, half as wide, of the encoder
    "width 512, 8 layers": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8},
    "width 1024, 4 layers": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4},
}
FLAGS = ["--batch=4", "--max-pixels=200704", "--device=cpu", "--no-share-images"]
OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
CASES = {  # flags, environment
    "image-lora": ([], OWN_PAGES),
    "image-lora, usual malloc": ([], {}),
    "image-lora, checkpointing": (["--checkpointing"], OWN_PAGES),
    "lora": (["--method=lora"], OWN_PAGES),
    "full": (["--method=full"], OWN_PAGES),
}


def configuration(size):
    raw = small_config() | SIZES[size] | {"num_attention_heads": 8, "num_key_value_heads": 4}
    section = raw["hidden_size"] // 8 // 2
    raw["rope_scaling"] = {"type": "mrope", "mrope_section": [section - 2 * (section // 3), *[section // 3] * 2]}
    encoder = {"hidden_size": raw["hidden_size"] // 2, "intermediate_size": raw["hidden_size"], "num_heads": 8}
    raw["vision_config"] |= encoder | {"out_hidden_size": raw["hidden_size"]}
    return raw


def with_numbers(batch, config):
    """A batch of the same shapes whose tokens are at their places."""
    B, T = batch.input_ids.shape
    N, questions = len(batch.visual_index) // B, len(batch.answer_ids) // B // ANSWER
    flat = torch.arange(B * T).view(B, T)
    visual = flat[:, BEFORE : BEFORE + N].flatten()
    ids = torch.randint(10, config.vocab, (B, T))
    answers = flat[:, T - questions * ANSWER - 1 : T - 1].flatten()
    return replace(
        batch,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.arange(T).expand(3, B, T),
        segments=torch.zeros_like(ids),
        visual_index=visual,
        visual_source=torch.arange(len(visual)),
        answer_index=answers,
        answer_ids=torch.randint(10, config.vocab, (len(answers),)),
        patches=torch.randn(batch.patches.shape),
    )


def two_steps(config, args, shape):
    """A model, what learns, and two steps, as train.py makes them."""
    vlm = VLM.from_scratch(config)
    if args.checkpointing:
        compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
    even = torch.ones(config.layers, config.value_heads)
    heads, _ = train.choose_heads(config, args.selection, args.heads, args.tau, args.seed, lambda _: even)
    _, parameters = train.build_method(vlm, args.method, vars(args) | {"heads": heads}, 0)
    optimizer = torch.optim.AdamW(parameters)
    batch = with_numbers(batch_of(config, *shape), config)
    for _ in range(2):
        vlm.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def one_case(folder, size, flags):
    """{"measured", "planned"}, bytes."""
    torch.set_num_threads(1)
    args = train.arguments(["--plan", "--model", folder, *FLAGS, *flags])
    found = plan(args, VLM, METHODS, train.choose_heads)
    (line,) = found["batches"]
    small, raw = small_config(), configuration(size)
    two_steps(FAMILIES["qwen2_5_vl"].Config.from_dict(small), args, (2, 1, 8))
    shape = line["rows"], line["questions"], found["visual"]
    rise = peak_above(lambda: two_steps(FAMILIES["qwen2_5_vl"].Config.from_dict(raw), args, shape), torch.device("cpu"))
    return {"planned": line["together"], "measured": rise, "weights": found["bytes"]}


def table_line(row):
    """A line of the table in docs/speed.md, MiB."""
    sizes = [f"{row[name] / 2**20:,.0f}" for name in ("weights", "planned", "measured")]
    return f"| {row['model']} | {row['method']} | {' | '.join(sizes)} | {row['planned'] / row['measured']:.3f} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", nargs=3, help="for its own processes: folder, size, name")
    args = parser.parse_args()
    if args.case:
        folder, size, name = args.case
        print(json.dumps(one_case(folder, size, CASES[name][0])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            (Path(folder) / size).mkdir()
            (Path(folder) / size / "config.json").write_text(json.dumps(configuration(size)))
            for name, (_, settings) in CASES.items():
                command = [sys.executable, __file__, "--case", str(Path(folder) / size), size, name]
                env = os.environ | settings
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
                rows.append({"model": size, "method": name} | json.loads(done.stdout.splitlines()[-1]))
                print(table_line(rows[-1]), flush=True)
    where = {"torch": torch.__version__, "machine": platform.machine(), "command": "python tests/plan_check.py"}
    (ROOT / "experiments/results/plan-check.json").write_text(json.dumps({"checks": rows} | where, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The benchmarks, tried on the CPU on a tiny model: that they compare the same things, and work on the day there is a GPU."""

import json
import math
import sys

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (tests/requirements.txt)")
pytest.importorskip("peft", reason="peft is not installed (tests/requirements.txt)")
from experiments import bench, bench_gpu, bench_sides

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")


def test_both_sides_have_the_same_logits_on_several_images_with_several_questions():
    vlm, processor, theirs = bench_sides.random_models(bench_sides.raw_config("tiny"), torch.device("cpu"), torch.float32)
    examples = bench_gpu.varying_rows("tiny", 9, 2)
    batch = processor(examples)
    with torch.no_grad():
        logits = theirs(**bench_sides.transformers_inputs(batch, examples, vlm.config.image_token)).logits
        difference = (vlm(batch) - logits)[batch.attention_mask.bool()].abs().max()
    assert len(batch.grids) == 3 and len(examples) == 6 and difference <= 1e-4


def test_every_suite_compares_all_its_sides_and_says_how_to_make_it_again(tmp_path):
    bench.main([*bench.SUITES, "--tiny", f"--out={tmp_path}"])
    for suite in bench.SUITES:
        report = json.loads((tmp_path / f"bench-{suite}.json").read_text())
        ratios = [value for ratio in report["ratios"].values() for value in ratio.values()]
        assert report["command"].startswith("python -m experiments bench steps") and "commit" in report and ratios
        assert all(math.isfinite(value) and value > 0 for value in ratios)


def test_the_parts_for_a_gpu_run_and_count_a_step_as_4_P_N(tmp_path):
    file = tmp_path / "report.json"
    file.write_text("{}")
    for part in ("numbers", "3b"):
        bench_gpu.run_part(part, "tiny", "cpu", file)
    report = json.loads(file.read_text())
    assert not any("failed" in line for part in report.values() for line in part)
    assert report["numbers"][0]["error of ours"] <= 1.2 * report["numbers"][0]["of transformers"]
    step = report["3b"][1]["image-lora"]
    P = 6 * (128 * 128 * 2 + 128 * 64 * 2 + 128 + 64 * 2 + 3 * 128 * 352 + 2 * 128)  # q and o, k and v, biases, MLP, norms
    assert step["share"] == pytest.approx(4 * P * step["tokens/s"] / (1e12 * report["3b"][0]["TFLOP/s"]))


def test_a_part_that_fails_or_takes_too_long_is_written_down_and_the_next_one_follows(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu, "PARTS", {"no such part": (None, "tiny", 60), "3b": (None, "tiny", 0.1)})
    bench.main(["gpu", "--tiny", f"--out={tmp_path}"])
    report = json.loads((tmp_path / "bench-gpu.json").read_text())
    assert "non-zero exit status 1" in report["no such part"][0]["failed"]
    assert "timed out" in report["3b"][0]["failed"]

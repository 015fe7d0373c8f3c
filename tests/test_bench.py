"""The benchmark of a GPU, tried on the CPU on a tiny model: that it works on the day there is a GPU."""

import math
import sys

import pytest
import torch
from conftest import small_config

pytest.importorskip("transformers", reason="transformers is not installed (tests/requirements.txt)")
pytest.importorskip("peft", reason="peft is not installed (tests/requirements.txt)")
import bench
import bench_gpu


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_the_benchmark_of_a_gpu_measures_every_side():
    device, dtype = torch.device("cpu"), torch.bfloat16
    rate = bench_gpu.matmul_rate(device, dtype, n=64)
    lines = list(bench_gpu.measured("tiny", small_config(), device, dtype, 1, rate, images=[112]))
    assert [(line["visual_tokens"], line["expressions"]) for line in lines] == [(16, 1), (16, 7)]
    for line in lines:
        ours, theirs = line["sides"]["image-lora"], line["sides"][bench_gpu.PEFT]
        assert ours["tokens"] < theirs["tokens"] if line["expressions"] == 7 else ours["tokens"] == theirs["tokens"]
        P = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 64 + 32 * 2 + 3 * 64 * 96 + 2 * 64)  # q and o, k and v, biases, MLP, norms
        assert ours["share"] == pytest.approx(4 * P * ours["tokens"] / (ours["ms"] / 1000) / rate)
        assert {*line["ratios"]} == {*bench_gpu.COLUMNS[-5:]}
        assert all(math.isfinite(ratio["time"]) for ratio in line["ratios"].values())
        assert "does not fit" not in bench_gpu.table_row(line)


def test_both_sides_of_the_benchmark_are_the_same_model():
    vlm, processor, theirs = bench_gpu.models(small_config(), torch.device("cpu"), torch.float32)
    batch = processor(bench.rows(112, 2))
    with torch.no_grad():
        loss = theirs(**bench.transformers_inputs(batch, vlm.config.image_token)).loss
        assert loss.item() == pytest.approx(vlm.loss(batch).item(), abs=1e-4)


def test_a_side_that_does_not_fit_into_the_memory_is_left_out():
    def large():
        raise torch.OutOfMemoryError

    assert bench_gpu.fits(lambda: None) and not bench_gpu.fits(large)
    line = {"size": "3b", "visual_tokens": 4096, "expressions": 7, "sides": {}, "ratios": {}}
    assert bench_gpu.table_row(line).count("does not fit") == 9


def test_without_a_gpu_the_benchmark_of_one_says_so_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.py", "gpu"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    assert said.err == "error: bench.py gpu: torch sees no GPU here; nothing was measured\n"

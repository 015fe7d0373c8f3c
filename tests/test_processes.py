"""Several processes share the rows of a step and end where one does."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, by_hand
from short_run import SMALL_RUN, adapter_of


@by_hand
def test_two_processes_that_share_a_step_end_where_one_does(finished, checkpoint, tmp_path):
    out, report = finished
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "train.py"),
    ]
    args = ["--model", str(checkpoint), "--data", "scenes-day", *SMALL_RUN, "--out", str(tmp_path)]
    subprocess.run([*command, *args], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    two = json.loads((tmp_path / "report.json").read_text())
    for name, tensor in adapter_of(out).items():
        assert torch.allclose(tensor, adapter_of(tmp_path)[name], rtol=1e-5, atol=1e-6), name
    same = ("base", "steps", "heads", "trainable_parameters", "text_logit_max_change")
    assert two["processes"] == 2 and all(two[key] == report[key] for key in same)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (out, tmp_path)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)

"""--shard: several processes, each of which holds a part of every layer, end where one process does.

`IMAGELORA_ATTACKS=1 python -m pytest tests/test_sharding.py` runs all of them, as CI does; the ordinary suite starts no
processes here.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, by_hand, write_checkpoint
from short_run import SMALL_RUN, adapter_of

import train
from harness import ending, processes, sharding
from parts.files import InputError

SMALL = ["--data=scenes", "--limit=15", "--steps=3", "--probe-samples=2", "--eval=scenes-day", "--also=sums"]
SMALL += ["--eval-limit=5", "--eval-batch=2", "--eval-every=2", "--max-new-tokens=30"]
RUNS = {  # processes: the flags of their run
    2: ["--model=tiny", "--batch=1", "--accumulate=5"],  # 2 and 3 rows a step; answers that end after some tokens
    3: ["--model=QWEN3", "--batch=1", "--accumulate=2", "--method=lora", "--checkpointing"],  # none, 1 and 1 rows
}
PROGRAM = """
import gc, json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
import model, train
from parts.files import InputError

loaded, passes, calls = [], [], []
load, attention = train.load_model, model.Attention.forward

def load_and_keep(*given):
    loaded.append(load(*given))
    loaded[0][0].model.register_forward_pre_hook(lambda decoder, _: passes.append(decoder.idle))
    return loaded[0]


def killed(*given):
    calls.append(1)
    if len(calls) == int(sys.argv[3]) and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return attention(*given)

train.load_model, model.Attention.forward = load_and_keep, killed
train.main(sys.argv[4:])

vlm = loaded[0][0]
layers = list(vlm.model.layers.parameters())
large = vlm.model.layers[0].mlp.gate_proj.weight.shape  # that of no other tensor
tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter) and t.shape == large]
found = {
    "mine": sum(p.to_local().numel() for p in layers),
    "all": sum(p.numel() for p in layers),
    "passes": len(passes),
    "empty": sum(passes),
    "complete": sum(t.untyped_storage().size() > 0 for t in tensors),
}
try:
    vlm.save(sys.argv[2])
except InputError as error:
    found["save"] = str(error)
print("part " + json.dumps(found), file=sys.stderr)
"""


def start(folder, count, *words):
    """`count` processes of one sharded run of PROGRAM, as torchrun would start them."""
    (folder / "program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    command = [
        sys.executable,
        str(folder / "program.py"),
        str(ROOT),
        str(folder / "saved"),
        *map(str, words),
        "--shard",
    ]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | where | {"OMP_NUM_THREADS": "1"}
    return [subprocess.Popen(command, env=env | {"RANK": str(rank)}, **options) for rank in range(count)]


@pytest.fixture(scope="module", params=[pytest.param(count, marks=by_hand) for count in RUNS])
def ran(request, tmp_path_factory):
    """(folder of one process's run, folder of the sharded one, what each of its processes says at the end)."""
    folder = tmp_path_factory.mktemp("sharded")
    flags = [*SMALL, *RUNS[request.param]]
    if "--model=QWEN3" in flags:
        flags[flags.index("--model=QWEN3")] = f"--model={write_checkpoint(folder / 'qwen3', family='qwen3_vl')}"
    many = start(folder, request.param, 0, *flags, f"--out={folder / 'many'}")
    train.main([*flags, f"--out={folder / 'one'}"])
    said = [process.communicate(timeout=600)[1] for process in many]
    assert [process.returncode for process in many] == [0] * request.param, said
    return folder / "one", folder / "many", [json.loads(re.search(r"part (.*)", text)[1]) for text in said]


def test_a_sharded_run_ends_where_one_process_does(ran):
    one, many, parts = ran
    for name, tensor in adapter_of(one).items():
        torch.testing.assert_close(adapter_of(many)[name], tensor, rtol=1e-5, atol=1e-5)
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, many)]
    for name in ("loss", "norm", "tokens", "visual_tokens"):
        assert [line[name] for line in logs[1]] == pytest.approx([line[name] for line in logs[0]], rel=1e-5)
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, many)]
    same = ("base", "tuned", "curve", "parameters", "trainable_parameters", "heads", "adapter_flops_per_step")
    assert all(reports[1][name] == reports[0][name] for name in same)
    change = [report["text_logit_max_change"] for report in reports]
    assert change[1] == pytest.approx(change[0], rel=1e-5) and reports[1]["processes"] == len(parts)


def test_a_sharded_model_gives_the_same_answers_however_long_each_is(ran):
    one, many, parts = ran
    assert (many / "predictions.jsonl").read_text() == (one / "predictions.jsonl").read_text()
    assert len({part["passes"] for part in parts}) == 1 and len({part["empty"] for part in parts}) > 1


def test_a_sharded_model_gives_the_same_probe_scores(ran):
    one, many, parts = ran
    if len(parts) == 2:  # the other run has no probe
        scores = [json.loads((folder / "heads.json").read_text())["scores"] for folder in (one, many)]
        torch.testing.assert_close(torch.tensor(scores[1]), torch.tensor(scores[0]), rtol=1e-5, atol=0.0)


def test_each_process_holds_its_part_of_the_layers_and_no_complete_weight(ran):
    *_, parts = ran
    assert sum(part["mine"] for part in parts) == parts[0]["all"]
    assert all(part["mine"] < 1.1 * part["all"] / len(parts) for part in parts)  # 64 rows are 22 + 22 + 20
    assert [part["complete"] for part in parts] == [0] * len(parts)


def test_a_sharded_model_is_not_saved(ran):
    *_, parts = ran
    assert all("a sharded model is not saved; load it without --shard" in part["save"] for part in parts)


@by_hand
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_process_that_is_killed_within_a_pass_ends_the_others_with_a_line(checkpoint, tmp_path):
    flags = ["--model", checkpoint, "--data=scenes-day", *SMALL_RUN, "--out", tmp_path / "run"]
    two = start(tmp_path, 2, 41, *flags)
    said = [process.communicate(timeout=600)[1] for process in two]
    assert [process.returncode for process in two] == [2, -signal.SIGKILL]
    assert "Traceback" not in said[0]
    (line,) = [line for line in re.split(r"[\r\n]", said[0]) if line.startswith(("error: ", "stopped; "))]
    assert line.startswith("error: another process of this run has ended or does not answer: ")


@pytest.mark.parametrize(
    ("world", "flags", "said"),
    [
        (1, [], "start one for each card: torchrun --nproc-per-node=4 train.py --shard ..."),
        (2, ["--method=full"], "--method full trains the layers, --shard can only read them"),
        (2, ["--selection=weight-norm"], "--selection weight-norm reads complete layers"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_one_line(monkeypatch, tmp_path, capsys, world, flags, said):
    monkeypatch.setattr(sharding, "WORLD", world)
    with pytest.raises(SystemExit) as end:
        train.main(["--shard", *flags, "--out", str(tmp_path / "run")])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and said in lines[0] and not (tmp_path / "run").exists()


def test_a_run_of_several_processes_is_not_resumed_by_one():
    with pytest.raises(InputError, match="there is only this process"):
        sharding.load_sharded(None, torch.float32, torch.device("cpu"))


def test_what_the_network_says_in_the_middle_of_a_layer_is_one_line(monkeypatch):
    error = RuntimeError("[/third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert ending.explained(error) is None  # of one process: a mistake of the program
    monkeypatch.setattr(ending, "WORLD", 2)
    assert ending.explained(error) == processes.gone(error)

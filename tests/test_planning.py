"""--plan: what it counts without numbers is what a real step takes; what it says; what it does not go with."""

import json
import shutil
from statistics import median

import plan_check
import pytest
import torch
from conftest import ROOT, by_hand, picture, small_config, write_checkpoint
from short_run import run, stopped
from torch.utils.flop_counter import FlopCounterMode

import train
from data import Example, Processor, load
from harness import planning, shapes
from imagelora import METHODS, ImageLoRA, LoRA
from model import VLM
from parts.backbones import FAMILIES, nf4
from parts.backbones import checkpoint as checkpoints
from parts.backbones.layers import compute_twice

HEADS = {0: [1], 2: [0, 1]}
SETTINGS = {
    "image-lora": {"heads": HEADS, "rank": 8, "alpha": 16, "gamma": 0.01},
    "lora": {"targets": "qkvo", "rank": 8, "alpha": 16},
}


FAMILY = ["qwen2_5_vl", pytest.param("qwen3_vl", marks=by_hand)]


@pytest.fixture(scope="module", params=FAMILY)
def checkpoint(request, tmp_path_factory):
    """Of each family: every test here holds for both."""
    return write_checkpoint(tmp_path_factory.mktemp("small"), family=request.param)


@pytest.fixture(scope="module")
def processor(checkpoint):
    return Processor.from_pretrained(checkpoint)


@pytest.fixture
def shared_row(processor):
    shown = [picture(200, 200)]
    questions = [Example(shown, f"Where is ring {i}?", "[1, 2, 3, 4]") for i in range(4)]
    return processor(questions, share_images=True)


def real_model(checkpoint, method, dtype=torch.float32, quantize=None, checkpointing=False):
    vlm = VLM.from_pretrained(checkpoint, dtype, quantize=quantize)
    if checkpointing:
        compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
    return vlm, METHODS[method](vlm.config, **SETTINGS[method]).attach(vlm)


def kept_for_real(vlm, adapter, batch):
    """Bytes of the storages that autograd is given to keep, the weights' own left out."""
    own = {
        t.untyped_storage().data_ptr() for module in (vlm, adapter) for t in [*module.parameters(), *module.buffers()]
    }
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = vlm.loss(batch)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def planned(vlm, method, batch, dtype=torch.float32, quantize=None, checkpointing=False):
    ours = shapes.on_meta(VLM, vlm.config, dtype, quantize, checkpointing, "cpu")
    shapes.adapted(ours, METHODS[method], SETTINGS[method])
    return shapes.step_memory(ours, batch.to("meta"))


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("rows", ["mixed", "shared_row"])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_the_plan_knows_what_autograd_keeps(checkpoint, request, method, rows, quantize):
    batch = request.getfixturevalue(rows)
    vlm, adapter = real_model(checkpoint, method, quantize=quantize)
    kept, most = planned(vlm, method, batch, quantize=quantize)
    assert kept == pytest.approx(kept_for_real(vlm, adapter, batch), rel=0.005) and kept < most < 2 * kept


@pytest.mark.parametrize(
    "how",
    [{}, {"checkpointing": True}, {"quantize": "nf4"}, {"dtype": torch.bfloat16}],
    ids=lambda how: " ".join(how) or "float32",
)
def test_the_plan_knows_the_most_that_is_there_at_any_time(checkpoint, mixed, how):
    """The same counting of a real step, whose tensors have numbers and whose attention is torch's own."""
    vlm, _ = real_model(checkpoint, "image-lora", **how)
    with shapes.Memory() as memory:
        vlm.loss(mixed).backward()
    assert planned(vlm, "image-lora", mixed, **how)[1] == pytest.approx(memory.most, rel=0.02)


def test_with_checkpointing_less_is_kept(checkpoint, shared_row):
    vlm = VLM.from_pretrained(checkpoint)
    usual, twice = (planned(vlm, "image-lora", shared_row, checkpointing=on) for on in (False, True))
    assert twice[0] < 0.5 * usual[0] and twice[1] < usual[1]


def test_the_attention_of_a_gpu_is_planned_without_its_weights(checkpoint, shared_row):
    """With a mask it gets copies of the KV heads; it never holds [B, H, T, S]."""
    vlm = VLM.from_pretrained(checkpoint)
    on_cpu, ours = planned(vlm, "lora", shared_row), shapes.on_meta(VLM, vlm.config, torch.float32)
    shapes.adapted(ours, LoRA, SETTINGS["lora"])
    kept, _ = shapes.step_memory(ours, shared_row.to("meta"))
    c, (B, T) = vlm.config, shared_row.input_ids.shape
    copies = 2 * c.layers * B * T * (c.heads - c.value_heads) * c.head_size * 4
    assert kept == on_cpu[0] + copies


def test_outside_a_plan_attention_is_torchs_own(checkpoint, mixed):
    vlm = VLM.from_pretrained(checkpoint)
    before = vlm(mixed)
    planned(vlm, "image-lora", mixed)
    assert torch.equal(vlm(mixed), before)


@pytest.mark.parametrize("questions", [1, 3])
def test_a_planned_batch_has_the_shapes_of_a_real_one(checkpoint, questions):
    """But for the number of text tokens, which depends on the question."""
    processor = Processor.from_pretrained(checkpoint)
    side = processor.factor
    images = [[picture(8 * side, 4 * side, i)] for i in range(2)]
    asked = [Example(images[i], "Where?", "here", source=str(k)) for i in range(2) for k in range(questions)]
    real = processor(asked, share_images=True)
    batch = shapes.batch_of(processor.config, 2, questions, 33)
    assert batch.grids.tolist() == real.grids.tolist() and batch.patches.shape == real.patches.shape
    assert batch.visual_index.shape == real.visual_index.shape == real.visual_source.shape
    assert batch.input_ids.shape == (2, shapes.BEFORE + 32 + questions * shapes.QUESTION)
    for name, tensor in vars(batch).items():
        if isinstance(tensor, torch.Tensor):
            assert tensor.dtype == getattr(real, name).dtype or name == "visual_mask"
            assert tensor.dim() == getattr(real, name).dim()


def test_the_assumed_lengths_are_those_of_refcoco(shared, tmp_path):
    for name in ("preprocessor_config.json", "tokenizer.json"):
        shutil.copyfile(shared / "qwen2.5-vl" / name, tmp_path / name)
    shutil.copyfile(shared / "qwen2.5-vl/config_3b.json", tmp_path / "config.json")
    processor, found = Processor.from_pretrained(tmp_path), []
    examples = [e for split in ("val", "testA") for e in load("refcoco", shared / "refcoco-mini", split)]
    for example in examples:
        ids, answer_start, prefix = processor.tokens(example)
        visual = processor.visual_tokens(example.visuals[0])
        found.append((prefix - visual, len(ids) - prefix, len(ids) - answer_start))
    assert len(found) > 20
    for assumed, real in zip((shapes.BEFORE, shapes.QUESTION, shapes.ANSWER), zip(*found)):
        assert median(real) == pytest.approx(assumed, abs=2)


@by_hand
@pytest.mark.parametrize(("full", "checkpointing"), [(False, False), (False, True), (True, False)])
def test_flops_are_those_that_torch_counts(full, checkpointing):
    """On a deeper model, where the last MLP, of which little is computed, weighs less. Attention is in neither number."""
    config = FAMILIES["qwen2_5_vl"].Config.from_dict(small_config() | {"num_hidden_layers": 16})
    vlm = shapes.on_meta(VLM, config, torch.float32, None, checkpointing)
    adapter = None
    if full:
        vlm.requires_grad_(True)
    else:
        heads = {"heads": {layer: [0] for layer in range(16)}}
        adapter = shapes.adapted(vlm, ImageLoRA, SETTINGS["image-lora"] | heads)
    batch = shapes.batch_of(config, 2, 1, 32)
    with FlopCounterMode(display=False) as counter:
        shapes.step_memory(vlm, batch)
    counted = counter.get_total_flops() - (adapter.flops(batch.input_ids.numel(), 64) if adapter else 0)
    assert planning.step_flops(vlm, batch, full, checkpointing) == pytest.approx(counted, rel=0.1)


# -- the command


@pytest.fixture
def only_config(checkpoint, tmp_path):
    """A folder with a config.json and nothing else."""
    shutil.copyfile(checkpoint / "config.json", tmp_path / "config.json")
    return tmp_path


def said(capsys, *flags):
    train.main(["--plan", *map(str, flags)])
    return capsys.readouterr().out


def plan_of(*flags):
    args = train.arguments(["--plan", *map(str, flags)])
    return planning.plan(args, VLM, METHODS, train.choose_heads)


def test_config_json_is_enough(only_config, checkpoint, capsys):
    text = said(capsys, "--model", only_config, "--batch=4", "--device=cpu")
    vlm = VLM.from_pretrained(checkpoint)
    assert text.startswith(f"plan     {only_config} in float32 on cpu: computed from shapes, not measured")
    assert f"{sum(p.numel() for p in vlm.visual.parameters()):,} weights" in text
    assert f"{sum(p.numel() for p in vlm.model.layers.parameters()):,} weights" in text
    assert "1 question about an image: 4 rows of" in text and "4 questions about an image: 1 row of" in text
    assert list(only_config.iterdir()) == [only_config / "config.json"]


def test_what_a_plan_says_adds_up(only_config, checkpoint):
    found, small = plan_of("--model", only_config, "--batch=4"), plan_of("--model", only_config, "--quantize=nf4")
    vlm = VLM.from_pretrained(checkpoint)
    assert sum(count for count, _ in found["parts"].values()) == nf4.size(vlm)[0] - len(vlm.model.norm.weight)
    assert found["bytes"] == nf4.size(vlm)[1]
    assert small["bytes"] == nf4.size(VLM.from_pretrained(checkpoint, quantize="nf4"))[1]
    for batch in found["batches"]:
        images = batch["visual_tokens"] * 4 * vlm.config.vision.patch_values * 4
        assert batch["together"] == found["bytes"] + found["learnt_bytes"] + batch["most"] + images
    json.dumps(found)


def test_flags_change_the_plan_as_they_change_the_run(only_config):
    usual = ["--model", only_config, "--batch=4", "--no-share-images", "--device=cuda", "--dtype=float32"]
    (reference,) = plan_of(*usual)["batches"]
    assert reference["rows"] == 4
    for flag, name, factor in (
        ("--batch=8", "kept", 2),
        ("--batch=8", "flops", 2),
        ("--accumulate=3", "adapter_flops", 3),
        ("--max-pixels=100352", "visual_tokens", 0.25),
        ("--dtype=bfloat16", "kept", 0.65),
        ("--checkpointing", "flops", 1.5),
    ):
        (other,) = plan_of(*usual, flag)["batches"]
        assert other[name] == pytest.approx(factor * reference[name], rel=0.2 if factor % 1 else 0.02), flag


def test_as_many_parameters_are_planned_as_are_trained(checkpoint, tmp_path):
    for i, flags in enumerate((["--selection=random", "--heads=3"], ["--method=lora", "--targets=qv"])):
        report = run(checkpoint, tmp_path / str(i), *flags)
        found = plan_of("--model", checkpoint, "--data=scenes-day", "--batch=4", *flags)
        assert found["learnt"] == report["trainable_parameters"]
        assert found["learnt_bytes"] == 12 * report["trainable_parameters"]
    full = plan_of("--model", checkpoint, "--method=full", "--dtype=float32", "--batch=1")
    assert full["learnt"] == report["parameters"]


def test_where_a_probe_will_choose_the_lowest_layer_is_among_the_planned_ones(checkpoint):
    config = VLM.from_pretrained(checkpoint).config
    for budget in range(1, 7):
        heads, _ = train.choose_heads(config, "probe", budget, 0.5, 0, lambda _: torch.ones(3, 2))
        assert 0 in heads and sum(map(len, heads.values())) == budget


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--eval-only"], "leave out --eval-only"),
        (["--find", "a ring"], "leave out --find"),
        (["--probe-only"], "leave out --probe-only"),
        (["--resume", "runs/x"], "leave out --resume"),
        (["--score", __file__], "leave out --score"),
        (["--show", "scenes"], "leave out --show"),
        (["--method", "none"], "--method none trains nothing"),
        (["--tokens", "all"], "--plan does not know the ablations"),
        (["--device", "gpu"], "--device gpu; it can be cpu or cuda"),
        (["--method", "full", "--dtype", "bfloat16"], "add --dtype float32"),
        (["--heads", "1000"], "choose 1 to"),
        (["--max-pixels", "100000000"], "lower --max-pixels"),
        (["--model", "nowhere"], "nowhere: no such checkpoint folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_no_training_is_not_planned(only_config, flags, said, capsys):
    code, line = stopped(capsys, train.main, ["--plan", "--model", str(only_config), *flags])
    assert code == 2 and said in line


def test_of_a_hub_id_only_json_files_are_fetched(only_config, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append(allow_patterns) or only_config
    )
    said(capsys, "--model", "team/small", "--batch=1")
    assert asked == [["*.json"]]
    checkpoints.checkpoint_folder("team/small")
    assert asked[1:] == [["*.json", "*.safetensors"]]


SPEED = (ROOT / "docs/speed.md").read_text(encoding="utf-8")


@by_hand
@pytest.mark.parametrize("flags", [[], ["--quantize=nf4", "--checkpointing"]], ids=str)
def test_the_3b_needs_what_the_docs_say(shared, tmp_path, capsys, flags):
    shutil.copyfile(shared / "qwen2.5-vl/config_3b.json", tmp_path / "config.json")
    lines = said(capsys, "--model", tmp_path, "--batch=8", "--device=cuda", *flags).splitlines()[1:]
    assert "\n".join(lines) in SPEED


def test_the_docs_show_what_was_measured_and_the_plan_was_right():
    """By `python tests/plan_check.py`."""
    rows = json.loads((ROOT / "experiments/results/plan-check.json").read_text())["checks"]
    assert {row["model"] for row in rows} == plan_check.SIZES.keys()
    for row in rows:
        assert plan_check.table_line(row) in SPEED
        if "malloc" not in row["method"]:
            assert row["planned"] == pytest.approx(row["measured"], rel=0.15)

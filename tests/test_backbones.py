"""Checkpoints of both families, their configurations, and the parts that a model is made of."""

import json
from pathlib import Path

import pytest
import torch
from cases import CASES
from conftest import SMALL_CONFIGS, write_checkpoint

from model import VLM
from parts.backbones import FAMILIES as BACKBONES
from parts.backbones.checkpoint import hub_name, our_name, read_config, sample
from parts.files import InputError, read_json, read_safetensors, write_safetensors

FAMILIES = SMALL_CONFIGS  # each test that uses a checkpoint runs for both


def test_the_residual_streams_of_a_bfloat16_model_are_float32(checkpoint, mixed):
    vlm, dtypes = VLM.from_pretrained(checkpoint, torch.bfloat16), set()
    for layer in [*vlm.visual.blocks, *vlm.model.layers]:
        layer.register_forward_hook(lambda module, args, out: dtypes.update({args[0].dtype, out.dtype}))
    assert vlm(mixed).dtype == torch.bfloat16 and dtypes == {torch.float32}


@pytest.mark.parametrize("name", ["qwen2.5-vl 3b", "qwen2.5-vl 7b", "qwen3-vl 2b", "qwen3-vl 4b"])
def test_names_and_shapes_are_those_of_the_hub_checkpoints(shared, name):
    folder, size = name.split()
    raw, listed = (read_json(shared / folder / f"{file}_{size}.json") for file in ("config", "tensor_names"))
    family = raw["model_type"]
    with torch.device("meta"):
        vlm = VLM(BACKBONES[family].Config.from_dict(raw))
    assert {hub_name(name, family): list(p.shape) for name, p in vlm.state_dict().items()} == listed.get("shapes", listed)


def tensors_of(folder):
    """{name as in model.py: tensor} of a checkpoint in one file."""
    return {our_name(name): t for name, t in read_safetensors(folder / "model.safetensors")}


@pytest.mark.parametrize("tied", [False, True])
def test_every_checkpoint_form_gives_the_same_model(tmp_path, processor, tied):
    """As it was saved; old and new names, a tied head and its own. test_reference.py: what transformers saves, in shards."""
    batch = processor(CASES["one image"]())
    vlm = VLM.from_pretrained(write_checkpoint(tmp_path / "first", tied=tied, family=processor.config.family))

    def same():
        again = VLM.from_pretrained(tmp_path)
        return again.fingerprint() == vlm.fingerprint() and torch.equal(again(batch), vlm(batch))

    vlm.save(tmp_path)
    tensors = tensors_of(tmp_path)
    assert same() and ("lm_head.weight" in tensors) == (not tied)
    for family in SMALL_CONFIGS:  # whose names are the older and the newer ones
        named = {hub_name(name, family): t for name, t in tensors.items()}
        write_safetensors(tmp_path / "model.safetensors", named, {})
        assert same()


def test_the_fingerprint_is_the_same_in_every_dtype_and_differs_between_models(tmp_path, checkpoint, vlm):
    assert VLM.from_pretrained(checkpoint, dtype=torch.bfloat16).fingerprint() == vlm.fingerprint()
    other = write_checkpoint(tmp_path, seed=7, family=vlm.config.family)
    assert VLM.from_pretrained(other).fingerprint() != vlm.fingerprint()
    assert sample(torch.ones(1).expand(311_164_928)).tolist() == [1] * 16  # the 3B's embedding table


def test_float32_weights_on_the_cpu_are_the_mapped_file_itself(checkpoint, vlm):
    """No second copy: the weights lie inside the memory map of the file."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [m[0].split("-") for m in maps if m[-1] == str(checkpoint / "model.safetensors")]
    ranges = [(int(start, 16), int(end, 16)) for start, end in mapped]
    assert all(any(start <= p.data_ptr() < end for start, end in ranges) for p in vlm.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.merger.ln_q.weight"), "missing tensor visual.merger.ln_q.weight"),
        (lambda t: t.update({"model.extra": torch.zeros(2)}), "surplus tensor model.extra"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight is \[3\].*asks for \[64\]"),
        (lambda t: t.update({"model.language_model.norm.weight": torch.zeros(64)}), "model.norm.weight occurs twice"),
        (lambda t: t["model.norm.weight"].fill_(torch.nan), "model.norm.weight holds NaN or infinity"),
    ],
)
def test_every_tensor_is_used_exactly_once(tmp_path, change, message):
    tensors = {name: t.clone() for name, t in tensors_of(write_checkpoint(tmp_path)).items()}
    change(tensors)
    write_safetensors(tmp_path / "model.safetensors", tensors, {})
    with pytest.raises(InputError, match=message):
        VLM.from_pretrained(tmp_path)


def test_a_checkpoint_that_lacks_a_file_is_named(tmp_path):
    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors: no such file"):
        VLM.from_pretrained(tmp_path)


def test_a_hub_id_is_downloaded_json_and_safetensors_only(monkeypatch, checkpoint, vlm):
    def snapshot_download(name, allow_patterns):
        assert allow_patterns == ["*.json", "*.safetensors"]
        if name != "team/small":
            raise OSError("404: no such repository\nhints of the hub")
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert VLM.from_pretrained("team/small").fingerprint() == vlm.fingerprint()
    with pytest.raises(InputError, match="^team/other: no such folder, and the hub did not give it: 404: [a-z ]*$"):
        VLM.from_pretrained("team/other")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"model_type": "llama"}, "model_type is 'llama'"),
        ("", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}, "mrope_section"),
        ("text_config", {"head_dim": None}, "not a complete Qwen3-VL configuration .KeyError: 'head_dim'"),
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"rope_scaling": {"mrope_interleaved": False, "mrope_section": [6, 3, 3]}}, "mrope_interleaved"),
        ("vision_config", {"deepstack_visual_indexes": [0, 9]}, "deepstack_visual_indexes"),
        ("vision_config", {"out_hidden_size": 32}, "out_hidden_size"),
    ],
)
def test_a_configuration_that_is_not_computed_here_is_refused(tmp_path, part, change, message):
    raw = SMALL_CONFIGS["qwen3_vl" if part else "qwen2_5_vl"]()
    changed = {k: v for k, v in (raw.get(part, raw) | change).items() if v is not None}
    raw = raw | {part: changed} if part else changed
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=f"config.json: .*{message}"):
        read_config(tmp_path)


def test_end_tokens_come_from_the_generation_config_else_from_the_config(vlm):
    read, raw = vlm.config.from_dict, vlm.config.raw
    assert read(raw, {"eos_token_id": [5, 0]}).end_tokens == (5, 0) and read(raw).end_tokens == (2,)

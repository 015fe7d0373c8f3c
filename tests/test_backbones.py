"""Checkpoints of both families: every form that people have, what is refused by name, fingerprints, chat templates."""

import json
import re
from pathlib import Path

import pytest
import torch
from cases import CASES
from conftest import ROOT, SMALL_CONFIGS, picture, write_checkpoint
from test_tasks_download import web as server

from data import Example, Processor
from imagelora import LoRA, load_adapter
from model import VLM
from parts.backbones import FAMILIES as BACKBONES
from parts.backbones.checkpoint import hub_name, mark, our_name, read_config
from parts.backbones.qwen import DEFAULTS
from parts.files import InputError, read_json, read_safetensors
from parts.files import write_safetensors as write
from parts.tasks.answers import prediction

FAMILIES = SMALL_CONFIGS  # each test that uses a checkpoint runs for both


def test_the_residual_streams_of_a_bfloat16_model_are_float32(checkpoint, mixed):
    vlm, dtypes = VLM.from_pretrained(checkpoint, torch.bfloat16), set()
    for layer in [*vlm.visual.blocks, *vlm.model.layers]:
        layer.register_forward_hook(lambda module, args, out: dtypes.update({args[0].dtype, out.dtype}))
    assert vlm(mixed).dtype == torch.bfloat16 and dtypes == {torch.float32}


def test_time_height_and_width_take_turns_at_the_frequencies(shared):
    """Sections 24, 20, 20: below 60 numbers 1, 4, ... are the height's, 2, 5, ... the width's; the rest are time's."""
    config = BACKBONES["qwen3_vl"].Config.from_dict(read_json(shared / "qwen3-vl/config_4b.json"))
    axis = config.by_axis(torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, 64)).flatten().int().tolist()
    assert axis == [0, 1, 2] * 20 + [0] * 4 and config.rope_sections == (24, 20, 20)


def test_features_are_added_to_the_visual_positions_after_the_first_layers_and_nowhere_else(vlm, mixed):
    _, features = vlm.embed(mixed)
    assert [f.shape for f in features] == [(len(mixed.visual_index), 64)] * len(vlm.config.vision.deepstack)
    entering, leaving = [], []
    for layer in vlm.model.layers:
        layer.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
        layer.register_forward_hook(lambda module, args, out: leaving.append(out))
    vlm(mixed)
    for i, feature in enumerate(features):
        added = entering[i + 1] - leaving[i]
        assert torch.allclose(added[mixed.visual_mask], feature, atol=1e-5)
        assert (added[~mixed.visual_mask] == 0).all()


def test_a_box_of_qwen3_vl_is_learnt_in_thousandths_of_the_sides_whatever_the_model_sees(checkpoints):
    e = Example([picture(224, 112)], "?", (56, 28, 224, 112))
    processor = Processor.from_pretrained(checkpoints["qwen3_vl"], max_pixels=64 * 64)
    made = prediction(e, '{\n"bbox_2d": [250, 250, 1000, 1000]\n}', processor)
    assert processor.answer_text(e) == made["text"]
    assert made["score"] == 1 and made["parsed"] == pytest.approx([56, 28, 224, 112])
    assert prediction(e, "[56, 28, 224, 112]", processor)["score"] == 0  # pixels


@pytest.mark.parametrize("name", ["qwen2.5-vl 3b", "qwen2.5-vl 7b", "qwen3-vl 2b", "qwen3-vl 4b"])
def test_names_and_shapes_are_those_of_the_hub_checkpoints(shared, name):
    folder, size = name.split()
    raw, listed = (read_json(shared / folder / f"{file}_{size}.json") for file in ("config", "tensor_names"))
    family = raw["model_type"]
    with torch.device("meta"):
        vlm = VLM(BACKBONES[family].Config.from_dict(raw))
    shapes = {hub_name(name, family): list(p.shape) for name, p in vlm.state_dict().items()}
    assert shapes == listed.get("shapes", listed)


def tensors_of(folder):
    """{name as in model.py: tensor} of a checkpoint in one file."""
    return {our_name(name): t for name, t in read_safetensors(folder / "model.safetensors")}


@pytest.mark.parametrize("tied", [False, True])
def test_every_checkpoint_form_gives_the_same_model(tmp_path, processor, tied):
    """As it was saved; old, new and DataParallel's names; with a head that is the embedding and the frequencies of older
    files; a configuration without its defaults. test_reference.py: what transformers saves, in shards."""
    batch, family = processor(CASES["one image"]()), processor.config.family
    vlm = VLM.from_pretrained(write_checkpoint(tmp_path / "first", tied=tied, family=family))

    def same():
        again = VLM.from_pretrained(tmp_path)
        return again.fingerprint() == vlm.fingerprint() and torch.equal(again(batch), vlm(batch))

    vlm.save(tmp_path)
    tensors = tensors_of(tmp_path)
    assert same() and ("lm_head.weight" in tensors) == (not tied)
    vlm.requires_grad_(True).loss(processor([Example([], "Why?", "x")])).backward()
    gradient = vlm.model.embed_tokens.weight.grad[processor.special["video_pad"]]  # the row has none: that of a tied head
    assert gradient.any() == tied
    for form in SMALL_CONFIGS:  # whose names are the older and the newer ones
        write(tmp_path / "model.safetensors", {hub_name(name, form): t for name, t in tensors.items()}, {})
        assert same()
    also = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2), "visual.rotary_pos_emb.inv_freq": torch.ones(2)}
    also["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write(tmp_path / "model.safetensors", {f"module.{name}": t for name, t in (also | tensors).items()}, {})
    raw = read_json(tmp_path / "config.json")
    text, vision = DEFAULTS[family].values()
    for part, defaults in ((raw, text), (raw.get("text_config", {}), text), (raw["vision_config"], vision)):
        for key in [key for key in part if key in defaults and part[key] == defaults[key]]:
            del part[key]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert "in_chans" not in raw["vision_config"] and same()


def test_the_fingerprint_sees_every_weight_and_no_dtype_or_spelling(tmp_path, checkpoint, vlm):
    built, before = VLM(vlm.config), vlm.fingerprint()
    built.load_state_dict(vlm.state_dict())
    assert {VLM.from_pretrained(checkpoint, getattr(torch, d)).fingerprint() for d in ("bfloat16", "float16")} == {before}
    vlm.save(tmp_path)
    file = tmp_path / "config.json"
    text = re.sub(r'("rope_theta": \d+)(\.0)?', lambda m: m[1] + ("" if m[2] else ".0"), file.read_text())
    file.write_text(re.sub(r'("max_position_embeddings": )\d+', r"\g<1>99", text))
    assert built.fingerprint() == VLM.from_pretrained(tmp_path).fingerprint() == before
    file.write_text(text.replace('"rope_theta": ', '"rope_theta": 1'))
    assert VLM.from_pretrained(tmp_path).fingerprint() != before

    weight = vlm.model.layers[1].mlp.up_proj.weight.view(-1)
    for change in ([0, 1], [17, 0], [0, 17, len(weight) - 1]):  # these values take turns
        weight[change] = weight[change].roll(1)
        assert vlm.fingerprint() != before
        weight[change] = weight[change].roll(-1)
        assert vlm.fingerprint() == before
    assert mark(weight, part=7) == mark(weight)


def test_an_adapter_with_the_fingerprint_of_before_loads_on_its_base(tmp_path):
    tiny = VLM.from_pretrained(ROOT / "parts/tiny", torch.float16)
    adapter = LoRA(tiny.config).attach(tiny)
    adapter.base = "413d51a27433ebc777ba4dcd2c90ed21"  # as 76fa6e7 has it
    adapter.save(tmp_path / "a.safetensors")
    adapter.detach()
    assert load_adapter(tmp_path / "a.safetensors", tiny).base == tiny.fingerprint() != adapter.base


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["layers.1.v.B", "settings"])
def test_an_adapter_that_is_not_finite_is_refused(tmp_path, vlm, bad, name):
    adapter = LoRA(vlm.config, alpha=bad if name == "settings" else 16).attach(vlm)
    adapter.layers[1]["v"].B.data[0, 0] = 0 if name == "settings" else bad
    adapter.save(tmp_path / "a.safetensors")
    adapter.detach()
    with pytest.raises(InputError, match=r"\((layers.1.v.B holds NaN or infinity|.*'(NaN|Infinity)')\)$"):
        load_adapter(tmp_path / "a.safetensors", vlm)


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
        (lambda t: t.update({"model.extra": torch.zeros(2)}), "surplus tensor model.extra: the model of config.json has"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight is \[3\].*asks for \[64\]"),
        (lambda t: t.update({"model.norm.weight": torch.ones(64).char()}), r"model.norm.weight is .* of torch.int8, .* 16 or 32"),
        (lambda t: t.update({"model.language_model.norm.weight": torch.zeros(64)}), "model.norm.weight occurs twice"),
        (lambda t: t["model.norm.weight"].fill_(torch.nan), "model.norm.weight holds NaN or infinity"),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "lm_head.weight is not the embedding"),
    ],
)
def test_every_tensor_is_used_exactly_once(tmp_path, change, message):
    tensors = {name: t.clone() for name, t in tensors_of(write_checkpoint(tmp_path, tied=True)).items()}
    change(tensors)
    write(tmp_path / "model.safetensors", tensors, {})
    with pytest.raises(InputError, match=message):
        VLM.from_pretrained(tmp_path)


PANIC = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}


def quantized(method):
    return "config.json", {"quantization_config": {"quant_method": method}}, f"quantized by {method}; load the original"


@pytest.mark.parametrize(
    ("name", "added", "message"),
    [
        *map(quantized, ("fp8", "awq", "gptq", "bitsandbytes")),
        ("config.json", {"quantization_config": {"load_in_4bit": True}}, "quantized by .*load_in_4bit.*; load the original"),
        ("config.json", {"quantization_config": ["x"]}, "quantized by .*x"),
        ("config.json", None, "an adapter of peft, not a model"),
        ("preprocessor_config.json", None, "has no preprocessor_config.json; copy it from"),
        ("tokenizer.json", None, "has no tokenizer.json; copy it from"),
        ("model.safetensors", None, "has no model.safetensors; copy it from"),
        ("chat_template.json", {"chat_template": "USER: "}, r"its chat template has no <\|im_start\|>"),
        ("tokenizer.json", PANIC, "not a tokenizer .*charsmap"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_such_checkpoint_is_named_for_what_it_is(tmp_path, name, added, message):
    file = write_checkpoint(tmp_path) / name
    (tmp_path / "adapter_config.json").write_text("{}")  # as training with peft leaves it
    content = read_json(file) | (added or {}) if file.suffix == ".json" and file.exists() else added
    file.write_text(json.dumps(content)) if added else file.unlink()
    with pytest.raises(InputError, match=f"^{tmp_path}.*{message}.*$"):
        assert Processor.from_pretrained(tmp_path) and VLM.from_pretrained(tmp_path)


def test_a_hub_id_is_downloaded_texts_and_safetensors_only(monkeypatch, checkpoint, vlm):
    patterns, given = ["*.json", "*.jinja", "*.txt", "*.safetensors"], {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **flags: given.update(flags) or checkpoint)
    assert VLM.from_pretrained("team/small").fingerprint() == vlm.fingerprint() and given == {"allow_patterns": patterns}


web = server  # the fixture: a local server with faults


@pytest.mark.parametrize("fault", [404, 503, "cut", b"<html>please log in</html>", b'{"sha": ', b"[]", b"{}"])
def test_a_hub_that_gives_anything_else_is_one_line(web, monkeypatch, tmp_path, fault):
    web.files["main"], web.faults["main"] = b'{"sha": "1", "siblings": []}', [fault] * 9
    for name, value in (("ENDPOINT", web.address[:-1]), ("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    with pytest.raises(InputError, match="^team/own: no such folder, and the hub did not give it: .+$"):
        read_config("team/own")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"model_type": "llama"}, "model_type is 'llama'"),
        ("", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}, "mrope_section"),
        ("text_config", {"rope_theta": None}, "not a complete Qwen3-VL configuration .KeyError: 'rope_theta'"),
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"rope_scaling": {"mrope_interleaved": False, "mrope_section": [6, 3, 3]}}, "mrope_interleaved"),
        ("vision_config", {"hidden_act": "relu"}, "vision hidden_act"),
    ],
)
def test_a_configuration_that_is_not_computed_here_is_refused(tmp_path, part, change, message):
    raw = SMALL_CONFIGS["qwen3_vl" if part else "qwen2_5_vl"]()
    raw = raw | {part: raw[part] | change} if part else raw | change
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=f"config.json: .*{message}"):
        read_config(tmp_path)


START, OWN = "{% if add_generation_prompt %}<|im_start|>assistant\\n", "'<|im_start|>system\\n' + content + '<|im_end|>'"
TEMPLATES = [  # the text, its system line, how an answer begins
    (f"{OWN}{START}", "", ""),
    (f"<|im_start|>system\nYou're a robot.<|im_end|>{START}", "You're a robot.", ""),
    (f"{OWN}'<|im_start|>system\\nYou\\'re a robot.<|im_end|>\\n'{START}", "You're a robot.", ""),
    (f"{{% set system_message = 'Be short.' %}}{OWN}{START}", "Be short.", ""),
    (f"'<think>' + thought{START}<think>\\n'", "", "<think>\n"),
    (f"{START}' {{% if not thinking %}}'<think>\\n\\n</think>\\n\\n'", "", ""),
]


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
@pytest.mark.parametrize(("template", "system", "opening"), TEMPLATES)
def test_the_system_line_and_the_opened_thought_of_a_chat_template_are_honoured(tmp_path, file, template, system, opening):
    write_checkpoint(tmp_path)
    (tmp_path / file).write_text(template if "jinja" in file else json.dumps({"chat_template": template}))
    processor = Processor.from_pretrained(tmp_path)
    ids = processor.tokens(Example([], "12", history=(("3", "4"),))).ids
    text = processor.tokenizer.decode(ids, skip_special_tokens=False)
    turns = "<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n12<|im_end|>\n"
    assert text.removesuffix(f"{turns}<|im_start|>assistant\n{opening}") == (
        f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    )


def test_a_saved_model_has_the_small_files_and_the_end_tokens_of_its_source(tmp_path):
    write_checkpoint(tmp_path / "source")
    given = {"tokenizer_config.json": "{}", "chat_template.jinja": f"{OWN}{START}", "vocab.json": "{}", "merges.txt": "ü ä"}
    given["generation_config.json"] = json.dumps({"eos_token_id": [2, 0], "top_k": 1}, indent=2) + "\n"
    for name, text in given.items():
        (tmp_path / "source" / name).write_text(text, encoding="utf-8")
    VLM.from_pretrained(tmp_path / "source").save(tmp_path / "saved")
    assert {name: (tmp_path / "saved" / name).read_text(encoding="utf-8") for name in given} == given
    assert read_config(tmp_path / "saved").end_tokens == (2, 0)

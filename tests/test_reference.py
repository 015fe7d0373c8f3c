"""Held live against transformers, where it is installed: logits, ids, patches, positions, generation, bfloat16."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from cases import CASES
from conftest import DEVICE, ROOT, SMALL_CONFIGS, randomised, write_checkpoint
from PIL import Image

from data import Example, Processor, load
from imagelora import ImageLoRA
from model import VLM
from parts.backbones import FAMILIES
from parts.tasks.images import Visual

transformers = pytest.importorskip("transformers", reason="transformers is not installed (tests/requirements.txt)")
from reference import Reference


@pytest.fixture(scope="module", params=[f"{family} {head}" for family in SMALL_CONFIGS for head in ("untied", "tied")])
def pair(request, tmp_path_factory):
    """(folder of a checkpoint, our model, our processor, transformers')."""
    family, head = request.param.split()
    folder = write_checkpoint(tmp_path_factory.mktemp(family), seed=3, tied=head == "tied", family=family)
    return folder, VLM.from_pretrained(folder), Processor.from_pretrained(folder), Reference(folder)


def both(pair, name):
    """(our batch, transformers' inputs) of a case. A special token typed by a user is text for us only: it is left out."""
    _, _, processor, reference = pair
    examples = [replace(e, prompt=e.prompt.replace("<|im_end|>", "")) for e in CASES[name]()]
    return processor(examples), reference.inputs(examples)


@pytest.mark.parametrize("name", CASES)
def test_ids_patches_positions_and_logits_equal(pair, name):
    _, vlm, _, reference = pair
    batch, inputs = both(pair, name)
    mask, real = inputs["attention_mask"], batch.attention_mask.bool()
    assert torch.equal(batch.attention_mask, mask)
    assert torch.equal(batch.input_ids[real], inputs["input_ids"][real])
    assert torch.equal(batch.visual_mask, inputs["mm_token_type_ids"].bool())
    patches = [inputs[kind] for kind in ("pixel_values", "pixel_values_videos") if kind in inputs]
    if patches:
        grids = [inputs.get(kind) for kind in ("image_grid_thw", "video_grid_thw")]
        assert torch.equal(batch.grids, torch.cat([grid for grid in grids if grid is not None]))
        assert (batch.patches - torch.cat(patches)).abs().max() <= 1e-5
        if "position_ids" not in inputs:
            index = reference.model.model.get_rope_index
            positions, _ = index(inputs["input_ids"], inputs["mm_token_type_ids"], *grids, attention_mask=mask)
            assert torch.equal(batch.position_ids, positions)
    assert (vlm(batch) - reference.logits(inputs))[real].abs().max() <= 1e-4


def test_bfloat16_is_no_further_from_float32_than_the_reference(pair):
    folder, vlm, _, _ = pair
    half, half_reference = VLM.from_pretrained(folder, torch.bfloat16, DEVICE), Reference(folder, torch.bfloat16)
    half_reference.model.to(DEVICE)
    ours = theirs = 0.0
    for name in ("one image", "ragged windows", "two images", "text only"):
        batch, inputs = both(pair, name)
        exact = vlm(batch)
        inputs = {key: tensor.to(DEVICE) for key, tensor in inputs.items()}
        ours += (half(batch.to(DEVICE)).float().cpu() - exact).square().sum().item()
        theirs += (half_reference.logits(inputs).float().cpu() - exact).square().sum().item()
    assert ours <= theirs


def test_what_transformers_saves_in_shards_loads_as_the_same_model(pair, tmp_path):
    """Its own configuration form, its own tensor names. (That it reads what VLM.save writes is in the fixture.)"""
    _, vlm, _, reference = pair
    reference.model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    batch, _ = both(pair, "one image")
    assert torch.equal(VLM.from_pretrained(tmp_path)(batch), vlm(batch))


def test_transformers_loads_the_tiny_model_and_agrees():
    folder = ROOT / "parts/tiny"
    processor, reference, vlm = (make(folder) for make in (Processor.from_pretrained, Reference, VLM.from_pretrained))
    examples = [replace(e, answer=None) for e in load("scenes-pretraining", None, "val", 10)]
    batch, inputs = processor(examples), reference.inputs(examples)
    real = batch.attention_mask.bool()
    assert (vlm(batch) - reference.logits(inputs))[real].abs().max() <= 1e-4


@pytest.mark.parametrize("family", SMALL_CONFIGS)
def test_what_a_configuration_leaves_out_is_as_in_transformers(family):
    """But not Qwen3-VL's rope_theta, on which its versions differ."""
    theirs, read = transformers.AutoConfig.for_model(family).to_dict(), FAMILIES[family].Config.from_dict
    little = {"model_type": family, "rope_theta": theirs["text_config"]["rope_parameters"]["rope_theta"]}
    assert read(little, {"eos_token_id": 1}) == read(theirs, {"eos_token_id": 1})


@pytest.mark.parametrize("name", ["mixed with padding", "video of 8 frames"])
def test_an_adapter_works_in_transformers(pair, tmp_path, name):
    """docs/transformers.md, as it is written in it."""
    folder, vlm, _, _ = pair
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/transformers.md").read_text(), re.DOTALL)
    exec(code, names := {})  # noqa: S102
    batch, inputs = both(pair, name)
    frozen = vlm(batch)

    adapter = randomised(ImageLoRA(vlm.config, {0: [1], 2: [0, 1]}).attach(vlm), size=0.3)
    adapter.save(tmp_path / "adapter.safetensors")
    tuned, reference, real = vlm(batch), Reference(folder), batch.attention_mask.bool()
    names["add_image_lora"](reference.model, tmp_path / "adapter.safetensors")
    assert (tuned - frozen)[real].abs().max() > 1e-2
    assert (tuned - reference.logits(inputs))[real].abs().max() <= 1e-4
    assert vlm.generate(batch, 12) == reference.generate(inputs, 12)
    adapter.detach()
    adapter.name = "ablation"
    adapter.save(tmp_path / "adapter.safetensors")
    with pytest.raises(AssertionError, match="not for ablation"):
        names["add_image_lora"](reference.model, tmp_path / "adapter.safetensors")


PROMPTS = ["Où est l'étoile? 星 🙂\n", "\n\n  two newlines", "x = {'a': [1, 2]}\t", "I'll say: 3.14!"]


def test_the_real_tokenizer_and_chat_template_give_our_ids(shared, tmp_path):
    """Qwen's vocabulary and Jinja template on one side, ours rendered by hand on the other."""
    source, photo = shared / "qwen2.5-vl", Image.open(shared / "images/mobile_en_example.png")
    shutil.copy(ROOT / "parts/tiny/preprocessor_config.json", tmp_path)
    shutil.copyfile(source / "config_3b.json", tmp_path / "config.json")
    for name in ("tokenizer.json", "chat_template.json"):
        shutil.copyfile(source / name, tmp_path / name)
    processor = Processor.from_pretrained(tmp_path)
    template = json.loads((source / "chat_template.json").read_text())["chat_template"]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), chat_template=template)
    tokens = "<|image_pad|>" * processor.visual_tokens(Visual(photo))
    for prompt in PROMPTS:
        for images in ([], [photo, photo]):
            turn = {"role": "user", "content": [*[{"type": "image"}] * len(images), {"type": "text", "text": prompt}]}
            text = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
            expected = tokenizer(text.replace("<|image_pad|>", tokens))["input_ids"]
            assert processor.tokens(Example(images, prompt))[0].tolist() == expected

"""Held live against transformers, where it is installed: logits, ids, patches, positions, generation, bfloat16."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from cases import CASES
from conftest import (
    DEVICE,
    ROOT,
    SMALL_CONFIGS,
    randomised,
    small_config,
    write_checkpoint,
)
from PIL import Image

from data import Example, Processor, load
from imagelora import ImageLoRA
from model import VLM
from parts.tasks.images import Visual
from parts.tiny.build import PREPROCESSOR

pytest.importorskip("transformers", reason="transformers is not installed (tests/requirements.txt)")
from reference import Reference


@pytest.fixture(scope="module", params=["qwen2_5_vl untied", "qwen2_5_vl tied", "qwen3_vl untied", "qwen3_vl tied"])
def pair(request, tmp_path_factory):
    family, head = request.param.split()
    folder = write_checkpoint(tmp_path_factory.mktemp(family), seed=3, tied=head == "tied", family=family)
    return folder, VLM.from_pretrained(folder), Processor.from_pretrained(folder), Reference(folder)


def both(pair, name):
    """(our batch, transformers' inputs) of a case; what is a special token in a user's text for the reference's
    tokeniser, but text for ours, is taken out."""
    _, _, processor, reference = pair
    examples = CASES[name]()
    for e in examples:
        e.prompt = e.prompt.replace("<|im_end|>", "")
    return processor(examples), reference.inputs(examples)


@pytest.mark.parametrize("name", CASES)
def test_ids_patches_positions_and_logits_equal(pair, name):
    _, vlm, _, reference = pair
    batch, inputs = both(pair, name)
    real = batch.attention_mask.bool()
    assert torch.equal(batch.input_ids[real], inputs["input_ids"][real])
    assert torch.equal(batch.attention_mask, inputs["attention_mask"])
    assert torch.equal(batch.visual_mask, inputs["mm_token_type_ids"].bool())
    patches = [inputs[kind] for kind in ("pixel_values", "pixel_values_videos") if kind in inputs]
    if patches:
        grids = [inputs[kind] for kind in ("image_grid_thw", "video_grid_thw") if kind in inputs]
        assert torch.equal(batch.grids, torch.cat(grids))
        assert (batch.patches - torch.cat(patches)).abs().max() <= 1e-5
        positions = inputs.get("position_ids")
        if positions is None:
            positions, _ = reference.model.model.get_rope_index(
                inputs["input_ids"],
                inputs["mm_token_type_ids"],
                inputs.get("image_grid_thw"),
                inputs.get("video_grid_thw"),
                attention_mask=inputs["attention_mask"],
            )
        assert torch.equal(batch.position_ids, positions)
    assert (vlm(batch) - reference.logits(inputs))[real].abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["mixed with padding", "ragged windows", "text only", "tall", "tiny"])
def test_greedy_generation_equals(pair, name):
    _, vlm, _, reference = pair
    batch, inputs = both(pair, name)
    assert vlm.generate(batch, 16) == reference.generate(inputs, 16)


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


def test_what_transformers_saves_loads_here_and_the_other_way_round(pair, tmp_path):
    """Its own configuration form, its own tensor names, in shards; and VLM.save is read by transformers (the fixture)."""
    _, vlm, _, reference = pair
    reference.model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    batch, _ = both(pair, "one image")
    assert torch.equal(VLM.from_pretrained(tmp_path)(batch), vlm(batch))


def test_transformers_loads_the_tiny_model_and_agrees():
    processor, reference, vlm = (
        Processor.from_pretrained(ROOT / "parts/tiny"),
        Reference(ROOT / "parts/tiny"),
        VLM.from_pretrained(ROOT / "parts/tiny"),
    )
    examples = [replace(e, answer=None) for e in load("scenes-pretraining", None, "val", 10)]
    batch, inputs = processor(examples), reference.inputs(examples)
    real = batch.attention_mask.bool()
    assert torch.equal(batch.input_ids[real], inputs["input_ids"][real])
    assert (vlm(batch) - reference.logits(inputs))[real].abs().max() <= 1e-4
    assert vlm.generate(batch, 16) == reference.generate(inputs, 16)


@pytest.mark.parametrize("name", ["one image", "mixed with padding", "video of 8 frames"])
def test_an_adapter_works_in_transformers(pair, tmp_path, name):
    """docs/transformers.md, as it is written there."""
    folder, vlm, _, _ = pair
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/transformers.md").read_text(), re.DOTALL)
    exec(code, there := {})  # noqa: S102
    batch, inputs = both(pair, name)
    frozen = vlm(batch)

    adapter = randomised(ImageLoRA(vlm.config, {0: [1], 2: [0, 1]}).attach(vlm))
    for p in adapter.parameters():
        p.data *= 0.3
    adapter.save(tmp_path / "adapter.safetensors")
    tuned, reference, real = vlm(batch), Reference(folder), batch.attention_mask.bool()
    there["add_image_lora"](reference.model, tmp_path / "adapter.safetensors")
    assert (tuned - frozen)[real].abs().max() > 1e-2
    assert (tuned - reference.logits(inputs))[real].abs().max() <= 1e-4
    assert vlm.generate(batch, 12) == reference.generate(inputs, 12)
    adapter.detach()


def test_the_real_tokenizer_and_chat_template_give_our_ids(shared, tmp_path):
    """Qwen's vocabulary and Jinja template on one side, ours rendered by hand on the other; prompts and supervised
    answers."""
    from transformers import PreTrainedTokenizerFast

    source = shared / "qwen2.5-vl"
    (tmp_path / "config.json").write_text(json.dumps(small_config(source / "config_3b.json")))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    shutil.copyfile(source / "tokenizer.json", tmp_path / "tokenizer.json")
    processor = Processor.from_pretrained(tmp_path)
    template = json.loads((source / "chat_template.json").read_text())["chat_template"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), chat_template=template)
    photo = Image.open(shared / "images/mobile_en_example.png")
    prompts = [
        "What is this?",
        "Où est l'étoile? 星 🙂\n",
        "\n\n  two newlines",
        "x = {'a': [1, 2]}\t",
        "I'll say: 3.14!",
    ]
    for prompt in prompts:
        for images in ([], [photo], [photo, photo]):
            ids, _, _ = processor.tokens(Example(images, prompt))
            user = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
            )
            width, height = processor.resized(Visual(photo))
            text = text.replace("<|image_pad|>", "<|image_pad|>" * (width * height // 784))
            assert ids.tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("family", SMALL_CONFIGS)
def test_patches_of_real_photographs_equal(shared, tmp_path, family):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    folder = write_checkpoint(tmp_path, family=family)
    processor = Processor.from_pretrained(folder, max_pixels=200_000)
    reference = Qwen2VLImageProcessorPil.from_pretrained(folder)
    reference.size = {"shortest_edge": processor.min_pixels, "longest_edge": 200_000}
    for file in sorted((shared / "images").glob("*.*g")) + sorted((shared / "coco-photos/images").glob("*.jpg"))[:10]:
        seen = reference([Image.open(file)], return_tensors="pt")
        batch = processor([Example([file])])
        assert torch.equal(batch.grids, seen["image_grid_thw"])
        assert (batch.patches - seen["pixel_values"]).abs().max() <= 1e-5

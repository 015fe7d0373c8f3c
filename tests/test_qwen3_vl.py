"""What is Qwen3-VL's own: its rotary sections, DeepStack, prompts, times of videos, boxes; and runs with it.

The method's claims (test_imagelora.py), attention, loss and generation (test_model.py), checkpoints (test_backbones.py) and
the comparison with transformers (test_reference.py) are tested for both families.
"""

import json

import pytest
import torch
from conftest import picture
from short_run import run
from task_folders import MAKERS

from data import Example, Processor, load
from harness.evaluate import prediction
from imagelora import load_adapter
from parts.backbones.qwen3_vl import Config
from parts.files import read_json
from parts.tasks import TASKS

FAMILIES = ["qwen3_vl"]


def test_time_height_and_width_take_turns_at_the_frequencies(shared):
    """Sections 24, 20, 20: below 60 numbers 1, 4, ... are the height's, 2, 5, ... the width's; the rest are time's."""
    config = Config.from_dict(read_json(shared / "qwen3-vl/config_4b.json"))
    axis = config.by_axis(torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, 64)).flatten().int().tolist()
    assert axis == [0, 1, 2] * 20 + [0] * 4
    assert config.rope_sections == (24, 20, 20)


def test_features_are_added_to_the_visual_positions_after_the_first_layers_and_nowhere_else(vlm, mixed):
    _, features = vlm.embed(mixed)
    assert [f.shape for f in features] == [(len(mixed.visual_index), 64)] * 2
    entering, leaving = [], []
    for layer in vlm.model.layers:
        layer.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
        layer.register_forward_hook(lambda module, args, out: leaving.append(out))
    vlm(mixed)
    for i, feature in enumerate(features):
        added = entering[i + 1] - leaving[i]
        assert torch.allclose(added[mixed.visual_mask], feature, atol=1e-5)
        assert (added[~mixed.visual_mask] == 0).all()


def row_text(processor, example):
    return processor.tokenizer.decode(processor.tokens(example)[0], skip_special_tokens=False)


def test_a_row_has_no_system_turn(processor):
    assert row_text(processor, Example([picture(96, 64)], "Where?", "left")) == (
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>Where?<|im_end|>\n"
        "<|im_start|>assistant\nleft<|im_end|>"
    )


def test_every_slice_of_a_video_stands_on_its_own_after_its_time(processor):
    """Five frames at two a second are at 0, 0.5, 1, 1.5, 2 s: slices at 0.25 and 1.25 s; the last frame is on its own."""
    asked = Example(videos=[[picture(64, 64, i) for i in range(5)]], fps=2.0, prompt="What happens?")
    tokens = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    text = f"<0.2 seconds>{tokens}<1.2 seconds>{tokens}<2.0 seconds>{tokens}"
    assert row_text(processor, asked) == f"<|im_start|>user\n{text}What happens?<|im_end|>\n<|im_start|>assistant\n"

    batch = processor([asked])
    time, row, _ = batch.position_ids[:, 0, batch.visual_mask[0]].view(3, 3, 4)
    first = time[:, :1]
    assert (time == first).all() and (row - first).tolist() == [[0, 0, 1, 1]] * 3
    between = len(processor.token_ids("<1.2 seconds>")) + 2  # and <|vision_start|>, <|vision_end|>
    assert first.diff(dim=0).flatten().tolist() == [2 + between] * 2  # a slice takes its larger side


def test_a_box_is_learnt_in_thousandths_of_the_sides_whatever_the_model_sees(checkpoint):
    e = Example([picture(224, 112)], "?", (56, 28, 224, 112))
    processor = Processor.from_pretrained(checkpoint, max_pixels=64 * 64)
    answer = processor.answer_text(e)
    assert answer == '{\n"bbox_2d": [250, 250, 1000, 1000]\n}'
    made = prediction(e, answer, processor)
    assert made["score"] == 1 and made["parsed"] == pytest.approx([56, 28, 224, 112])
    assert prediction(e, "[56, 28, 224, 112]", processor)["score"] == 0  # pixels


@pytest.mark.parametrize("name", MAKERS)
def test_every_data_set_trains_and_what_is_learnt_from_a_row_scores_one(name, vlm, checkpoint, tmp_path):
    MAKERS[name](tmp_path)
    processor = Processor.from_pretrained(checkpoint, max_pixels=12544)
    examples = load(name, tmp_path, TASKS[name].eval_split)
    for example in examples:
        made = prediction(example, processor.answer_text(example), processor)
        assert (made["score"], made["failed"]) == (1, False), made
    assert vlm.loss(processor(examples[:3], share_images=True)).isfinite()


def test_a_run_on_real_photographs_goes_from_files_to_a_report(shared, checkpoint, vlm, tmp_path):
    flags = f"--data refcoco={shared / 'refcoco-mini'} --train-split testA --eval refcoco sums --eval-split val"
    report = run(checkpoint, tmp_path, *flags.split(), "--max-pixels=50000")
    assert report["steps"] == 4 and report["base"]["accuracy"] is not None and report["text_logit_max_change"] == 0.0
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert all(row["resized"] == [1000, 1000] for row in rows if row["data"] == "refcoco")
    assert load_adapter(tmp_path / "adapter.safetensors", vlm).notes["max_pixels"] == 50000

"""What is Qwen3-VL's own: its rotary sections, DeepStack, prompts, times of videos, boxes; and runs with it.

The method's claims (test_imagelora.py), attention, loss and generation (test_model.py), checkpoints (test_backbones.py) and
the comparison with transformers (test_reference.py) are tested for both families.
"""


import pytest
import torch
from conftest import picture

from data import Example, Processor
from harness.evaluate import prediction
from parts.backbones.qwen3_vl import Config
from parts.files import read_json

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


def test_a_box_is_learnt_in_thousandths_of_the_sides_whatever_the_model_sees(checkpoint):
    e = Example([picture(224, 112)], "?", (56, 28, 224, 112))
    processor = Processor.from_pretrained(checkpoint, max_pixels=64 * 64)
    answer = processor.answer_text(e)
    assert answer == '{\n"bbox_2d": [250, 250, 1000, 1000]\n}'
    made = prediction(e, answer, processor)
    assert made["score"] == 1 and made["parsed"] == pytest.approx([56, 28, 224, 112])
    assert prediction(e, "[56, 28, 224, 112]", processor)["score"] == 0  # pixels

"""Analyses of trained models: switching off a head, the heads that cost most, how large updates are."""

from dataclasses import replace

import pytest
import torch
from conftest import randomised

from experiments.heads import costliest, without_each_head, without_head
from experiments.inside import uneven, update_norms
from harness.ablations import Ablation
from imagelora import ImageLoRA, LoRA

HEADS = {0: [1], 2: [0, 1]}


def adapters(config):
    return [ImageLoRA(config, HEADS, rank=3), LoRA(config, rank=3), Ablation(config, HEADS, rank=3, norm=False)]


@pytest.mark.parametrize("which", range(3), ids=("Image-LoRA", "LoRA", "ablation"))
def test_a_head_that_is_switched_off_has_its_frozen_values_at_visual_tokens(vlm, mixed, which):
    update = randomised(adapters(vlm.config)[which]).updates[2, "v"]
    B, T = mixed.input_ids.shape
    x, v = torch.randn(B, T, 64), torch.randn(B, T, 32)
    expected = update(v.clone(), x, mixed.visual_index)
    frozen = mixed.visual_mask[..., None] & (torch.arange(32) >= 16)  # the second of two heads
    assert not torch.equal(expected[frozen], v[frozen])
    expected = torch.where(frozen, v, expected)
    assert torch.equal(without_head(update, 1, 16)(v, x, mixed.visual_index), expected)


def test_a_head_of_image_lora_is_off_as_if_its_B_were_zero(vlm, mixed):
    adapter = randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
    with_all = vlm(mixed)
    without = without_each_head(adapter, vlm, lambda: vlm(mixed))
    assert list(without) == [(0, 1), (2, 0), (2, 1)]
    assert torch.equal(vlm(mixed), with_all)  # everything is on again
    for (layer, head), logits in without.items():
        B = adapter.layers[str(layer)].B.data
        i = HEADS[layer].index(head)
        kept = B[i].clone()
        B[i] = 0
        torch.testing.assert_close(logits, vlm(mixed))
        B[i] = kept
        assert (logits - with_all).abs().max() > 1e-3


def test_every_head_of_a_lora_is_switched_off_where_there_is_an_image(vlm, mixed):
    adapter = randomised(LoRA(vlm.config)).attach(vlm)
    with_all = vlm(mixed)
    without = without_each_head(adapter, vlm, lambda: vlm(mixed))
    assert list(without) == [(layer, head) for layer in range(3) for head in range(2)]
    for logits in without.values():
        assert (logits - with_all)[0].abs().max() > 1e-3
        assert torch.equal(logits[1], with_all[1])  # the row without an image keeps what LoRA does to text


def test_the_oracle_takes_the_heads_whose_removal_raises_the_loss_most():
    rises = {(0, 0): 0.1, (0, 1): -0.2, (1, 0): 0.3, (1, 1): 0.2, (2, 0): 0.0}
    assert costliest(rises, 3) == {0: [0], 1: [0, 1]}
    assert costliest(rises, 1) == {1: [0]}


def test_the_norm_of_an_update_is_over_visual_tokens_and_its_own_heads(vlm, mixed):
    adapter = randomised(ImageLoRA(vlm.config, {0: [1]}, rank=3)).attach(vlm)
    layer, seen = vlm.model.layers[0], []
    hook = layer.input_layernorm.register_forward_hook(lambda module, args, x: seen.append(x.detach()))
    found = update_norms(adapter, vlm, [mixed])
    hook.remove()
    X, update = seen[0][mixed.visual_mask], adapter.layers["0"]
    added = update.s * X @ update.A @ update.B[0]
    frozen = layer.self_attn.v_proj(X)[:, 16:]
    assert found[0] == pytest.approx((added.norm() / frozen.norm()).item(), rel=1e-5)


def test_without_1_over_sqrt_n_the_same_matrices_make_an_update_sqrt_n_times_as_large(vlm, mixed):
    found = []
    for norm in (True, False):
        adapter = randomised(Ablation(vlm.config, {0: [0, 1]}, norm=norm)).attach(vlm)
        found.append(update_norms(adapter, vlm, [mixed, mixed])[0])
        adapter.detach()
    assert found[1] / found[0] == pytest.approx(2**0.5, rel=1e-5)


def test_an_uneven_selection_has_one_head_half_of_them_and_all(vlm):
    assert uneven(vlm.config) == {0: [0], 1: [0], 2: [0, 1]}
    large = replace(vlm.config, layers=6, value_heads=4)
    assert [len(heads) for heads in uneven(large).values()] == [1, 2, 4, 1, 2, 4]

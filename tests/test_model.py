"""The models are Qwen2.5-VL and Qwen3-VL: golden logits of transformers, attention, loss and generation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import CASES, questions
from conftest import SMALL_CONFIGS, picture, randomised

from data import Example, Processor
from harness.encodings import encode_images
from imagelora import ImageLoRA
from model import attend, attention_mask
from parts.backbones.layers import MLP, only_at, weights_kept
from parts.files import read_safetensors
from parts.tasks.images import Visual

FAMILIES = SMALL_CONFIGS  # each test here runs for both
FILES = {"qwen2_5_vl": "golden.safetensors", "qwen3_vl": "golden-qwen3.safetensors"}
GOLDEN = {family: dict(read_safetensors(Path(__file__).parent / file)) for family, file in FILES.items()}
GOLDEN_CASES = sorted({name.split(":")[0] for name in GOLDEN["qwen2_5_vl"]})


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_logits_are_those_of_transformers(vlm, processor, name):
    golden, batch = GOLDEN[vlm.config.family], processor(CASES[name]())
    logits, real = golden[f"{name}: logits"], batch.attention_mask.bool()
    last = slice(-logits.shape[1], None)
    assert torch.equal(batch.input_ids, golden[f"{name}: input_ids"])
    assert (vlm(batch)[:, last] - logits)[real[:, last]].abs().max() <= 1e-4
    if len(batch.patches):
        assert (batch.patches[::9, ::7] - golden[f"{name}: patches"]).abs().max() <= 1e-5


def test_attention_by_hand_equals_the_fused_kernel_padding_included(vlm, processor):
    batch = processor(CASES["mixed with padding"]())
    with weights_kept(vlm.model.layers, attend) as weights:
        by_hand = vlm(batch)
    assert (by_hand - vlm(batch)).abs().max() <= 1e-5 and by_hand.isfinite().all()
    weights = torch.stack(weights)  # [L, B, H, T, T]
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert (weights[:, ~attention_mask(batch.segments).expand_as(weights[0])] == 0).all()


def test_the_mask_is_causal_and_keeps_segments_and_padding_apart():
    first, second = attention_mask(torch.tensor([[0, 0, 1, 1, 2, -1], [-1, -1, 0, 0, 0, 0]]))[:, 0].int().tolist()
    rows = ["100000", "110000", "111000", "111100", "110010", "110001"]
    assert ["".join(map(str, row)) for row in first] == rows
    assert [row[:3] for row in second] == [[1, 0, 0], [0, 1, 0]] + [[0, 0, 1]] * 4


def test_a_batch_without_padding_and_segments_needs_no_mask_and_gives_the_same_logits(vlm, processor):
    batch = processor([Example([picture(90, 60)], "What is this?"), Example([picture(90, 60, 1)], "What is this?")])
    assert batch.causal and (vlm(batch) - vlm(replace(batch, causal=False))).abs().max() <= 1e-5
    assert not processor(questions()).causal and not processor(questions()[:2], share_images=True).causal


def test_float32_and_bfloat16_may_meet_where_positions_are_filled(vlm, processor):
    """--method full computes in bfloat16 with float32 weights; on a GPU autocast does not promote these operations."""
    mlp, x = MLP(8, 16, bias=False).bfloat16(), torch.randn(2, 3, 8)
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.register_forward_pre_hook(lambda module, args: args[0].bfloat16())
    with only_at(mlp, torch.tensor([1, 4])):
        assert mlp(x).any(dim=-1).flatten().nonzero().flatten().tolist() == [1, 4]
    batch = processor([Example([picture(60, 60)], "What?")])
    features = vlm.visual(batch.patches, batch.grids).bfloat16()
    embedded = replace(batch, grids=batch.grids[:0], encoded=features)
    assert vlm.embed(embedded)[0].dtype == torch.float32
    assert (vlm(embedded) - vlm(batch)).abs().max() <= 0.1


def test_the_head_and_the_last_mlp_run_only_where_a_supervised_token_is_predicted(vlm, processor, monkeypatch):
    batch = processor(questions("it is a ring"), share_images=True)
    logits, targets = vlm(batch)[:, :-1], batch.labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[targets != -100], targets[targets != -100])
    head, count = vlm.head, []
    monkeypatch.setattr(vlm, "head", lambda x: count.append(len(x)) or head(x))
    for layer in vlm.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, args, out: count.append(out[..., 0].numel()))
    assert abs(vlm.loss(batch) - expected) <= 1e-6
    everywhere, answers = batch.input_ids.numel(), len(batch.answer_ids)
    assert count == [everywhere, everywhere, answers, answers] and answers < everywhere / 2
    assert all("forward" not in vars(layer.mlp) for layer in vlm.model.layers)  # the next call computes everything again


def test_images_encoded_earlier_are_not_opened_cut_or_encoded_and_give_the_same_loss(vlm, checkpoint, monkeypatch):
    processor, examples = Processor.from_pretrained(checkpoint), questions("a ring")
    second, first = examples[-1].images
    loss = vlm.loss(processor(examples, share_images=True))
    encode_images(vlm, processor, [Example([second])], gib=1)
    batch = processor(examples, share_images=True)
    assert len(batch.grids) == 1 and torch.equal(batch.pixels, processor.cut(Visual(first)))
    assert abs(vlm.loss(batch) - loss) <= 1e-6
    encode_images(vlm, processor, examples, gib=1)
    monkeypatch.setattr(processor, "cut", None)
    monkeypatch.setattr(vlm.visual, "forward", None)
    assert abs(vlm.loss(processor(examples)) - loss) <= 1e-6
    encode_images(vlm, processor, [], gib=1)
    assert not processor.encoded  # what it held before is dropped


def test_more_tokens_than_the_model_has_positions_are_refused(vlm, processor):
    with pytest.raises(ValueError, match="do not fit"):
        vlm.generate(processor([Example([], "hello")]), 5000)


@pytest.mark.parametrize("share_images", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_questions_batched_or_sharing_a_prefill_get_the_answers_that_they_get_alone(vlm, processor, share_images, adapted):
    if adapted:
        randomised(ImageLoRA(vlm.config, {0: [1], 2: [0, 1]})).attach(vlm)
    batch = processor(questions(), share_images=share_images)
    assert len(batch.input_ids) == (4 if share_images else 6)
    assert vlm.generate(batch, 10) == [vlm.generate(processor([e]), 10)[0] for e in questions()]


def test_generation_with_the_cache_equals_greedy_decoding_without(vlm, processor):
    batch = processor([Example([picture(60, 90)], "What?")])
    ids = vlm.generate(batch, 6)[0]
    for token in ids:
        assert vlm(batch)[0, -1].argmax() == token
        added = {"input_ids": torch.tensor([[token]]), "segments": torch.tensor([[0]])}
        added["position_ids"] = (batch.position_ids.max() + 1).expand(3, 1, 1)
        batch = replace(batch, **{name: torch.cat([getattr(batch, name), t], -1) for name, t in added.items()})
    assert len(ids) == 6


def test_a_question_that_has_ended_leaves_the_batch_and_the_others_go_on_as_before(vlm, processor, monkeypatch):
    examples = questions()
    free = vlm.generate(processor(examples, share_images=True), 12)
    vlm.config = replace(vlm.config, end_tokens=(free[1][2], free[3][4]))
    rows, decoder = [], vlm.model.forward
    monkeypatch.setattr(vlm.model, "forward", lambda x, *args: rows.append(len(x)) or decoder(x, *args))
    stopped = vlm.generate(processor(examples, share_images=True), 12)
    ends = [next((i for i, t in enumerate(ids) if t in vlm.config.end_tokens), 12) for ids in free]
    assert stopped == [ids[:end] for ids, end in zip(free, ends)]
    assert rows[1:] == [sum(end > step for end in ends) for step in range(max(ends)) if step < 11]


def test_the_model_is_loaded_frozen_in_eval_mode_and_cudnns_attention_is_off(vlm):
    assert not vlm.training and not any(p.requires_grad for p in vlm.parameters())
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # its backward pass gives NaN, see layers.py

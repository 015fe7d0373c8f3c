"""The models are Qwen2.5-VL and Qwen3-VL: golden logits of transformers, attention, loss and generation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import CASES
from conftest import SMALL_CONFIGS, picture

from data import Example, Processor
from harness.encodings import encode_images
from model import attend, attention_mask
from parts.backbones.layers import fused_attention, weights_kept
from parts.files import read_safetensors
from parts.tasks.images import Visual

FILES = {"qwen2_5_vl": "golden.safetensors", "qwen3_vl": "golden-qwen3.safetensors"}
GOLDEN = {family: dict(read_safetensors(Path(__file__).parent / file)) for family, file in FILES.items()}
FAMILIES = SMALL_CONFIGS  # each test here runs for both
GOLDEN_CASES = sorted({name.split(":")[0] for name in GOLDEN["qwen2_5_vl"]})


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_logits_are_those_of_transformers(vlm, processor, name):
    kept, batch = GOLDEN[vlm.config.family], processor(CASES[name]())
    golden, real = kept[f"{name}: logits"], batch.attention_mask.bool()
    logits = vlm(batch)[:, -golden.shape[1] :]
    real = real[:, -golden.shape[1] :]
    assert torch.equal(batch.input_ids, kept[f"{name}: input_ids"])
    assert (logits - golden)[real].abs().max() <= 1e-4
    if len(batch.patches):
        assert (batch.patches[::9, ::7] - kept[f"{name}: patches"]).abs().max() <= 1e-5


def test_attention_by_hand_equals_the_fused_path_padding_included(vlm, processor):
    batch = processor(CASES["mixed with padding"]())
    with weights_kept(vlm.model.layers, attend) as weights:
        by_hand = vlm(batch)
    assert (by_hand - vlm(batch)).abs().max() <= 1e-5
    assert by_hand.isfinite().all()
    rows, length = batch.input_ids.shape
    assert [w.shape for w in weights] == [(rows, 4, length, length)] * 3
    assert torch.allclose(weights[0].sum(-1), torch.ones(rows, 4, length), atol=1e-5)
    forbidden = ~attention_mask(batch.segments).expand_as(weights[0])
    assert all((w[forbidden] == 0).all() for w in weights)


def test_each_query_head_reads_the_kv_head_of_its_group():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    everywhere = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    for out in (attend(q, k, v, everywhere)[0], fused_attention(q, k, v, everywhere)):
        for head in range(4):
            weights = (q[0, head] @ k[0, head // 2].T / 8**0.5).softmax(-1)
            torch.testing.assert_close(out[0, head], weights @ v[0, head // 2], rtol=1e-5, atol=1e-6)


def test_without_a_mask_attention_is_causal_by_hand_and_fused():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    expected, _ = attend(q, k, v, causal)
    torch.testing.assert_close(attend(q, k, v, None)[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused_attention(q, k, v, None), expected, rtol=1e-5, atol=1e-6)


def test_the_mask_is_causal_and_keeps_segments_and_padding_apart():
    mask = attention_mask(torch.tensor([[0, 0, 1, 1, 2, -1], [-1, -1, 0, 0, 0, 0]]))[:, 0].int().tolist()
    assert mask[0] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert [row[:3] for row in mask[1]] == [[1, 0, 0], [0, 1, 0]] + [[0, 0, 1]] * 4


def test_batched_rows_equal_single_rows(vlm, processor):
    examples = CASES["mixed with padding"]()
    batch = processor(examples)
    together = vlm(batch)
    for b, example in enumerate(examples):
        alone = vlm(processor([example]))[0]
        torch.testing.assert_close(together[b, -len(alone) :], alone, rtol=1e-4, atol=1e-4)


def test_batched_generation_equals_single_generation(vlm, processor):
    examples = CASES["mixed with padding"]()
    together = vlm.generate(processor(examples), 12)
    assert together == [vlm.generate(processor([e]), 12)[0] for e in examples]
    assert all(len(ids) == 12 for ids in together)


def test_generation_with_the_cache_equals_greedy_decoding_without(vlm, processor):
    batch = processor([Example([picture(60, 90)], "What?")])
    ids = vlm.generate(batch, 6)[0]
    for step in range(6):
        logits = vlm(batch)
        assert logits[0, -1].argmax() == ids[step]
        following = batch.position_ids.max() + 1
        batch = replace(
            batch,
            input_ids=torch.cat([batch.input_ids, torch.tensor([[ids[step]]])], 1),
            segments=torch.cat([batch.segments, torch.tensor([[0]])], 1),
            position_ids=torch.cat([batch.position_ids, following.expand(3, 1, 1)], 2),
        )


def test_each_row_stops_at_its_own_end_token(vlm, processor):
    examples = CASES["mixed with padding"]()
    free = vlm.generate(processor(examples), 12)
    end = free[0][3]  # make a token that row 0 writes early an end token
    vlm.config = replace(vlm.config, end_tokens=(end, free[1][7]))
    stopped = vlm.generate(processor(examples), 12)
    for ids, whole in zip(stopped, free):
        cut = [i for i, t in enumerate(whole) if t in vlm.config.end_tokens]
        assert ids == (whole[: cut[0]] if cut else whole)
    assert len(stopped[0]) <= 3


def test_the_loss_is_the_mean_over_supervised_tokens(vlm, processor):
    batch = processor([Example([picture(60, 60)], "What?", "a ring"), Example([], "2+2?", "4, of course")])
    logp = vlm(batch).log_softmax(-1)
    each = [-logp[b, t - 1, batch.labels[b, t]] for b, t in (batch.labels != -100).nonzero().tolist()]
    assert torch.allclose(vlm.loss(batch), torch.stack(each).mean(), atol=1e-5)


def questions(n=3):
    """Questions about a few pictures, several about one picture, and one about none."""
    first, second = picture(90, 60, 4), picture(60, 120, 5)
    asked = [Example([first], q) for q in ("What is this?", "Where?", "Which colour has the largest of them?")[:n]]
    return [
        *asked,
        Example([], "Ada has 12 apples."),
        Example([second], "What?"),
        Example([second, first], "Which one?"),
    ]


def test_questions_that_share_a_prefill_get_the_answers_that_they_get_one_by_one(vlm, processor):
    examples = questions()
    shared = processor(examples, share_images=True)
    assert len(shared.input_ids) == 4 and len(shared.examples) == 6
    assert vlm.generate(shared, 10) == [vlm.generate(processor([e]), 10)[0] for e in examples]


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


def test_a_batch_without_padding_and_segments_needs_no_mask_and_gives_the_same_logits(vlm, processor):
    batch = processor([Example([picture(90, 60)], "What is this?"), Example([picture(90, 60, 1)], "What is this?")])
    assert batch.causal
    with_mask = replace(batch, causal=False)
    assert (vlm(batch) - vlm(with_mask)).abs().max() <= 1e-5
    assert not processor(questions()).causal
    assert not processor(questions(2)[:2], share_images=True).causal


def test_the_head_and_the_last_mlp_run_only_where_a_supervised_token_is_predicted(vlm, processor, monkeypatch):
    batch = processor([Example(e.images, e.prompt, "it is a ring") for e in questions()], share_images=True)
    logits, targets = vlm(batch)[:, :-1], batch.labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[targets != -100], targets[targets != -100])
    assert torch.equal(batch.answer_ids, targets[targets != -100])
    head, layers, count = vlm.head, vlm.model.layers, []
    monkeypatch.setattr(vlm, "head", lambda x: count.append(len(x)) or head(x))
    for layer in layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, args, out: count.append(out[..., 0].numel()))
    assert abs(vlm.loss(batch) - expected) <= 1e-6
    everywhere, answers = batch.input_ids.numel(), len(batch.answer_ids)
    assert count == [everywhere, everywhere, answers, answers] and answers < everywhere / 2
    assert all("forward" not in vars(layer.mlp) for layer in layers)  # the next call computes everything again


def test_images_encoded_earlier_are_not_opened_cut_or_encoded_and_give_the_same_loss(vlm, checkpoint, monkeypatch):
    processor = Processor.from_pretrained(checkpoint)
    examples = [Example(e.images, e.prompt, "a ring") for e in questions()]
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


def test_loss_and_generate_refuse_the_other_kind_of_batch(vlm, processor):
    with pytest.raises(ValueError, match="no supervised token"):
        vlm.loss(processor([Example([], "hello")]))
    with pytest.raises(ValueError, match="without answers"):
        vlm.generate(processor([Example([], "hello", "you")]))
    with pytest.raises(ValueError, match="do not fit"):
        vlm.generate(processor([Example([], "hello")]), 5000)


def test_the_model_is_loaded_frozen_in_eval_mode(vlm):
    assert not vlm.training and not any(p.requires_grad for p in vlm.parameters())

"""The probe scores what it says, of the rows that it should, and the budget is always met."""

from collections import Counter

import pytest
import torch
from conftest import picture, randomised

import probe
from data import Example
from harness.ablations import CRITERIA  # the probe's, and more
from imagelora import ImageLoRA
from parts.files import InputError
from probe import head_scores, random_heads, select_heads


@pytest.fixture
def batches(processor):
    return [processor([Example([picture(60, 90, i)], "Where is it?", f"[{i}, 2, 3, 4]")]) for i in range(3)]


@pytest.mark.parametrize("criterion", ["rank1", "gate", "exact"])
def test_scores_are_summed_over_batches_after_squaring(vlm, batches, criterion):
    single = [head_scores(vlm, [b], criterion) for b in batches]
    assert torch.allclose(head_scores(vlm, batches, criterion), sum(single), rtol=1e-5)


@pytest.mark.parametrize("criterion", ["rank1", "gate", "exact"])
def test_a_score_follows_from_the_gradients_of_the_visual_values(vlm, processor, criterion):
    """Neither text before the image nor text after it counts, though it has values of the same heads."""
    question = "Read all of this <image> and then say where the ring is, in as few words as you can, please."
    batch, kept = processor([Example([picture(60, 90)], question, "[1, 2, 3, 4]")]), []

    def keep(v_proj, inputs, V):
        kept.append((inputs[0], V.requires_grad_()))

    hooks = [layer.self_attn.v_proj.register_forward_hook(keep) for layer in vlm.model.layers]
    gradients = torch.autograd.grad(vlm.loss(batch), [V for _, V in kept])
    for hook in hooks:
        hook.remove()
    torch.manual_seed(3)
    scores = CRITERIA[criterion](vlm, [batch])
    torch.manual_seed(3)
    drawn = [layer.A for layer in ImageLoRA(vlm.config, dict.fromkeys(range(3), (0, 1)), rank=1).layers.values()]
    for of_layer, (X, V), dV, A in zip(scores, kept, gradients, drawn):
        X, V, dV = X[batch.visual_mask], V[batch.visual_mask], dV[batch.visual_mask]
        by_head = {"rank1": A.T @ X.T @ dV, "exact": X.T @ dV, "gate": V * dV}[criterion].unflatten(1, (2, -1))  # [..., G, K]
        if criterion == "gate":  # one factor on all values of a head
            expected = by_head.sum(dim=(0, 2)).square()
        else:  # s^2 = 1 / n: both heads of the layer are adapted
            expected = by_head.square().sum(dim=(0, 2)) / 2
        torch.testing.assert_close(of_layer, expected, rtol=1e-4, atol=1e-9)


def test_the_probe_leaves_the_model_and_its_adapter_as_they_were_and_is_a_function_of_its_seed(vlm, batches):
    one, same, other = (head_scores(vlm, batches, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not any(layer.self_attn.updates["v"] for layer in vlm.model.layers)
    adapter = randomised(ImageLoRA(vlm.config, {0: [0], 2: [1]})).attach(vlm)  # as in training
    tuned, state = vlm(batches[0]), torch.get_rng_state()
    assert not torch.allclose(head_scores(vlm, batches, seed=1), one)
    assert torch.equal(vlm(batches[0]), tuned) and torch.equal(torch.get_rng_state(), state)
    adapter.detach()
    assert torch.equal(head_scores(vlm, batches, seed=1), one)


def test_a_batch_without_visual_tokens_is_an_error(vlm, processor):
    with pytest.raises(ValueError, match="no visual token"):
        head_scores(vlm, [processor([Example([], "2+2?", "4")])])
    assert not any(layer.self_attn.updates["v"] for layer in vlm.model.layers)


def count(heads):
    return sum(len(hs) for hs in heads.values())


@pytest.mark.parametrize("tau", [0, 0.3, 0.5, 1, 5])
@pytest.mark.parametrize("L, G", [(36, 2), (7, 4)])
def test_the_budget_is_met_exactly_for_every_budget_and_tau(tau, L, G):
    torch.manual_seed(L)
    for _ in range(3):
        scores = torch.rand(L, G) ** 8 * 10.0 ** torch.randint(-9, 4, (L, 1))
        scores[torch.rand(L) < 0.3] = 0
        for budget in range(1, L * G + 1):
            heads = select_heads(scores, budget, tau)
            assert count(heads) == budget == count(select_heads(0 * scores, budget, tau))
            assert all(len(set(hs)) == len(hs) and 0 < len(hs) <= G and max(hs) < G for hs in heads.values())


def test_tau_moves_the_budget_from_uniform_to_proportional_and_within_a_layer_the_highest_scores_win():
    assert select_heads(torch.tensor([[1.0, 9.0, 3.0, 2.0]]), 2) == {0: [1, 2]}
    scores = torch.tensor([[8.0] * 8, [2.0] * 8, [0.5] * 8, [0.5] * 8])
    for tau, shares in ((0, [2, 2, 2, 2]), (0.5, [4, 2, 1, 1]), (9, [8, 0, 0, 0])):
        heads = select_heads(scores, 8, tau)
        assert [len(heads.get(layer, [])) for layer in range(4)] == shares


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_scores_that_mean_nothing_are_errors(bad):
    with pytest.raises(ValueError, match="finite"):
        select_heads(torch.tensor([[1.0, bad]]), 1)


def test_random_heads_meet_the_budget_are_seeded_and_reach_every_head(vlm):
    assert random_heads(vlm.config, 3, 1) == random_heads(vlm.config, 3, 1)
    drawn = [random_heads(vlm.config, 2, seed) for seed in range(200)]
    assert {count(heads) for heads in drawn} == {2}
    times = Counter((layer, head) for heads in drawn for layer, hs in heads.items() for head in hs)
    assert len(times) == 6 and min(times.values()) > 40 and max(times.values()) < 95  # 66.7 expected of each


def test_a_selection_goes_through_its_file_and_a_wrong_one_is_refused(tmp_path, vlm):
    scores, heads = torch.rand(3, 2), {0: [0, 1], 2: [1]}
    probe.save_selection(tmp_path / "heads.json", heads, scores.tolist())
    assert probe.load_selection(tmp_path / "heads.json", vlm.config) == (heads, scores.tolist())
    wrong = ['{"heads": {"9": [0]}, "scores": null}', '{"heads": {}, "scores": null}', '{"heads": {"a": [0]}}', "[]"]
    wrong += ['{"heads": {"0": [0]}, "scores": [[1, 1], [1, 1], [1, -1]]}', '{"heads": {"0": [0]}, "scores": [[1, 1], [1, 1]]}']
    for content in wrong:
        (tmp_path / "heads.json").write_text(content)
        with pytest.raises(InputError, match="heads.json: not a head selection"):
            probe.load_selection(tmp_path / "heads.json", vlm.config)

"""The probe scores what it says, and the budget is always met."""

import json

import pytest
import torch
from conftest import picture, randomised

from data import Example
from imagelora import ImageLoRA
from parts.files import InputError
from probe import (
    head_scores,
    load_selection,
    random_heads,
    save_selection,
    select_heads,
)


@pytest.fixture
def batches(processor):
    return [processor([Example([picture(60, 90, i)], "Where is it?", f"[{i}, 2, 3, 4]")]) for i in range(3)]


@pytest.mark.parametrize("criterion", ["rank1", "gate"])
def test_a_head_whose_output_projection_is_zero_scores_exactly_zero(vlm, batches, criterion):
    """Value head 1 of layer 1 is read by query heads 2 and 3: without their columns of W_O nothing reaches the loss."""
    K = vlm.config.head_size
    vlm.model.layers[1].self_attn.o_proj.weight.data[:, 2 * K : 4 * K] = 0
    scores = head_scores(vlm, batches, criterion)
    assert scores.shape == (3, 2) and scores[1, 1] == 0
    others = scores.flatten().tolist()
    del others[3]
    assert all(s > 0 for s in others)


@pytest.mark.parametrize("criterion", ["rank1", "gate"])
def test_scores_are_summed_over_batches_after_squaring(vlm, batches, criterion):
    single = [head_scores(vlm, [b], criterion) for b in batches]
    assert torch.allclose(head_scores(vlm, batches, criterion), sum(single), rtol=1e-5)


def test_the_score_is_the_squared_gradient_of_a_rank_1_update(vlm, batches):
    """Checked by central differences: along its own gradient the loss has the slope score(h)."""
    scores = head_scores(vlm, batches[:1], seed=3)
    torch.manual_seed(3)
    probe = ImageLoRA(vlm.config, {i: [0, 1] for i in range(3)}, rank=1, alpha=1, gamma=1.0).attach(vlm)
    step = 0.1
    for layer, head in ((0, 0), (1, 1), (2, 0)):
        B = probe.layers[str(layer)].B
        (gradient,) = torch.autograd.grad(vlm.loss(batches[0]), B)
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                B[head] = sign * step * gradient[head]
                losses.append(vlm.loss(batches[0]).item())
            B[head] = 0
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(scores[layer, head].item(), rel=1e-2)


def test_the_probe_leaves_the_model_as_it_was_and_is_a_function_of_its_seed(vlm, batches):
    frozen, state = vlm(batches[0]), torch.get_rng_state()
    one, same, other = (head_scores(vlm, batches, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(vlm(batches[0]), frozen) and torch.equal(torch.get_rng_state(), state)
    assert not any(layer.self_attn.adapters["v"] for layer in vlm.model.layers)


def test_a_batch_without_visual_tokens_and_an_unknown_criterion_are_errors(vlm, processor, batches):
    with pytest.raises(ValueError, match="no visual token"):
        head_scores(vlm, [processor([Example([], "2+2?", "4")])])
    with pytest.raises(ValueError, match="rank1, gate"):
        head_scores(vlm, batches, "magic")
    assert not any(layer.self_attn.adapters["v"] for layer in vlm.model.layers)


def count(heads):
    return sum(len(hs) for hs in heads.values())


@pytest.mark.parametrize("tau", [0, 0.3, 0.5, 1, 2, 5])
def test_the_budget_is_met_exactly_for_every_budget_and_tau(tau):
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        L, G = (36, 2) if seed < 2 else (7, 4)
        scores = torch.rand(L, G, generator=generator) ** 8 * 10.0 ** torch.randint(-9, 4, (L, 1), generator=generator)
        scores[torch.rand(L, generator=generator) < 0.3] = 0
        for budget in range(1, L * G + 1):
            heads = select_heads(scores, budget, tau)
            assert count(heads) == budget
            assert all(len(set(hs)) == len(hs) and 0 < len(hs) <= G and max(hs) < G for hs in heads.values())


def test_scores_of_zero_everywhere_still_meet_the_budget():
    assert count(select_heads(torch.zeros(5, 4), 7)) == 7


def test_within_a_layer_the_highest_scores_win():
    scores = torch.tensor([[1.0, 9.0, 3.0, 2.0]])
    assert [select_heads(scores, k) for k in (1, 2, 3)] == [{0: [1]}, {0: [1, 2]}, {0: [1, 2, 3]}]


def test_tau_moves_the_budget_from_uniform_to_proportional():
    scores = torch.tensor([[8.0] * 8, [2.0] * 8, [0.5] * 8, [0.5] * 8])

    def shares(tau):
        return [len(select_heads(scores, 8, tau).get(layer, [])) for layer in range(4)]

    assert shares(0) == [2, 2, 2, 2]
    assert shares(0.5) == [4, 2, 1, 1]
    assert shares(1)[0] in (5, 6) and shares(1)[1] in (1, 2)
    assert shares(9) == [8, 0, 0, 0]


@pytest.mark.parametrize("budget", [0, -1, 21])
def test_an_impossible_budget_is_an_error(budget):
    with pytest.raises(ValueError, match="choose 1 to 20"):
        select_heads(torch.ones(5, 4), budget)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_scores_that_mean_nothing_are_an_error(bad):
    with pytest.raises(ValueError, match="finite"):
        select_heads(torch.tensor([[1.0, bad]]), 1)


def test_random_heads_meet_the_budget_are_seeded_and_reach_every_head(vlm):
    assert random_heads(vlm.config, 3, 1) == random_heads(vlm.config, 3, 1)
    drawn = [random_heads(vlm.config, 2, seed) for seed in range(200)]
    assert all(count(heads) == 2 for heads in drawn)
    times = torch.zeros(3, 2)
    for heads in drawn:
        for layer, hs in heads.items():
            times[layer, hs] += 1
    assert times.min() > 40 and times.max() < 95  # 66.7 expected of each


def test_a_selection_goes_through_its_file_and_a_wrong_one_is_refused(tmp_path, vlm):
    scores = torch.rand(3, 2)
    heads = select_heads(scores, 4)
    save_selection(tmp_path / "heads.json", heads, scores.tolist())
    again, scores_again = load_selection(tmp_path / "heads.json", vlm.config)
    assert again == heads and scores_again == scores.tolist()
    for wrong in (
        {"heads": {"9": [0]}, "scores": None},
        {"heads": {}, "scores": None},
        {"no": 1},
        {"heads": [1]},
        {"heads": {"a": [0]}},
        [],
    ):
        (tmp_path / "heads.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="heads.json: not a head selection"):
            load_selection(tmp_path / "heads.json", vlm.config)


def test_a_model_in_training_can_be_probed_and_keeps_its_adapter(vlm, batches):
    adapter = ImageLoRA(vlm.config, {0: [0], 2: [1]}).attach(vlm)
    at_start = head_scores(vlm, batches)
    randomised(adapter)
    tuned = vlm(batches[0])
    later = head_scores(vlm, batches)
    assert torch.equal(vlm(batches[0]), tuned) and not torch.allclose(at_start, later)
    adapter.detach()
    assert torch.equal(at_start, head_scores(vlm, batches))  # B = 0: the frozen model

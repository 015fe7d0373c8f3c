"""The method with one thing changed: ablations are their formulas, criteria what they say."""

import pytest
import torch
from conftest import picture, randomised
from torch.utils.flop_counter import FlopCounterMode

import train
from data import Example
from harness.ablations import Ablation, parse_ablations
from imagelora import ImageLoRA, load_adapter
from parts.files import InputError
from probe import head_scores

HEADS = {0: [1], 2: [0, 1]}


@pytest.fixture
def batches(processor):
    return [processor([Example([picture(60, 90, i)], "Where is it?", f"[{i}, 2, 3, 4]")]) for i in range(3)]


# -- ablations

SWITCHES = [
    {"path": "k"}, {"path": "q"}, {"path": "o"}, {"tokens": "text"}, {"tokens": "all"}, {"norm": False},
    {"shared": "none"}, {"shared": "model"}, {"outer": True}, {"outer": True, "shared": "none"}, {"gamma": None},
]  # fmt: skip


def dense(update, path, x, y, visual_mask, config):
    """An ablated update, head by head, with the token mask as a factor."""
    M = {"visual": visual_mask, "text": ~visual_mask, "all": torch.ones_like(visual_mask)}[update.tokens][..., None]
    W = config.head_size * (2 if path in "qo" else 1)
    out = y.clone()
    for i, h in enumerate(update.heads.tolist()):
        here = slice(h * W, (h + 1) * W)
        A = update.A[i] if update.A.dim() == 3 else update.A
        if path == "o":
            out += update.s * (M * x[..., here]) @ A @ update.B
        else:
            B = torch.outer(update.c[i], update.d[i]) if update.outer else update.B[i]
            out[..., here] += update.s * (M * x) @ A @ B
    return out


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_ablation_is_its_formula_and_leaves_the_frozen_model_at_step_0(vlm, mixed, switch, tmp_path):
    frozen, path = vlm(mixed), switch.get("path", "v")
    adapter = Ablation(vlm.config, HEADS, rank=3, **switch).attach(vlm)
    assert (vlm(mixed) - frozen).abs().max() <= 1e-6
    update = randomised(adapter).layers["2"]
    B, T = mixed.input_ids.shape
    x, y = torch.randn(B, T, 64), torch.randn(B, T, {"q": 64, "o": 64}.get(path, 32))
    expected = dense(update, path, x, y, mixed.visual_mask, vlm.config)
    assert (update(y.clone(), x, mixed.visual_index) - expected).abs().max() <= 1e-6 * expected.abs().max()
    tuned = vlm(mixed)
    assert (tuned - frozen).abs().max() > 1e-3
    untouched = torch.equal(tuned[1], frozen[1])  # the row without an image
    assert untouched == (switch.get("tokens", "visual") == "visual")
    adapter.save(tmp_path / "a.safetensors")
    adapter.detach()
    load_adapter(tmp_path / "a.safetensors", vlm)
    assert torch.equal(vlm(mixed), tuned)


def test_the_switches_of_an_ablation_are_what_they_say(vlm):
    def update(**switch):
        return Ablation(vlm.config, HEADS, **switch).layers["2"]

    assert update(norm=False).s == update().s * 2**0.5
    assert update(shared="none").A.shape == (2, 64, 8) and update().A.shape == (64, 8)
    assert update(outer=True).c.shape == (2, 8) and update(outer=True).d.shape == (2, 16)
    assert update(gamma=None).gamma == 1 and not update(gamma=None).gamma.requires_grad


def test_an_ablation_that_has_the_papers_A_starts_from_the_same_one(vlm):
    def drawn(kind, **switch):
        torch.manual_seed(5)
        return [update.A for update in kind(vlm.config, HEADS, **switch).layers.values()]

    for switch in ({"norm": False}, {"path": "k"}, {"tokens": "all"}, {"gamma": None}):
        assert all(map(torch.equal, drawn(Ablation, **switch), drawn(ImageLoRA)))


def test_an_A_of_the_whole_model_is_one_matrix_also_after_it_was_saved(vlm, tmp_path):
    def size(adapter):
        return sum(p.numel() for p in adapter.parameters())

    adapter = Ablation(vlm.config, HEADS, shared="model").attach(vlm)
    assert size(adapter) == size(Ablation(vlm.config, HEADS)) - 64 * 8  # two layers, one A
    adapter.save(tmp_path / "a.safetensors")
    adapter.detach()
    loaded = load_adapter(tmp_path / "a.safetensors", vlm)
    assert loaded.layers["0"].A is loaded.layers["2"].A and size(loaded) == size(adapter)


def test_an_outer_product_learns_from_the_first_step(vlm, mixed):
    adapter = Ablation(vlm.config, HEADS, outer=True, gamma=1.0).attach(vlm)
    vlm.loss(mixed).backward()
    for update in adapter.layers.values():
        assert (update.d.grad.abs().amax(dim=1) > 0).all()


def test_switches_that_exclude_each_other_are_refused(vlm):
    for switch in ({"path": "o", "shared": "none"}, {"path": "o", "outer": True}):
        with pytest.raises(InputError, match="path=o"):
            Ablation(vlm.config, HEADS, **switch)
    with pytest.raises(InputError, match="shared=True: choose from"):
        Ablation(vlm.config, HEADS, shared=True)


def test_the_command_line_names_what_differs_from_the_paper(vlm):
    said = ["path=k", "tokens=visual", "norm=off", "outer=off", "gamma=fixed"]
    changed = parse_ablations(said)
    assert changed == {"path": "k", "norm": False, "gamma": None}
    assert Ablation(vlm.config, HEADS, **changed).settings["norm"] is False
    for wrong in ("path=", "path=x", "width=3", "norm=False"):
        with pytest.raises(InputError, match=f"--ablate {wrong}: choose from path="):
            parse_ablations([wrong])
    with pytest.raises(InputError, match="path=o"):
        parse_ablations(["path=o", "outer=on"])


def test_a_switch_on_the_command_line_makes_the_method_an_ablation():
    for setting in ("shared=model", "shared=none", "outer=on", "norm=off", "gamma=fixed"):
        assert train.arguments(["--ablate", setting]).method == "ablation"
    assert train.arguments(["--ablate", "shared=layer", "outer=off"]).method == "image-lora"


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_the_flops_of_ablations_equal_torchs_counter(vlm, switch):
    adapter = randomised(Ablation(vlm.config, HEADS, rank=4, **switch))
    path = switch.get("path", "v")
    with FlopCounterMode(display=False) as counter:
        for update in adapter.layers.values():
            x = torch.randn(1, 20, 64, requires_grad=True)
            update(torch.randn(1, 20, {"q": 64, "o": 64}.get(path, 32)), x, torch.arange(7)).sum().backward()
    assert adapter.flops(20, 7) == counter.get_total_flops()


# -- criteria


def test_the_exact_score_is_the_squared_norm_of_inputs_times_gradients_of_the_values(vlm, batches):
    """|| X_v^T dLoss/dV^(h) ||_F^2, by a zero added to the values, whose gradient is that of the values."""
    kept = []

    def add_zero(v, x, visual_index):
        zero = torch.zeros(len(visual_index), v.shape[-1], requires_grad=True)
        kept.append((x.flatten(0, 1)[visual_index], zero))
        return v.flatten(0, 1).index_add(0, visual_index, zero).view_as(v)

    scores = 0
    for batch in batches:
        kept.clear()
        for layer in vlm.model.layers:
            layer.self_attn.adapters["v"].append(add_zero)
        G = torch.autograd.grad(vlm.loss(batch), [zero for _, zero in kept])
        for layer in vlm.model.layers:
            layer.self_attn.adapters["v"].clear()
        heads = [(x.T @ g).unflatten(1, (vlm.config.value_heads, -1)) for (x, _), g in zip(kept, G)]  # [D, G, K] each
        scores = scores + torch.stack([M.square().sum(dim=(0, 2)) for M in heads]).detach()
    scores = scores / vlm.config.value_heads  # s^2, since all heads of a layer are adapted: s = 1 / sqrt(n)
    torch.testing.assert_close(head_scores(vlm, batches, "exact"), scores, rtol=1e-4, atol=0)
    torch.testing.assert_close(head_scores(vlm, batches, "exact", seed=7), scores, rtol=1e-4, atol=0)  # draws nothing


def test_weight_norms_look_at_no_batch(vlm):
    W = vlm.model.layers[2].self_attn.v_proj.weight[16:32]  # value head 1
    assert head_scores(vlm, None, "weight-norm")[2, 1].item() == pytest.approx(W.square().sum().item(), rel=1e-5)

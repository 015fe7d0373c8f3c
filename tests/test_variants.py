"""The method with one thing changed: ablations are their formulas, criteria what they say."""

import pytest
import torch
from conftest import randomised
from torch.utils.flop_counter import FlopCounterMode

import train
from harness.ablations import Ablation, parse_ablations
from imagelora import ImageLoRA, load_adapter
from parts.files import InputError
from probe import head_scores

HEADS = {0: [1], 2: [0, 1]}
SWITCHES = [
    {"path": "k"}, {"path": "q"}, {"path": "o"}, {"tokens": "text"}, {"tokens": "all"}, {"norm": False},
    {"shared": "model"}, {"outer": True}, {"gamma": None},
]  # fmt: skip


def dense(update, switch, x, y, visual_mask):
    """An ablated update, head by head, with the token mask as a factor."""
    tokens = {"visual": visual_mask, "text": ~visual_mask, "all": torch.ones_like(visual_mask)}
    M = tokens[switch.get("tokens", "visual")][..., None]
    s = 16 / 3 * update.gamma * (1 if "norm" in switch else len(update.heads) ** -0.5)
    path, out = switch.get("path", "v"), y.clone()
    W = 32 if path in "qo" else 16
    for i, h in enumerate(update.heads.tolist()):
        head = slice(h * W, (h + 1) * W)
        A = update.A[i] if update.A.dim() == 3 else update.A
        if path == "o":
            out += s * (M * x[..., head]) @ A @ update.B
        else:
            B = torch.outer(update.c[i], update.d[i]) if "outer" in switch else update.B[i]
            out[..., head] += s * (M * x) @ A @ B
    return out


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_ablation_is_its_formula_costs_its_flops_leaves_step_0_and_loads_again(vlm, mixed, switch, tmp_path):
    frozen, path = vlm(mixed), switch.get("path", "v")
    adapter = Ablation(vlm.config, HEADS, rank=3, **switch).attach(vlm)
    assert (vlm(mixed) - frozen).abs().max() <= 1e-6
    gamma = adapter.layers["2"].gamma
    assert (gamma.requires_grad, gamma.item()) == ((False, 1) if "gamma" in switch else (True, pytest.approx(0.01)))
    update = randomised(adapter).layers["2"]
    B, T = mixed.input_ids.shape
    x, y = torch.randn(B, T, 64, requires_grad=True), torch.randn(B, T, 64 if path in "qo" else 32)
    expected = dense(update, switch, x, y, mixed.visual_mask)
    with FlopCounterMode(display=False) as counter:
        for layer in adapter.layers.values():
            result = layer(y.clone(), x, mixed.visual_index)
            result.sum().backward()
    assert (result - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert adapter.flops(B * T, len(mixed.visual_index)) == counter.get_total_flops()
    tuned = vlm(mixed)
    assert (tuned - frozen).abs().max() > 1e-3
    untouched = torch.equal(tuned[1], frozen[1])  # the row without an image
    assert untouched == ("tokens" not in switch)
    adapter.save(tmp_path / "a.safetensors")
    adapter.detach()
    again = load_adapter(tmp_path / "a.safetensors", vlm)
    assert torch.equal(vlm(mixed), tuned) and len(list(again.parameters())) == len(list(adapter.parameters()))


@pytest.mark.parametrize("switch", [{"norm": False}, {"path": "k"}, {"tokens": "all"}, {"gamma": None}], ids=str)
def test_an_ablation_that_has_the_papers_A_starts_from_the_same_one(vlm, switch):
    torch.manual_seed(5)
    ours = ImageLoRA(vlm.config, HEADS).layers["2"].A
    torch.manual_seed(5)
    assert torch.equal(Ablation(vlm.config, HEADS, **switch).layers["2"].A, ours)


def test_an_outer_product_learns_from_the_first_step_and_an_A_of_the_whole_model_is_one_matrix(vlm, mixed):
    adapter = Ablation(vlm.config, HEADS, outer=True, shared="model").attach(vlm)
    vlm.loss(mixed).backward()
    assert all((update.d.grad.abs().amax(dim=1) > 0).all() for update in adapter.layers.values())
    assert adapter.layers["0"].A is adapter.layers["2"].A
    wide = Ablation(vlm.config, HEADS, rank=400, outer=True)  # X A c is as large as a column of X A
    assert wide.layers["2"].c.std().item() == pytest.approx(400**-0.5, rel=0.15)


def test_the_command_line_names_what_differs_from_the_paper_and_makes_the_method_an_ablation():
    words = ["path=k", "tokens=visual", "norm=off", "outer=off", "gamma=fixed"]
    assert parse_ablations(words) == {"path": "k", "norm": False, "gamma": None}
    assert train.parse_args(["--ablate", *words]).method == "ablation"
    assert train.parse_args(["--ablate", "shared=layer", "gamma=learned"]).method == "image-lora"


@pytest.mark.parametrize("words", ["path=", "path=x", "width=3", "norm=False", "path=o outer=on", "path=o shared=model"])
def test_what_is_no_switch_or_excludes_another_one_is_refused(words):
    with pytest.raises(InputError, match=f"--ablate {words.split()[0]}"):
        parse_ablations(words.split())


def test_weight_norms_look_at_no_batch(vlm):
    W = vlm.model.layers[2].self_attn.v_proj.weight[16:32]  # value head 1
    assert head_scores(vlm, None, "weight-norm")[2, 1].item() == pytest.approx(W.square().sum().item(), rel=1e-5)

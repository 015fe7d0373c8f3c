"""The paper's claims about Image-LoRA, as tests on a small random model of each family."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from cases import questions
from conftest import SMALL_CONFIGS, picture, randomised
from short_run import adapter_of, equal, lines_of, run
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data import Example
from experiments import many
from imagelora import ImageLoRA, LoRA, LoRALayer, load_adapter
from model import VLM, attend
from parts.backbones.layers import compute_twice
from parts.files import InputError, read_metadata, read_safetensors, write_safetensors

FAMILIES = SMALL_CONFIGS  # each test here runs for both
HEADS = {0: [1], 2: [0, 1]}
MAKE = {
    "image-lora": lambda c: ImageLoRA(c, {1: [0], 2: [0, 1]}, alpha=3),
    "lora": LoRA,
    "values": lambda c: LoRA(c, ("v",), rank=2),
    "everywhere": lambda c: LoRA(c, ("q", "k", "v", "o", "mlp", "encoder", "merger"), rank=4, alpha=3),
    "encoder": lambda c: LoRA(c, ("encoder",)),
    "merger": lambda c: LoRA(c, ("merger",)),
}


@pytest.fixture
def adapter(vlm):
    """An Image-LoRA with random numbers, as if trained; not attached."""
    return randomised(ImageLoRA(vlm.config, HEADS, rank=4, alpha=12))


def test_the_update_is_the_papers_formula_and_its_gradients_are_those_of_the_formula(vlm, mixed, adapter):
    """V~^(h) - V^(h) = (alpha / R) * gamma / sqrt(n) * x A B^(h) at a visual token; nothing at the others."""
    update, (B, T), K = adapter.layers["2"], mixed.input_ids.shape, vlm.config.head_size
    v, g = torch.randn(2, B, T, 2 * K)
    x = torch.randn(B, T, vlm.config.hidden, requires_grad=True)
    added, t = update.formula(v, x, mixed.visual_mask) - v, mixed.visual_index[0]
    by_hand = 12 / 4 * update.gamma / 2**0.5 * (x[0, t] @ update.A @ update.B[1])
    assert torch.allclose(added[0, t, K:], by_hand, rtol=1e-5, atol=1e-5) and (added[~mixed.visual_mask] == 0).all()
    results = []
    for out in (update(v.clone(), x, mixed.visual_index), update.formula(v, x, mixed.visual_mask)):
        results.append([out, *torch.autograd.grad((out * g).sum(), [x, update.A, update.B, update.gamma])])
    for gathered, formula in zip(*results):
        assert torch.allclose(gathered, formula, rtol=1e-5, atol=1e-5 * formula.abs().max().item())


def test_shapes_names_and_starting_values_are_those_of_the_design(vlm):
    torch.manual_seed(0)
    adapter, K = ImageLoRA(vlm.config, HEADS, rank=4), vlm.config.head_size
    shapes = {"layers.0.A": (64, 4), "layers.0.B": (1, 4, K), "layers.0.gamma": ()}
    shapes |= {"layers.2.A": (64, 4), "layers.2.B": (2, 4, K), "layers.2.gamma": ()}
    assert {name: tuple(p.shape) for name, p in adapter.named_parameters()} == shapes
    assert adapter.layers["2"].B.abs().max() == 0 and adapter.layers["2"].gamma.item() == pytest.approx(0.01)
    assert adapter.layers["2"].A.std().item() == pytest.approx(1 / 4, rel=0.2)


@pytest.mark.parametrize("heads", [{0: []}, {3: [0]}, {-1: [0]}, {0: [2]}, {0: [-1]}, {0: [1, 1]}])
def test_heads_that_do_not_exist_are_refused(vlm, heads):
    with pytest.raises(ValueError, match="head"):
        ImageLoRA(vlm.config, heads)


@pytest.mark.parametrize("make", MAKE)
def test_at_step_0_the_adapted_model_is_the_frozen_one_bit_for_bit(vlm, mixed, make):
    frozen = vlm(mixed)
    MAKE[make](vlm.config).attach(vlm)
    assert torch.equal(vlm(mixed), frozen)


@pytest.mark.parametrize("make", ["image-lora", "encoder", "merger"])
def test_rows_without_an_image_are_untouched_bit_for_bit_by_a_trained_adapter(vlm, mixed, processor, make):
    alone = processor([Example([], "How many apples are left?"), Example([], "你好")])
    frozen, frozen_alone, tokens = vlm(mixed), vlm(alone), vlm.generate(alone, 8)
    randomised(MAKE[make](vlm.config)).attach(vlm)
    adapted = vlm(mixed)
    assert torch.equal(adapted[1], frozen[1])
    assert not torch.equal(adapted[0], frozen[0]) and not torch.equal(adapted[2], frozen[2])
    assert torch.equal(vlm(alone), frozen_alone) and vlm.generate(alone, 8) == tokens


def test_only_values_at_visual_positions_of_selected_heads_change(vlm, mixed):
    """Given the same layer input: queries, keys and attention weights stay, and so do all other values."""
    attention, calls = vlm.model.layers[2].self_attn, []
    x = torch.randn(*mixed.input_ids.shape, vlm.config.hidden)
    cos, sin = vlm.model.rotary(mixed.position_ids)

    def watched(q, k, v, mask):
        out, weights = attend(q, k, v, mask)
        calls.append((q, k, weights, v))
        return out

    attention.attention = watched
    for updates in ([], [randomised(ImageLoRA(vlm.config, {2: [1]})).layers["2"]]):
        attention.updates["v"] = updates
        attention(x, cos, sin, None, mixed.visual_index)
    assert all(torch.equal(before, after) for before, after in zip(calls[0][:3], calls[1][:3]))
    changed = (calls[0][3] != calls[1][3]).any(-1)  # [B, G, T]
    assert torch.equal(changed[:, 1], mixed.visual_mask) and not changed[:, 0].any()


def test_decoding_needs_no_adapter_arithmetic(vlm, processor, adapter):
    calls = []
    adapter.attach(vlm).layers["0"].register_forward_hook(lambda module, args, out: calls.append(args[2]))
    batch = processor([Example([picture(60, 60)], "Where?")])
    assert len(vlm.generate(batch, 8)[0]) == 8
    assert torch.equal(calls[0], batch.visual_index)  # the prefill; then one call a token, at no position
    assert calls[1:] == [None] * 7


@pytest.mark.parametrize("make", ["image-lora", "encoder"])
def test_many_adapters_decode_together_what_each_decodes_alone(vlm, processor, make):
    """Of different lengths and images; one is asked two questions."""
    asked = {60: ["Where?", "What is it?"], 120: ["Which of them is it, and why?"], 90: ["Who?"]}
    examples = [[Example([picture(60, side)], prompt) for prompt in prompts] for side, prompts in asked.items()]
    batches, frozen, alone = [processor(of_adapter, share_images=True) for of_adapter in examples], [], []
    adapters = [randomised(MAKE[make](vlm.config), seed, size=0.5) for seed in range(3)]
    for adapter, batch in zip(adapters, batches):
        frozen += vlm.generate(batch, 8)
        adapter.attach(vlm)
        alone += vlm.generate(batch, 8)
        adapter.detach()
    assert many.generate(vlm, adapters, batches, 8) == alone != frozen
    with pytest.raises(ValueError, match="lora acts on text"):
        many.generate(vlm, [LoRA(vlm.config)], batches[:1])


def test_gradients_are_central_differences_of_the_loss(vlm, processor, adapter, monkeypatch):
    """In float64. What layer 0 adds reaches the loss also through the input of layer 2's update."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # norms and residual stream, too
    batch = processor([Example([picture(60, 60, 1), picture(60, 90, 2)], "Which?", "the left one")])
    adapter.double().attach(vlm.double())
    vlm.loss(batch).backward()
    for p in adapter.parameters():
        number, i = p.data.view(-1), p.grad.abs().argmax()
        losses = []
        for step in (1e-5, -2e-5):
            number[i] += step
            losses.append(vlm.loss(batch).item())
        number[i] += 1e-5
        assert p.grad.view(-1)[i].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4)


def test_only_the_adapter_learns_and_its_parameters_are_float32_in_a_bfloat16_model_too(checkpoint, mixed):
    vlm = VLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    adapter, graph = randomised(ImageLoRA(vlm.config, {1: [0], 2: [1]})).attach(vlm), []
    for module in (vlm.visual, *vlm.model.layers):
        module.register_forward_hook(lambda module, args, out: graph.append(out.requires_grad))
    vlm.loss(mixed).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in adapter.parameters())
    assert all(p.grad is None for p in vlm.parameters())
    assert graph == [False, False, True, True]  # nothing is kept below the lowest adapted layer


def test_questions_that_share_a_row_give_the_loss_and_gradients_of_separate_rows(vlm, processor, adapter):
    examples, parameters = questions("the left one"), list(adapter.attach(vlm).parameters())
    separate, shared = processor(examples), processor(examples, share_images=True)
    assert shared.examples == [(0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)]
    assert len(shared.visual_index) < len(separate.visual_index)
    losses = [vlm.loss(separate), vlm.loss(shared)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    # As one vector: the gradient of a gamma alone is a sum whose terms may cancel, down to the rounding of the terms.
    a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in losses)
    assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.mark.parametrize("make", ["image-lora", "lora", "everywhere"])
def test_checkpointing_changes_no_gradient_and_keeps_less_for_the_backward_pass(vlm, mixed, make):
    adapter = randomised(MAKE[make](vlm.config)).attach(vlm)
    gradients, kept = [], []
    for blocks in ([], [*vlm.visual.blocks, *vlm.model.layers[:-1]]):
        compute_twice(blocks)
        kept.append(sizes := [])
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = vlm.loss(mixed)
        gradients.append(torch.autograd.grad(loss, list(adapter.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients)) and sum(kept[1]) < 0.85 * sum(kept[0])


NAMES = {target: rf"model\.layers\.\d+\.self_attn\.{target}_proj" for target in "qkvo"}  # of the Linear layers of a target
NAMES |= {"mlp": r"model\.layers\.\d+\.mlp\.\w+", "encoder": r"visual\.blocks\.\d+\.attn\.\w+", "merger": r"visual\.merger\..*"}


@pytest.mark.parametrize("target", NAMES)
def test_lora_is_the_model_whose_weights_have_alpha_over_R_times_A_B_added(vlm, mixed, target):
    """At every position, visual or not, of every row, in every Linear layer of these names."""
    frozen, adapter = vlm(mixed), randomised(LoRA(vlm.config, (target,), rank=4, alpha=3), size=0.1).attach(vlm)
    tuned = vlm(mixed)
    adapter.detach()
    linears = [m for name, m in vlm.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(NAMES[target], name)]
    for linear, update in zip(linears, adapter.updates.values(), strict=True):
        linear.weight.data = linear.weight + 3 / 4 * (update.A @ update.B).T
    assert (tuned - frozen)[0].abs().max() > 1e-3 and (tuned - vlm(mixed)).abs().max() <= 1e-4
    assert (tuned[1] == frozen[1]).all() == (target in ("encoder", "merger"))  # a row without an image


def test_an_adapter_in_the_encoder_sees_no_embedding_that_the_frozen_encoder_gave(checkpoint, vlm, tmp_path):
    """Neither in training nor where its file is evaluated."""
    assert {name for name in MAKE if MAKE[name](vlm.config).in_encoder} == {"everywhere", "encoder", "merger"}
    trained = ["--method=lora", "--targets=v,encoder,merger", "--lr=0.1"]
    runs = [[*trained, "--cache-vision=0"], trained, [f"--adapter={tmp_path}/1/adapter.safetensors"]]
    for i, flags in enumerate(runs):
        run(checkpoint, tmp_path / f"{i}", *flags)
    texts = [[line["text"] for line in lines_of(tmp_path / name / "predictions.jsonl")] for name in "012"]
    assert texts[0] == texts[1] == texts[2] and texts[0][:6] != texts[0][12:18]  # base, tuned
    assert equal(adapter_of(tmp_path / "0"), adapter_of(tmp_path / "1"))


def test_lora_starts_and_computes_as_pefts():
    """A uniform within 1 / sqrt(inputs), B zero; afterwards the same numbers from the same A and B."""
    peft = pytest.importorskip("peft", reason="peft is not installed (tests/requirements.txt)")
    plain, x = nn.Linear(64, 48), torch.randn(2, 7, 64)
    config = peft.LoraConfig(r=32, lora_alpha=12, target_modules=["0"])
    theirs, ours = peft.get_peft_model(nn.Sequential(plain), config), LoRALayer(64, 48, 32, 12)
    A, B = (getattr(theirs.base_model.model[0], f"lora_{name}").default.weight for name in "AB")
    assert ours.B.abs().max() == B.abs().max() == 0 and ours.A.abs().max() <= 1 / 8 >= A.abs().max()
    assert ours.A.std().item() == pytest.approx(A.std().item(), rel=0.1)
    A.data, B.data = randomised(ours).A.T, ours.B.T
    torch.testing.assert_close(ours(F.linear(x, plain.weight, plain.bias), x, torch.arange(5)), theirs(x))


@pytest.mark.parametrize("make", MAKE)
def test_the_flop_formulas_equal_torchs_counter(vlm, processor, make):
    batch, calls = processor([Example([picture(60, 60), picture(90, 60)], "Which?", "the left one")]), []
    adapter = MAKE[make](vlm.config).attach(vlm)
    for update in adapter.updates.values():
        update.register_forward_pre_hook(lambda update, inputs: calls.append((update.forward, *inputs)))
    vlm(batch)  # what each update gets in a forward pass
    with FlopCounterMode(display=False) as counter:
        for forward, y, x, visual_index in calls:
            forward(y.detach().clone(), x.detach().requires_grad_(), visual_index).sum().backward()
    assert adapter.flops(batch.input_ids.numel(), len(batch.visual_index)) == counter.get_total_flops()


@pytest.mark.parametrize("make", MAKE)
def test_saved_and_loaded_adapters_are_the_same_to_the_bit(tmp_path, checkpoint, vlm, mixed, make):
    adapter, frozen = randomised(MAKE[make](vlm.config), size=0.1).attach(vlm), VLM.from_pretrained(checkpoint)
    adapter.notes = {"max_pixels": 1234}
    adapted = vlm(mixed)
    adapter.save(tmp_path / "a.safetensors")
    adapter.detach()
    assert torch.equal(vlm(mixed), frozen(mixed))  # exactly what it was
    again = load_adapter(tmp_path / "a.safetensors", vlm)
    assert torch.equal(vlm(mixed), adapted)
    assert again.notes == {"max_pixels": 1234} and type(again) is type(adapter)


def test_a_file_says_what_it_needs_as_text_and_those_written_up_to_76fa6e7_load_too(tmp_path, checkpoint, vlm, adapter):
    """These name no model and carry a checksum."""
    adapter.attach(vlm).save(file := tmp_path / "a.safetensors")
    adapter.detach()
    metadata = read_metadata(file)
    assert metadata["base"] == vlm.fingerprint() and metadata.pop("model") == str(checkpoint)
    settings = {"heads": {"0": [1], "2": [0, 1]}, "rank": 4, "alpha": 12, "gamma": 0.01}
    assert json.loads(metadata["settings"]) == settings and metadata["format_version"] == "2"
    write_safetensors(file, dict(read_safetensors(file)), metadata | {"checksum": "12345678"})
    assert torch.equal(load_adapter(file, vlm).layers["0"].A, adapter.layers["0"].A)


def test_any_other_file_is_refused_in_a_line_that_says_why(tmp_path, vlm, adapter):
    adapter.attach(vlm).save(file := tmp_path / "a.safetensors")
    adapter.detach()
    tensors, metadata, other = dict(read_safetensors(file)), read_metadata(file), "not an adapter file of format 2"
    wrong = {"base": "made for another checkpoint", "method": f"{other}, made by .* image-lora, lora", "format_version": other}
    for name, message in wrong.items():
        write_safetensors(file, tensors, metadata | {name: "1"})
        with pytest.raises(InputError, match=message):
            load_adapter(file, vlm)
    del tensors["layers.0.gamma"]
    write_safetensors(file, tensors, metadata)
    with pytest.raises(InputError, match=r"not an adapter that fits this model .*layers\.0\.gamma"):
        load_adapter(file, vlm)

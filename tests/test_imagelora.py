"""The paper's claims about Image-LoRA, as tests on a small random model of each family."""

import json

import pytest
import torch
from conftest import SMALL_CONFIGS, picture, randomised, write_checkpoint
from torch.utils.flop_counter import FlopCounterMode

from data import Example
from imagelora import ImageLoRA, LoRA, load_adapter
from model import VLM, Attention, attend
from parts.backbones.layers import compute_twice, weights_kept
from parts.files import InputError, read_metadata, read_safetensors, write_safetensors

FAMILIES = SMALL_CONFIGS  # each test here runs for both
HEADS = {0: [1], 2: [0, 1]}


@pytest.mark.parametrize("make", [lambda c: ImageLoRA(c, HEADS), LoRA])
def test_at_step_0_the_adapted_model_is_the_frozen_one_bit_for_bit(vlm, mixed, make):
    frozen = vlm(mixed)
    make(vlm.config).attach(vlm)
    assert torch.equal(vlm(mixed), frozen)


def test_rows_without_an_image_are_untouched_bit_for_bit_by_any_trained_adapter(vlm, mixed, processor):
    alone = processor([Example([], "How many apples are left?"), Example([], "你好")])
    frozen, frozen_alone, tokens = vlm(mixed), vlm(alone), vlm.generate(alone, 8)
    for seed in range(3):
        adapter = randomised(ImageLoRA(vlm.config, HEADS), seed).attach(vlm)
        adapted = vlm(mixed)
        assert torch.equal(adapted[1], frozen[1])
        assert not torch.equal(adapted[0], frozen[0]) and not torch.equal(adapted[2], frozen[2])
        assert torch.equal(vlm(alone), frozen_alone)
        assert vlm.generate(alone, 8) == tokens
        adapter.detach()


def test_standard_lora_does_change_rows_without_an_image(vlm, mixed):
    frozen = vlm(mixed)
    randomised(LoRA(vlm.config)).attach(vlm)
    assert not torch.equal(vlm(mixed)[1], frozen[1])


def test_only_values_at_visual_positions_of_selected_heads_change(vlm, mixed):
    """Given the same layer input: queries, keys and attention weights stay, and so do all other values."""
    attention = vlm.model.layers[2].self_attn
    x = torch.randn(*mixed.input_ids.shape, vlm.config.hidden)
    cos, sin = vlm.model.rotary(mixed.position_ids)
    mask = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool).tril()

    def measured(updates):
        """q, k and v as they leave their paths, and the attention weights."""
        found = {}

        def watch(path):
            def keep(y, x, visual_index):
                found[path] = y.clone()
                return y

            return keep

        attention.adapters = {path: [*updates.get(path, []), watch(path)] for path in "qkvo"}
        with weights_kept([vlm.model.layers[2]], attend) as weights:
            attention(x, cos, sin, mask, mixed.visual_index)
        return found | {"weights": weights[0]}

    before = measured({})
    update = randomised(ImageLoRA(vlm.config, {2: [1]})).layers["2"]
    after = measured({"v": [update]})
    for same in ("q", "k", "weights"):
        assert torch.equal(before[same], after[same])
    K = vlm.config.head_size
    changed = (before["v"] != after["v"]).view(*x.shape[:2], -1, K).any(-1)  # [B, T, G]
    assert torch.equal(changed[..., 1], mixed.visual_mask)
    assert not changed[..., 0].any()


def test_the_gathered_path_equals_the_formula_and_so_do_its_gradients(vlm, mixed):
    config, (B, T) = vlm.config, mixed.input_ids.shape
    update = randomised(ImageLoRA(config, {1: [0, 1]}, rank=4)).layers["1"]
    torch.manual_seed(1)
    v, g = torch.randn(B, T, 2 * config.head_size), torch.randn(B, T, 2 * config.head_size)
    results = []
    for path in ("gathered", "formula"):
        x = torch.randn(B, T, config.hidden, generator=torch.Generator().manual_seed(2)).requires_grad_()
        out = update(v.clone(), x, mixed.visual_index) if path == "gathered" else update.formula(v, x, mixed.visual_mask)
        results.append([out, *torch.autograd.grad((out * g).sum(), [x, update.A, update.B, update.gamma])])
    for gathered, formula in zip(*results):
        assert torch.allclose(gathered, formula, rtol=1e-5, atol=1e-5 * formula.abs().max().item())


def test_the_update_is_the_papers_formula_for_one_token(vlm):
    """V~^(h) - V^(h) = (alpha / R) * gamma / sqrt(n) * x A B^(h), computed by hand for one visual token."""
    adapter = randomised(ImageLoRA(vlm.config, {0: [0, 1]}, rank=4, alpha=12))
    u, x = adapter.layers["0"], torch.randn(1, 3, vlm.config.hidden)
    v = u(torch.zeros(1, 3, 2 * vlm.config.head_size), x, torch.tensor([1]))
    by_hand = 12 / 4 * u.gamma / 2**0.5 * (x[0, 1] @ u.A @ u.B[1])
    assert torch.allclose(v[0, 1, vlm.config.head_size :], by_hand, rtol=1e-5, atol=1e-5)
    assert (v[0, [0, 2]] == 0).all()


def test_shapes_names_and_starting_values_are_those_of_the_design(vlm):
    torch.manual_seed(0)
    adapter, K = ImageLoRA(vlm.config, HEADS, rank=4), {"qwen2_5_vl": 16, "qwen3_vl": 24}[vlm.config.family]
    shapes = {name: tuple(p.shape) for name, p in adapter.named_parameters()}
    assert shapes == {
        "layers.0.A": (64, 4), "layers.0.B": (1, 4, K), "layers.0.gamma": (),
        "layers.2.A": (64, 4), "layers.2.B": (2, 4, K), "layers.2.gamma": (),
    }  # fmt: skip
    assert adapter.layers["2"].B.abs().max() == 0 and adapter.layers["2"].gamma.item() == pytest.approx(0.01)
    assert adapter.layers["2"].A.std().item() == pytest.approx(1 / 4, rel=0.2)
    assert sum(p.numel() for p in adapter.parameters()) == sum(torch.Size(s).numel() for s in shapes.values())


def test_only_the_adapter_learns(vlm, mixed):
    adapter = randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
    vlm.loss(mixed).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())
    assert all(p.grad is None for p in vlm.parameters())


def test_one_batch_of_rows_gives_the_gradient_of_the_rows_one_by_one(vlm, processor):
    """Several images, a different set in each row: the mean over supervised tokens, weighted by their number."""
    examples = [
        Example([picture(90, 60)], "Where?", "[1, 2, 3, 4]"),
        Example([picture(60, 60, 1), picture(60, 90, 2)], "Which?", "left"),
    ]
    adapter = randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
    together = torch.autograd.grad(vlm.loss(processor(examples)), list(adapter.parameters()))
    single = [processor([e]) for e in examples]
    counts = [(b.labels != -100).sum().item() for b in single]
    loss = sum(vlm.loss(b) * n / sum(counts) for b, n in zip(single, counts))
    for a, b in zip(together, torch.autograd.grad(loss, list(adapter.parameters()))):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_questions_that_share_a_row_give_the_loss_and_gradients_of_separate_rows(vlm, processor):
    one, two = picture(90, 60), picture(60, 120, 1)
    examples = [
        Example([one], "Where is the ring?", "[1, 2, 3, 4]"),
        Example([one], "What colour?", "red"),
        Example([], "2+2?", "4"),
        Example([one], "And the star?", "[5, 6, 7, 80]"),
        Example([two, one], "Which?", "the left one"),
        Example([two, one], "How many things are there in all?", "four"),
        Example([two, one], "Why?", "no idea"),
    ]
    parameters = list(randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm).parameters())
    separate, shared = processor(examples), processor(examples, share_images=True)
    assert shared.examples == [(0, 1), (0, 2), (1, 0), (2, 0), (3, 1), (3, 2), (3, 3)]
    assert len(shared.visual_index) < len(separate.visual_index)
    losses = [vlm.loss(separate), vlm.loss(shared)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    # As one vector: the gradient of a gamma alone is a sum whose terms may cancel, down to the rounding of the terms.
    a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in losses)
    assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.mark.parametrize(
    "make", [lambda c: ImageLoRA(c, {1: [0], 2: [1]}), lambda c: LoRA(c)], ids=["image-lora", "lora"]
)
def test_checkpointing_changes_no_gradient(vlm, mixed, make):
    adapter = randomised(make(vlm.config)).attach(vlm)
    gradients = []
    for twice in (False, True):
        if twice:
            compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
        gradients.append(torch.autograd.grad(vlm.loss(mixed), list(adapter.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_checkpointing_keeps_less_for_the_backward_pass(vlm, mixed):
    """Of the three layers the last is not computed twice: with the inputs of the others, less than half is kept."""
    LoRA(vlm.config).attach(vlm)
    kept = []
    for twice in (False, True):
        if twice:
            compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
        kept.append(0)

        def count(tensor, kept=kept):
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            vlm.loss(mixed)
    assert kept[1] < kept[0] / 2


def test_no_graph_is_built_below_the_lowest_adapted_layer(vlm, mixed):
    randomised(ImageLoRA(vlm.config, {1: [0], 2: [1]})).attach(vlm)
    outputs = []
    for module in (vlm.visual, *vlm.model.layers):
        module.register_forward_hook(lambda module, args, out: outputs.append(out.requires_grad))
    vlm.loss(mixed)
    assert outputs == [False, False, True, True]


def test_batched_generation_equals_single_generation_with_an_adapter(vlm, processor):
    examples = [Example([picture(90, 60)], "Where?"), Example([], "Hi"), Example([picture(60, 90, 2)] * 2, "Which?")]
    randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
    assert vlm.generate(processor(examples), 10) == [vlm.generate(processor([e]), 10)[0] for e in examples]


def test_decoding_needs_no_adapter_arithmetic(vlm, processor):
    adapter = randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
    calls = []
    adapter.layers["0"].register_forward_hook(lambda module, args, out: calls.append(args[2]))
    batch = processor([Example([picture(60, 60)], "Where?")])
    assert len(vlm.generate(batch, 8)[0]) == 8
    assert torch.equal(calls[0], batch.visual_index)  # the prefill; then one call a token, at no position
    assert calls[1:] == [None] * 7


def test_detaching_restores_the_frozen_model_exactly(vlm, mixed):
    frozen = vlm(mixed)
    adapter = randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
    adapter.detach()
    assert torch.equal(vlm(mixed), frozen)
    adapter.attach(vlm)
    assert not torch.equal(vlm(mixed), frozen)


def test_a_second_adapter_is_refused(vlm):
    ImageLoRA(vlm.config, HEADS).attach(vlm)
    with pytest.raises(ValueError, match="attached already"):
        LoRA(vlm.config).attach(vlm)
    assert not any(layer.self_attn.adapters["q"] for layer in vlm.model.layers)


@pytest.mark.parametrize("make", [lambda c: ImageLoRA(c, HEADS, rank=4, alpha=3), lambda c: LoRA(c, ("v",), rank=2)])
def test_saved_and_loaded_adapters_are_the_same_to_the_bit(tmp_path, checkpoint, vlm, mixed, make):
    adapter = randomised(make(vlm.config)).attach(vlm)
    adapter.notes = {"max_pixels": 1234}
    adapted = vlm(mixed)
    adapter.save(tmp_path / "a.safetensors")
    fresh = VLM.from_pretrained(checkpoint)
    again = load_adapter(tmp_path / "a.safetensors", fresh)
    assert torch.equal(fresh(mixed), adapted)
    assert again.notes == {"max_pixels": 1234} and type(again) is type(adapter)
    assert read_metadata(tmp_path / "a.safetensors")["base"] == vlm.fingerprint()


def test_an_adapter_file_that_carries_a_checksum_loads(tmp_path, vlm):
    """Those written up to 76fa6e7 do."""
    adapter, file = randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm), tmp_path / "a.safetensors"
    adapter.save(file)
    write_safetensors(file, dict(read_safetensors(file)), read_metadata(file) | {"checksum": "12345678"})
    adapter.detach()
    assert torch.equal(load_adapter(file, vlm).layers["0"].A, adapter.layers["0"].A)


def test_an_adapter_refuses_another_base_and_any_other_set_of_tensors(tmp_path, vlm):
    file = tmp_path / "a.safetensors"
    randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm).save(file)
    other = VLM.from_pretrained(write_checkpoint(tmp_path / "other", seed=5, family=vlm.config.family))
    with pytest.raises(InputError, match="made for another checkpoint"):
        load_adapter(file, other)
    tensors, metadata = dict(read_safetensors(file)), read_metadata(file)
    fresh = replace_adapterless(vlm)
    for change in (
        {k: t for k, t in tensors.items() if k != "layers.0.gamma"},
        tensors | {"layers.1.A": torch.zeros(2)},
        tensors | {"layers.0.A": torch.zeros(64, 3)},
    ):
        write_safetensors(file, change, metadata)
        with pytest.raises(InputError, match=r"not an adapter that fits this model .*layers\.[01]\.(gamma|A)"):
            load_adapter(file, fresh)
    write_safetensors(file, tensors, {"format": "pt"})
    with pytest.raises(InputError, match="not an adapter file"):
        load_adapter(file, fresh)


def replace_adapterless(vlm):
    for layer in vlm.model.layers:
        layer.self_attn.adapters["v"].clear()
    return vlm


def test_an_adapter_of_a_class_that_is_not_in_METHODS_is_saved_under_its_name_and_refused_by_name(tmp_path, vlm):
    class Other(LoRA):
        name = "other"

    adapter = Other(vlm.config).attach(vlm)
    adapter.save(tmp_path / "a.safetensors")
    adapter.detach()
    assert read_metadata(tmp_path / "a.safetensors")["method"] == "other"
    with pytest.raises(InputError, match="its method is 'other', not image-lora"):
        load_adapter(tmp_path / "a.safetensors", vlm)


def test_saving_an_adapter_that_was_never_attached_is_refused(tmp_path, vlm):
    with pytest.raises(ValueError, match="attach the adapter"):
        ImageLoRA(vlm.config, HEADS).save(tmp_path / "a.safetensors")


@pytest.mark.parametrize("heads", [{}, {0: []}, {3: [0]}, {-1: [0]}, {0: [2]}, {0: [-1]}, {0: [1, 1]}])
def test_heads_that_do_not_exist_are_refused(vlm, heads):
    with pytest.raises(ValueError, match="head"):
        ImageLoRA(vlm.config, heads)


def test_the_flop_formula_equals_torchs_counter_and_is_proportional_to_the_visual_tokens(vlm):
    config, heads = vlm.config, {0: [1], 2: [0, 1]}
    adapter = randomised(ImageLoRA(config, heads, rank=4))

    def counted(visual_tokens):
        index = torch.arange(visual_tokens)
        with FlopCounterMode(display=False) as counter:
            for update in adapter.layers.values():
                x = torch.randn(1, 20, config.hidden, requires_grad=True)
                update(torch.randn(1, 20, 2 * config.head_size), x, index).sum().backward()
        return counter.get_total_flops()

    for n in (1, 7, 20):
        assert adapter.flops(20, n) == counted(n) == n * adapter.flops(99, 1)
    K = config.head_size
    assert adapter.flops(20, 7) == sum(6 * 7 * (64 * 4 + 4 * len(hs) * K) for hs in heads.values())


def test_the_flop_formula_of_lora_equals_torchs_counter(vlm):
    adapter = randomised(LoRA(vlm.config, rank=4))
    K = vlm.config.head_size
    sizes = {"q": (64, 4 * K), "k": (64, 2 * K), "v": (64, 2 * K), "o": (4 * K, 64)}
    with FlopCounterMode(display=False) as counter:
        for (_, target), update in adapter.updates.items():
            inputs, outputs = sizes[target]
            x = torch.randn(1, 9, inputs, requires_grad=True)
            update(torch.randn(1, 9, outputs), x, None).sum().backward()
    assert adapter.flops(9, 3) == counter.get_total_flops()


def test_a_bfloat16_model_keeps_float32_adapter_parameters(checkpoint, mixed):
    half = VLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    adapter = ImageLoRA(half.config, HEADS).attach(half)
    frozen = half(mixed)
    half.loss(mixed).backward()
    assert frozen.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in adapter.parameters())


def test_settings_are_kept_as_text_that_anyone_can_read(tmp_path, vlm):
    ImageLoRA(vlm.config, HEADS, rank=2, alpha=5).attach(vlm).save(tmp_path / "a.safetensors")
    settings = json.loads(read_metadata(tmp_path / "a.safetensors")["settings"])
    assert settings == {"heads": {"0": [1], "2": [0, 1]}, "rank": 2, "alpha": 5, "gamma": 0.01}


def test_a_changed_visual_index_changes_where_the_update_goes(vlm, mixed, monkeypatch):
    """The mask is what decides: with an empty one, the adapted model is the frozen one."""
    frozen = vlm(mixed)
    randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
    real, nowhere = Attention.adapted, torch.empty(0, dtype=torch.long)
    monkeypatch.setattr(Attention, "adapted", lambda self, path, y, x, index: real(self, path, y, x, nowhere))
    assert torch.equal(vlm(mixed), frozen) and vlm.model.layers[0].self_attn.adapters["v"]


def test_an_adapter_file_of_format_1_is_refused_with_a_line_that_says_so(tmp_path, vlm):
    file = tmp_path / "a.safetensors"
    adapter = ImageLoRA(vlm.config, HEADS).attach(vlm)
    adapter.save(file)
    adapter.detach()
    write_safetensors(file, dict(read_safetensors(file)), read_metadata(file) | {"format_version": "1"})
    with pytest.raises(InputError, match="another version .format 1.; train it again"):
        load_adapter(file, vlm)

"""The frozen decoder in 4 bits: levels, rounding, memory, gradients, and the adapters that belong to it."""

import weakref

import pytest
import torch
from conftest import SMALL_CONFIGS, randomised
from short_run import run, stopped

import train
from imagelora import ImageLoRA, LoRA, load_adapter
from model import VLM
from parts.backbones import nf4
from parts.files import InputError

FAMILIES = SMALL_CONFIGS  # each test that uses a checkpoint runs for both; 96 inputs of `down` are no multiple of 64
HEADS = {0: [1], 2: [0, 1]}


@pytest.fixture
def small(checkpoint):
    return VLM.from_pretrained(checkpoint, quantize="nf4")


@pytest.fixture
def rounded(vlm, small):
    """A model in float32 whose weights are the rounded ones."""
    for name, layer in nf4.nf4_layers(small).items():
        vlm.get_parameter(name).data = layer.weight
    return vlm


def test_the_levels_are_quantiles_of_the_normal_distribution():
    """QLoRA, appendix E: 8 equal steps of probability from the middle up, 7 down, and 0; the largest is 1. The outermost
    quantile is not 1, which would be infinite, but halfway between 1 - 1/30 and 1 - 1/32."""
    end = 1 - (1 / 30 + 1 / 32) / 2
    up = torch.special.ndtri(torch.linspace(0.5, end, 9, dtype=torch.float64))
    down = -torch.special.ndtri(torch.linspace(0.5, end, 8, dtype=torch.float64))
    levels = torch.cat([down.flip(0), up[1:]])
    torch.testing.assert_close(nf4.LEVELS.double(), levels / levels.max(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("inputs", [1, 64, 65, 96, 200])
def test_each_weight_becomes_the_nearest_level_times_the_largest_of_its_64_in_four_and_a_quarter_bits(inputs):
    """With its own unpacking: the even codes are the upper half of a byte."""
    weight = torch.randn(5, inputs, generator=torch.Generator().manual_seed(inputs))
    weight *= torch.tensor([1, 1e-30, 0, 1e5, 1])[:, None]
    codes, scales = nf4.quantize(weight)
    assert codes.dtype == torch.uint8 and 8 * (codes.nbytes + scales.nbytes) == 4.25 * 5 * 64 * -(-inputs // 64)
    again = nf4.dequantize(codes, scales, inputs, torch.float32)
    scale = torch.stack([block.abs().amax(dim=1).bfloat16() for block in weight.split(64, dim=1)], dim=1)
    values = scale.float().repeat_interleave(64, dim=1)[:, :inputs, None] * nf4.LEVELS  # [5, inputs, 16]
    nearest = (weight[..., None] - values).abs().amin(dim=2)
    numbers = torch.stack([codes >> 4, codes & 15], dim=2).flatten(1)[:, :inputs]
    chosen = values.gather(2, numbers.long()[..., None])[..., 0]
    assert ((weight - chosen).abs() <= nearest * (1 + 1e-5) + 1e-44).all()
    torch.testing.assert_close(again, chosen, rtol=1e-6, atol=1e-44)


def test_the_projections_of_the_decoder_are_in_4_bits_and_nothing_else_changes(vlm, small):
    exact, rest = dict(vlm.named_parameters()), dict(small.named_parameters())
    projections = {name for name in exact if name.startswith("model.layers.") and name.endswith("_proj.weight")}
    assert nf4.nf4_layers(small).keys() == projections == exact.keys() - rest.keys()
    assert all(torch.equal(p, exact[name]) for name, p in rest.items())
    for name, layer in nf4.nf4_layers(small).items():
        assert torch.equal(layer.weight, nf4.dequantize(*nf4.quantize(exact[name]), layer.inputs, torch.float32))
    assert nf4.size(small)[0] == nf4.size(vlm)[0] == sum(p.numel() for p in vlm.parameters())


def test_loading_holds_one_weight_at_a_time_in_full(checkpoint, monkeypatch):
    given, keep = [], nf4.NF4Linear.keep

    def watched(layer, weight):
        assert all(earlier() is None or earlier() is weight for earlier in given)
        given.append(weakref.ref(weight))
        return keep(layer, weight)

    monkeypatch.setattr(nf4.NF4Linear, "keep", watched)
    VLM.from_pretrained(checkpoint, quantize="nf4")
    assert len(given) == 21 and all(earlier() is None for earlier in given)


@pytest.mark.parametrize("make", [lambda c: ImageLoRA(c, HEADS), LoRA], ids=["image-lora", "lora"])
def test_logits_and_gradients_are_those_of_a_model_with_the_rounded_weights(small, rounded, mixed, make):
    results = []
    for vlm in (small, rounded):
        adapter = randomised(make(vlm.config), size=0.1).attach(vlm)
        vlm.loss(mixed).backward()
        results.append([vlm(mixed).detach(), *(p.grad for p in adapter.parameters())])
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6 * plain.abs().max().item())


def test_the_backward_pass_keeps_no_weight_in_full(small, mixed):
    LoRA(small.config).attach(small)
    kept, weights = [], {tuple(sorted(layer.weight.shape)) for layer in nf4.nf4_layers(small).values()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        small.loss(mixed)
    assert kept and not weights & {tuple(sorted(shape)) for shape in kept}


def test_an_adapter_belongs_to_the_base_in_the_form_that_it_was_trained_on(checkpoint, vlm, small, tmp_path):
    assert small.fingerprint() == f"{vlm.fingerprint()} with --quantize nf4"
    assert VLM.from_pretrained(checkpoint, torch.bfloat16, quantize="nf4").fingerprint() == small.fingerprint()
    for trained_on, other in ((small, vlm), (vlm, small)):
        adapter = ImageLoRA(vlm.config, HEADS).attach(trained_on)
        adapter.save(tmp_path / "adapter.safetensors")
        adapter.detach()
        load_adapter(tmp_path / "adapter.safetensors", trained_on).detach()
        with pytest.raises(InputError, match=r"made for another checkpoint, .* with --quantize nf4"):
            load_adapter(tmp_path / "adapter.safetensors", other)


def test_a_run_in_4_bits_goes_from_files_to_a_report(checkpoint, tmp_path, capsys):
    report = run(checkpoint, tmp_path, "--quantize=nf4", "--dtype=bfloat16", "--selection=weight-norm")
    assert "the decoder's projections in nf4" in capsys.readouterr().out and report["text_logit_max_change"] == 0.0


def test_weights_in_4_bits_are_neither_trained_nor_saved(checkpoint, small, tmp_path, capsys):
    code, line = stopped(capsys, train.main, ["--model", str(checkpoint), "--quantize", "nf4", "--method", "full"])
    assert code == 2 and "--quantize is for frozen weights" in line
    with pytest.raises(InputError, match="load it without --quantize"):
        small.save(tmp_path)
    assert not list(tmp_path.iterdir())

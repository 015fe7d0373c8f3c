"""The frozen decoder in 4 bits: levels, rounding, memory, gradients, and what an adapter on it may be used for."""

import json
import math
import weakref

import pytest
import torch
from conftest import ROOT, SMALL_CONFIGS, picture, randomised, write_checkpoint
from short_run import adapter_of, equal, run, stopped

import train
from data import Example, Processor
from imagelora import ImageLoRA, LoRA, load_adapter
from model import VLM
from parts.backbones import nf4
from parts.backbones.layers import Linear, compute_twice
from parts.files import InputError

HEADS = {0: [1], 2: [0, 1]}
DECODER = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


@pytest.fixture(scope="module", params=SMALL_CONFIGS)
def checkpoint(request, tmp_path_factory):
    """Of each family: every test here holds for both. 96 inputs of `down` are no multiple of 64."""
    return write_checkpoint(tmp_path_factory.mktemp("small"), family=request.param)


@pytest.fixture(scope="module")
def processor(checkpoint):
    return Processor.from_pretrained(checkpoint)


@pytest.fixture
def small(checkpoint):
    return VLM.from_pretrained(checkpoint, quantize="nf4")


@pytest.fixture
def rounded(checkpoint, small):
    """A model in float32 whose weights are the rounded ones."""
    vlm = VLM.from_pretrained(checkpoint)
    weights = dict(vlm.named_parameters())
    for name, layer in nf4.nf4_layers(small).items():
        weights[name].data = layer.weight
    return vlm


def test_the_levels_are_quantiles_of_the_normal_distribution():
    """QLoRA, appendix E: 8 equal steps of probability from the middle up, 7 down, and 0; the largest is 1. The outermost
    quantile is not 1, which would be infinite, but halfway between 1 - 1/30 and 1 - 1/32."""
    end = 1 - (1 / 30 + 1 / 32) / 2
    up = torch.special.ndtri(torch.linspace(0.5, end, 9, dtype=torch.float64))
    down = -torch.special.ndtri(torch.linspace(0.5, end, 8, dtype=torch.float64))
    levels = torch.cat([down.flip(0), up[1:]])
    assert len(nf4.LEVELS) == 16 and nf4.LEVELS[7] == 0
    torch.testing.assert_close(nf4.LEVELS.double(), levels / levels.max(), rtol=0, atol=1e-6)
    assert (down.min() / up.max()).item() == pytest.approx(-1)


def unpacked(codes, row, column):
    """The code of one weight: the even ones are the upper half of a byte."""
    byte = codes[row, column // 2].item()
    return byte // 16 if column % 2 == 0 else byte % 16


@pytest.mark.parametrize("inputs", [1, 3, 64, 65, 96, 128, 200])
def test_each_weight_becomes_the_nearest_level_times_the_largest_of_its_64(inputs):
    """Against brute force, weight by weight in float64, with its own unpacking."""
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn(5, inputs, generator=generator)
    weight[1] *= 1e-30
    weight[2] = 0
    weight[3] *= 1e5
    codes, scales = nf4.quantize(weight)
    again = nf4.dequantize(codes, scales, inputs, torch.float32)
    assert codes.dtype == torch.uint8 and again.shape == weight.shape
    levels = nf4.LEVELS.tolist()
    for row in range(5):
        for start in range(0, inputs, 64):
            block = weight[row, start : start + 64].tolist()
            scale = torch.tensor(max(map(abs, block))).bfloat16().item()
            assert scales[row, start // 64].item() == scale
            for column, exact in enumerate(block, start=start):
                level = levels[unpacked(codes, row, column)]
                nearest = min(abs(exact - scale * other) for other in levels)
                assert abs(exact - scale * level) <= nearest * (1 + 1e-5) + 1e-44
                assert again[row, column].item() == pytest.approx(scale * level, rel=1e-6, abs=1e-44)


def test_normal_weights_use_all_levels_and_are_off_by_a_tenth():
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, scales = nf4.quantize(weight)
    used = torch.cat([codes >> 4, codes & 15]).flatten().long().bincount(minlength=16) / weight.numel()
    assert used.min() > 0.01 and used.max() < 0.12
    error = nf4.dequantize(codes, scales, 1024, torch.float32) - weight.float()
    assert 0.07 < error.square().mean().sqrt().item() < 0.11
    largest = weight.float().unflatten(1, (-1, 64)).abs().amax(-1)
    assert torch.equal(scales.float(), largest)  # of bfloat16 weights the largest of a block is kept exactly


def test_a_weight_takes_four_and_a_quarter_bits():
    weight = torch.randn(256, 512)
    codes, scales = nf4.quantize(weight)
    assert 8 * (codes.nbytes + scales.nbytes) == 4.25 * weight.numel()
    plain = Linear(512, 256, bias=False)
    layer = nf4.NF4Linear(plain)
    layer.keep(plain.weight, None)
    assert nf4.size(layer) == (512 * 256, codes.nbytes + scales.nbytes)


def test_the_projections_of_the_decoder_are_in_4_bits_and_nothing_else_changes(checkpoint, small):
    vlm = VLM.from_pretrained(checkpoint)
    names = [f"model.layers.{i}.{name}.weight" for i in range(3) for name in DECODER]
    assert list(nf4.nf4_layers(small)) == names
    exact, rest = dict(vlm.named_parameters()), dict(small.named_parameters())
    assert rest.keys() == exact.keys() - set(names)
    assert all(torch.equal(p, exact[name]) for name, p in rest.items())
    assert nf4.size(small)[0] == nf4.size(vlm)[0] == sum(p.numel() for p in vlm.parameters())
    for name, layer in nf4.nf4_layers(small).items():
        assert torch.equal(layer.weight, nf4.dequantize(*nf4.quantize(exact[name]), layer.inputs, torch.float32))


def test_while_it_is_loaded_one_weight_at_a_time_is_there_in_full(checkpoint, monkeypatch):
    given, keep = [], nf4.NF4Linear.keep

    def watched(layer, weight, stored):
        assert [tensor for tensor in given if tensor() is not None and tensor() is not weight] == []
        given.append(weakref.ref(weight))
        return keep(layer, weight, stored)

    monkeypatch.setattr(nf4.NF4Linear, "keep", watched)
    VLM.from_pretrained(checkpoint, quantize="nf4")
    assert len(given) == 21 and [tensor for tensor in given if tensor() is not None] == []


@pytest.mark.parametrize("make", [lambda c: ImageLoRA(c, HEADS), LoRA], ids=["image-lora", "lora"])
@pytest.mark.parametrize("twice", [False, True], ids=["", "checkpointing"])
def test_logits_and_gradients_are_those_of_a_model_with_the_rounded_weights(small, rounded, mixed, make, twice):
    found = []
    for vlm in (small, rounded):
        if twice:
            compute_twice(vlm.model.layers[:-1])
        adapter = randomised(make(vlm.config)).attach(vlm)
        for p in adapter.parameters():
            p.data *= 0.1
        vlm.loss(mixed).backward()
        found.append([vlm(mixed).detach(), *(p.grad for p in adapter.parameters())])
        with torch.no_grad():
            found[-1].append(vlm(mixed))
    assert torch.equal(found[0][-1], found[1][-1])
    for ours, plain in zip(*found):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6 * plain.abs().max().item())


def test_in_bfloat16_too(checkpoint, mixed):
    vlm = VLM.from_pretrained(checkpoint, torch.bfloat16, quantize="nf4")
    adapter = randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
    vlm.loss(mixed).backward()
    assert vlm(mixed).dtype == torch.bfloat16 and all(p.grad.isfinite().all() for p in adapter.parameters())
    assert vlm.model.layers[0].mlp.up_proj(torch.ones(1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def kept(vlm, batch):
    """{storage: its bytes} that autograd keeps for the backward pass."""
    found = {}

    def note(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        vlm.loss(batch)
    return found


def test_for_the_backward_pass_no_weight_is_kept_in_full(small, rounded, mixed):
    """Less the weights, which an ordinary model has anyway, both keep the same."""
    sizes = []
    for vlm in (small, rounded):
        randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
        own = {p.untyped_storage().data_ptr() for p in vlm.parameters()}
        sizes.append(sum(size for storage, size in kept(vlm, mixed).items() if storage not in own))
    assert sizes[0] <= sizes[1]


def test_text_is_untouched_bit_for_bit(small, mixed, processor):
    alone = processor([Example([], "How many apples are left?"), Example([], "你好")])
    frozen, frozen_alone, tokens = small(mixed), small(alone), small.generate(alone, 8)
    randomised(ImageLoRA(small.config, HEADS)).attach(small)
    adapted = small(mixed)
    assert torch.equal(adapted[1], frozen[1]) and not torch.equal(adapted[0], frozen[0])
    assert torch.equal(small(alone), frozen_alone) and small.generate(alone, 8) == tokens


def test_an_adapter_belongs_to_the_base_in_the_form_that_it_was_trained_on(checkpoint, small, tmp_path):
    vlm = VLM.from_pretrained(checkpoint)
    assert small.fingerprint() == f"{vlm.fingerprint()} with --quantize nf4"
    assert VLM.from_pretrained(checkpoint, torch.bfloat16, quantize="nf4").fingerprint() == small.fingerprint()
    for trained_on, other in ((small, vlm), (vlm, small)):
        adapter = ImageLoRA(vlm.config, HEADS).attach(trained_on)
        adapter.save(tmp_path / "adapter.safetensors")
        adapter.detach()
        load_adapter(tmp_path / "adapter.safetensors", trained_on).detach()
        with pytest.raises(InputError, match=r"made for another checkpoint, .* with --quantize nf4"):
            load_adapter(tmp_path / "adapter.safetensors", other)


def test_a_run_on_a_model_in_4_bits_goes_from_files_to_a_report(checkpoint, tmp_path, capsys):
    report = run(checkpoint, tmp_path / "run", "--quantize", "nf4", "--selection", "weight-norm")
    said = capsys.readouterr().out
    plain = sum(p.numel() for p in VLM.from_pretrained(checkpoint).parameters())
    assert f"{plain:,} parameters in float32, the decoder's projections in nf4 on cpu" in said
    assert report["parameters"] == plain and report["text_logit_max_change"] == 0.0
    adapter = tmp_path / "run/adapter.safetensors"
    again = ["--model", str(checkpoint), "--adapter", str(adapter), "--eval=sums", "--eval-limit=1", "--max-new-tokens=2"]
    train.main([*again, "--quantize", "nf4", "--out", str(tmp_path / "asked")])
    code, line = stopped(capsys, train.main, [*again, "--out", str(tmp_path / "refused")])
    assert code == 2 and "with --quantize nf4" in line
    again = run(checkpoint, tmp_path / "again", "--quantize", "nf4", "--selection", "weight-norm")
    assert again["heads"] == report["heads"] and equal(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "again"))


@pytest.mark.parametrize("flags", [["--method", "full"]], ids=str)
def test_what_changes_or_draws_the_weights_is_refused(checkpoint, flags, tmp_path, capsys):
    code, line = stopped(capsys, train.main, ["--model", str(checkpoint), "--quantize", "nf4", *flags])
    assert code == 2 and "--quantize is for frozen weights" in line


def test_a_model_in_4_bits_is_not_saved(small, tmp_path):
    with pytest.raises(InputError, match="load it without --quantize"):
        small.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_the_tiny_model_in_4_bits_answers_nearly_the_same():
    """docs/speed.md has the figures of more rows."""
    processor = Processor.from_pretrained(ROOT / "parts/tiny")
    batch = processor([Example([picture(112, 112)], "Where is the ring?", "[1, 2, 3, 4]")])
    exact, small = VLM.from_pretrained(ROOT / "parts/tiny"), VLM.from_pretrained(ROOT / "parts/tiny", quantize="nf4")
    change = (small(batch) - exact(batch)).square().mean().sqrt() / exact(batch).std()
    assert 0.01 < change.item() < 0.3
    assert math.isclose(small.loss(batch).item(), exact.loss(batch).item(), rel_tol=0.2)
    config = json.loads((ROOT / "parts/tiny/config.json").read_text())
    weights = sum(layer.outputs * layer.inputs for layer in nf4.nf4_layers(small).values())
    assert nf4.size(exact)[1] - nf4.size(small)[1] == pytest.approx(weights * (4 - 4.25 / 8), rel=0.01)
    assert len(nf4.nf4_layers(small)) == 7 * config["num_hidden_layers"]

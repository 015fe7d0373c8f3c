"""Fused attention equals attention by hand, and a training step waits for no number: on the CPU and torch's device "meta",
and with IMAGELORA_TEST_DEVICE=cuda on a GPU, whose numbers are those of the CPU."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from cases import questions
from conftest import DEVICE, SMALL_CONFIGS, randomised
from torch.utils._python_dispatch import TorchDispatchMode

import train
from harness.encodings import encode_images
from imagelora import ImageLoRA, LoRA
from model import VLM, attend
from parts.backbones.layers import compute_twice, fused_attention

FAMILIES = SMALL_CONFIGS  # each test that uses a checkpoint runs for both
ADAPTERS = {"image-lora": lambda config: ImageLoRA(config, {1: [0], 2: [0, 1]}), "lora": LoRA}
on_a_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="no GPU: IMAGELORA_TEST_DEVICE=cuda runs this on one")


SHAPES = {  # B, H, G, T, S, K
    "decoding, 3B": (3, 16, 2, 1, 37, 128),
    "decoding, 7B": (1, 28, 4, 1, 300, 128),
    "reading": (2, 8, 2, 13, 13, 16),
}


def tensors(name):
    """q, k, v, and a mask in which every query may look somewhere."""
    B, H, G, T, S, K = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    q, *cache = (torch.randn(size, generator=generator) for size in ((B, H, T, K), (B, G, S + 3, K), (B, G, S + 3, K)))
    k, v = (y[:, :, :S] for y in cache)  # as the cache gives them: it is longer
    mask = (torch.rand(B, 1, T, S, generator=generator) > 0.3) | (torch.arange(S) == 0)
    return [y.to(DEVICE) for y in (q, k, v, mask)]


@pytest.mark.parametrize("name", SHAPES)
def test_fused_attention_equals_the_one_by_hand_and_in_bfloat16_is_no_less_exact(name):
    q, k, v, mask = tensors(name)
    everywhere = attend(q, k, v, torch.ones_like(mask))[0]
    torch.testing.assert_close(fused_attention(q, k, v, None, causal=False), everywhere, rtol=1e-5, atol=1e-5)
    half = [y.bfloat16() for y in (q, k, v)]  # flash attention takes no float32
    for m in (mask, None):  # None: causal
        torch.testing.assert_close(fused_attention(q, k, v, m), attend(q, k, v, m)[0], rtol=1e-5, atol=1e-5)
        exact = attend(*(y.float() for y in half), m)[0]
        errors = [(out.float() - exact).norm() for out in (fused_attention(*half, m), attend(*half, m)[0])]
        assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("device", [DEVICE, "meta"])
def test_decoding_reads_the_cache_as_it_is(monkeypatch, device):
    """Nothing of its size is written. The device "meta" takes the path of a GPU."""
    kernel, keys = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, kernel.__name__, lambda q, k, v, **options: keys.append(k) or kernel(q, k, v, **options))
    q, k, v, mask = (y.to(device) for y in tensors("decoding, 3B"))
    fused_attention(q, k, v, mask)
    assert keys[0].shape == k.shape and keys[0].untyped_storage()._cdata == k.untyped_storage()._cdata


@on_a_gpu
def test_logits_gradients_and_answers_are_those_of_the_cpu(checkpoint, processor):
    results = []
    for device in ("cpu", DEVICE):
        vlm = VLM.from_pretrained(checkpoint, device=device)
        adapter = randomised(ADAPTERS["image-lora"](vlm.config)).attach(vlm)
        batch = processor(questions("a ring"), share_images=True).to(device)
        vlm.loss(batch).backward()
        texts = vlm.generate(processor(questions(None), share_images=True).to(device), 8)
        results.append([vlm(batch).detach().cpu(), [p.grad.cpu() for p in adapter.parameters()], texts])
    (logits, gradients, texts), on_gpu = results
    assert (on_gpu[0] - logits).abs().max() <= 1e-4
    torch.testing.assert_close(on_gpu[1], gradients, rtol=1e-4, atol=1e-4)
    assert on_gpu[2] == texts


@pytest.mark.parametrize("length", [64, 192, 576])
def test_gradients_under_a_mask_are_finite_at_the_lengths_where_cudnn_gives_nan(length):
    """64 modulo 128, with large negative scores, as some heads of Qwen2.5 have them: issue 196678 of pytorch."""
    x = 0.1 * torch.randn(3, 1, 4, length, 128, device=DEVICE).bfloat16()  # q, k, v
    x[0, ..., 0], x[1, ..., 0] = 1.0, -120 * 128**0.5
    mask = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril()[None, None]
    fused_attention(*x.requires_grad_(), mask).float().square().sum().backward()
    assert x.grad.isfinite().all()


@on_a_gpu
def test_three_steps_of_full_training_in_bfloat16(checkpoint, tmp_path):
    flags = ["--method=full", "--dtype=bfloat16", f"--device={DEVICE}", "--steps=3", "--limit=8", "--batch=4", "--eval-limit=4"]
    train.main([f"--model={checkpoint}", "--data=scenes-day", *flags, f"--out={tmp_path / 'run'}"])
    assert VLM.from_pretrained(tmp_path / "run/checkpoint").config.layers


def steps(vlm, processor):
    """Batches of three steps: shared rows and padding; an image that was encoded earlier; text alone, without a mask."""
    examples = questions("a ring")
    shared, text = processor(examples, share_images=True), processor(examples[3:4])
    encode_images(vlm, processor, examples[:2], gib=1)
    again, processor.encoded = processor(examples[:2], share_images=True), {}
    return [[shared], [again], [text]]


def train_on(vlm, parameters, batches):
    """Training steps as train.py makes them -> their numbers, on the device."""
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    return [train.training_step(vlm, step, 9, parameters, optimizer, torch.float32) for step in batches]


class NoBlockingCopies(TorchDispatchMode):
    """Fails at a copy from the CPU to the device "meta" that is not asked to be non-blocking."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result, kwargs = operation(*args, **(kwargs or {})), kwargs or {}
        if operation in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[-1] if operation is torch.ops.aten.copy_.default else args[0]
            waits = source.device.type == "cpu" and result.device.type == "meta" and not kwargs.get("non_blocking")
            assert not waits, "a copy to the device that waits for it"
        return result


@pytest.mark.parametrize(("method", "twice"), [("lora", False), ("image-lora", False), ("image-lora", True)])
def test_a_training_step_needs_no_number_from_the_device(vlm, processor, monkeypatch, method, twice):
    """On torch's device "meta" tensors have shapes and no numbers: whatever waits for one is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it does not know "meta"
    batches = steps(vlm, processor)
    if twice:
        compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
    adapter = ADAPTERS[method](vlm.config).attach(vlm)
    vlm.to("meta")
    parameters = list(adapter.to("meta").parameters())
    with NoBlockingCopies():
        train_on(vlm, parameters, batches)
        with pytest.raises(AssertionError, match="waits"):
            torch.ones(1).to("meta")


@on_a_gpu
@pytest.mark.parametrize("method", ADAPTERS)
def test_a_training_step_never_waits_for_the_gpu(checkpoint, vlm, processor, method):
    batches = [[batch.pin_memory() for batch in step] for step in steps(vlm, processor)]
    vlm = VLM.from_pretrained(checkpoint, device=DEVICE)
    parameters = list(ADAPTERS[method](vlm.config).attach(vlm).parameters())
    torch.cuda.set_sync_debug_mode("error")
    try:
        numbers = train_on(vlm, parameters, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(loss > 0 for loss, _ in torch.stack(numbers).tolist())

"""The memory of a training step, counted from shapes alone, before anything is loaded.

A tensor on torch's meta device has a shape and no numbers. The model is built there, and a forward and a backward pass run:
nothing is computed, but autograd keeps what it will keep, and each tensor is made and freed when it will be. So the memory
is counted, not estimated by a formula.
"""

import math
import weakref
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data import Batch
from parts.backbones import nf4
from parts.backbones.layers import compute_twice

# Tokens of RefCOCO, medians.
BEFORE = 16  # around the image
QUESTION = 50  # a question with its answer
ANSWER = 27  # of these, the answer


class Memory(TorchDispatchMode):
    """While this lasts, counts the bytes of the tensors that were made and are still there: `now`, and at `most`."""

    now = most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in given:  # a view is nothing new
                size = t.untyped_storage().nbytes()
                self.change(size)
                weakref.finalize(t.untyped_storage(), self.change, -size)
        return out

    def change(self, size):
        self.now += size
        self.most = max(self.most, self.now)


class FusedAttention(torch.autograd.Function):
    """What a fused attention kernel makes and keeps: the mask as numbers, the output, a number for each query."""

    @staticmethod
    def forward(ctx, q, k, v, mask):
        mask = None if mask is None else mask.to(q.dtype)
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32), mask)
        return out

    @staticmethod
    def backward(ctx, grad):
        return *(torch.empty_like(t) for t in ctx.saved_tensors[:3]), None


@contextmanager
def fused():
    """While this lasts, torch's attention is FusedAttention: on the meta device it would not be fused."""
    real = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, attn_mask, **_: FusedAttention.apply(q, k, v, attn_mask)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


def attention_on_cpu(q, k, v, mask):
    """As `fused_attention` on a CPU: in float32, without copies of the KV heads."""
    return FusedAttention.apply(q.float(), k.float(), v.float(), mask).to(q.dtype)


def on_meta(VLM, config, dtype, quantize=None, checkpointing=False, device="cuda"):
    """The frozen model without numbers, as it will be on this kind of device."""
    with torch.device("meta"):
        vlm = VLM(config).to(dtype).requires_grad_(False)
    if quantize:
        nf4.use_nf4(vlm)
    for layer in vlm.model.layers if device == "cpu" else ():
        layer.self_attn.attention = attention_on_cpu
    if checkpointing:
        compute_twice([*vlm.visual.blocks, *vlm.model.layers[:-1]])
    return vlm


def adapted(vlm, method, settings):
    """Put an adapter without numbers into a model without numbers -> the adapter. method: a class of METHODS."""
    with torch.device("meta"):
        adapter = method(vlm.config, **{name: settings[name] for name in method.options})
    for (layer, path), update in adapter.updates.items():
        vlm.model.layers[layer].self_attn.adapters[path].append(update)
    return adapter


def batch_of(config, rows, questions, visual):
    """A Batch without numbers: rows of an image of up to `visual` visual tokens, twice as wide as high, and so many
    questions about it."""
    down, merge = max(1, math.isqrt(visual // 2)), config.vision.merge
    across = visual // down
    shape = rows, BEFORE + down * across + questions * QUESTION
    with torch.device("meta"):
        ids, index = torch.empty(shape, dtype=torch.long), torch.empty(rows * down * across, dtype=torch.long)
        answers = torch.empty(rows * questions * ANSWER, dtype=torch.long)
        names = ("input_ids", "attention_mask", "segments", "labels", "visual_mask")
        return Batch(
            **dict.fromkeys(names, ids),
            position_ids=torch.empty(3, *shape, dtype=torch.long),
            visual_index=index,
            visual_source=index,
            answer_index=answers,
            answer_ids=answers,
            patches=torch.empty(len(index) * merge**2, config.vision.patch_values),
            grids=torch.tensor([[1, down * merge, across * merge]] * rows, device="cpu"),
            causal=rows * questions == 1,  # several have padding or segments
        )


def step_memory(vlm, batch):
    """(bytes that the forward pass keeps for the backward pass, the most that there are at any time), beside the weights and
    the batch."""
    with fused(), Memory() as memory:
        loss = vlm.loss(batch)
        kept = memory.now
        loss.backward()
    return kept, memory.most

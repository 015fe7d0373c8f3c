"""Lesson 4: why not train everything? D inputs of a layer, O its outputs, R rank; A and B are the factors of LoRA."""

import torch  # noqa: F401 (for what you write)


def training_bytes(frozen, trained):
    """What the numbers of a training take in memory, in bytes: (weights, gradients, moments).

    frozen: how many numbers stay as they are, in bfloat16, 2 bytes each; trained: how many are trained, in float32, 4
    bytes each. Each trained number has a gradient and, for AdamW, two moments, all in float32.
    """
    raise NotImplementedError


def merged(W, A, B, s):
    """One matrix W' [D, O] in place of a frozen one and its LoRA: x W' is x W + s x A B for every x.

    W [D, O]; A [D, R]; B [R, O]; s: a number, alpha / R. W itself stays as it is.
    """
    raise NotImplementedError


def training_step(vlm, batch, parameters, optimizer):
    """One step of training: the loss, its gradients, these clipped to a norm of 1.0 in all, the optimizer's step, and no
    gradient left for the next one. Returns the loss as a number.

    vlm.loss(batch): the loss, a tensor; parameters: what is trained, a list of tensors; optimizer: a torch.optim.AdamW of
    them. torch.nn.utils.clip_grad_norm_ clips.
    """
    raise NotImplementedError

"""What lesson 4 checks."""

import torch

from course.checks import call, compare, require
from course.real import attached, logits, mixed, scenes, tiny
from imagelora import LoRA


def check_the_bytes(student):
    """training_bytes counts weights, gradients and moments, of a frozen model with an adapter and of full fine-tuning."""
    for f, t in ((1000, 10), (0, 1000), (7, 300)):
        weights = 2 * f + 4 * t
        mistakes = {
            "frozen numbers have gradients -> only what is trained has them": (weights, 4 * (f + t), 8 * (f + t)),
            "frozen numbers have moments -> only what is trained has them": (weights, 4 * t, 8 * (f + t)),
            "the adapter's own weights are missing -> they are kept, too": (2 * f, 4 * t, 8 * t),
            "there is one moment for each number -> AdamW keeps two": (weights, 4 * t, 4 * t),
            "all weights are float32 -> the frozen ones are bfloat16, 2 bytes": (4 * (f + t), 4 * t, 8 * t),
            "this is the sum -> return three numbers": weights + 12 * t,
        }
        compare(f"training_bytes({f}, {t})", student.training_bytes(f, t), (weights, 4 * t, 8 * t), mistakes)


def check_the_merge(student):
    """merged gives one matrix with the same output for every input."""
    W, A, B, s = torch.randn(9, 6), torch.randn(9, 2), torch.randn(2, 6), 0.3
    mistakes = {"the factor s is missing -> s * A @ B": W + A @ B, "this is the update alone -> W is a part of it": s * A @ B}
    compare("merged", call(student.merged, W, A, B, s), W + s * A @ B, mistakes)


def check_in_the_real_model(student):
    """In the real model: with merged value weights and no adapter, the logits are those of the adapter."""
    vlm, batch = tiny()[0], mixed()
    adapter = LoRA(vlm.config, targets=("v",), rank=4, alpha=8)
    for update in adapter.updates.values():
        update.B.data.normal_(std=0.02)
    right, weights = logits(batch, adapter.updates), {}
    for (layer, _), update in adapter.updates.items():
        W = vlm.model.layers[layer].self_attn.v_proj.weight.T  # nn.Linear keeps it transposed
        weights[f"model.layers.{layer}.self_attn.v_proj.weight"] = student.merged(W, update.A, update.B, 2.0).T
    after = torch.func.functional_call(vlm, weights, batch).detach()
    compare("the logits with merged weights", after, right)

    # An update of visual tokens alone: the best matrix for it, by least squares over many inputs x of layer 3.
    rows, inputs, update = tiny()[1](scenes(60)), [], adapter.updates[3, "v"]
    logits(rows, {(3, "v"): lambda v, x, _: inputs.append(x.flatten(0, 1)) or v})
    target = (rows.visual_mask.flatten()[:, None] * (inputs[0] @ update.A @ update.B)).detach()
    missed = inputs[0] @ torch.linalg.lstsq(inputs[0], target).solution - target
    return f"merged Image-LoRA: even the best matrix misses {missed.norm() / target.norm():.0%} of the update"


def ours(vlm, batch, parameters, optimizer, clip=1.0, zero=True):
    """The training step. clip, zero: the moves that are forgotten most often."""
    loss = vlm.loss(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    if zero:
        optimizer.zero_grad()
    return loss.item()


def trained(training_step, lr=3e-3, **options):
    """(losses, parameters, whether a gradient is left) after four steps of a LoRA on the values of the real model."""
    torch.manual_seed(4)
    adapter = LoRA(tiny()[0].config, targets=("v",), rank=2, alpha=64)  # large, so that gradients are clipped
    parameters = list(adapter.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    with attached(adapter.updates):
        losses = [training_step(tiny()[0], mixed(), parameters, optimizer, **options) for _ in range(4)]
    left = any(p.grad is not None and p.grad.any() for p in parameters)
    return losses, torch.cat([p.detach().flatten() for p in parameters]), left


def check_the_step(student):
    """Four steps of training_step in the real model give the right losses and the right parameters."""
    losses, parameters, left = trained(student.training_step)
    returned = "tensor" if torch.is_tensor(losses[0]) else type(losses[0]).__name__
    require(isinstance(losses[0], float), f"training_step returned a {returned}, not a Python number -> .item()")
    mistakes = {
        "gradients add up from step to step -> zero_grad() belongs to every step": trained(ours, zero=False)[1],
        "the gradient is too long -> clip it, between backward and step": trained(ours, clip=1e9)[1],
        "nothing is learnt -> backward, clip, step, zero, in this order": trained(ours, lr=0.0)[1],
    }
    compare("the parameters after four steps", parameters, trained(ours)[1], mistakes)
    require(not left, "a gradient is left over after the step -> zero_grad() comes last")

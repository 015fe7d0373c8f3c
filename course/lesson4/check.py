"""What lesson 4 checks."""

import torch

from course.checks import call, compare, require
from course.real import change, frozen, mixed, scenes, tiny, with_adapter, with_updates
from imagelora import LoRA

QWEN = 3_754_622_976  # numbers of Qwen2.5-VL-3B: 36 layers, inputs of 2,048, 2 value heads of 128
TRAININGS = {  # (frozen numbers, trained ones)
    "full": (0, QWEN),
    "LoRA": (QWEN, 36 * 8 * 12_800),  # rank 8 on q, k, v, o
    "Image-LoRA": (QWEN, 18 * (2048 * 8 + 8 * 128 + 1)),  # 18 heads in as many layers
}


def the_bytes(student):
    """training_bytes counts weights, gradients and moments, of a frozen model with an adapter and of full fine-tuning."""
    for f, t in ((1000, 10), (0, 1000), (7, 300)):
        weights = 2 * f + 4 * t
        mistakes = {
            "frozen numbers have gradients or moments -> only what is trained has them": (weights, 4 * (f + t), 8 * (f + t)),
            "the adapter's own weights are missing -> they are kept, too": (2 * f, 4 * t, 8 * t),
            "there is one moment for each number -> AdamW keeps two": (weights, 4 * t, 4 * t),
            "all weights are float32 -> the frozen ones are bfloat16, 2 bytes": (4 * (f + t), 4 * t, 8 * t),
            "all weights are bfloat16 -> what is trained is float32": (2 * (f + t), 4 * t, 8 * t),
            "these are numbers -> a float32 takes 4 bytes": (f + t, t, 2 * t),
            "this is the sum -> return three numbers": weights + 12 * t,
        }
        compare(f"training_bytes({f}, {t})", student.training_bytes(f, t), (weights, 4 * t, 8 * t), mistakes)
    gigabytes = {name: sum(student.training_bytes(*numbers)) / 1e9 for name, numbers in TRAININGS.items()}
    return "Qwen2.5-VL-3B, without activations: " + ", ".join(f"{name} {x:.2f} GB" for name, x in gigabytes.items())


def the_merge(student):
    """merged gives one matrix with the same output for every input."""
    W, A, B, s = torch.randn(9, 6), torch.randn(9, 2), torch.randn(2, 6), 0.3
    mistakes = {
        "the factor s is missing -> s * A @ B": W + A @ B,
        "this is the update alone -> W is a part of it": s * A @ B,
        "the update is subtracted -> add it": W - s * A @ B,
    }
    compare("merged", call(student.merged, W, A, B, s), W + s * A @ B, mistakes)


def in_the_real_model(student):
    """In the real model: with merged value weights and no adapter, the logits are those of the adapter."""
    (vlm, processor), batch = tiny(), mixed()
    adapter = LoRA(vlm.config, targets=("v",), rank=4, alpha=8)
    for update in adapter.updates.values():
        update.B.data.normal_(std=0.02)
    right = with_adapter(adapter, lambda: frozen(batch))

    weights = [layer.self_attn.v_proj.weight for layer in vlm.model.layers]  # [O, D]: the project's W is weight.T
    kept = [weight.data for weight in weights]
    for weight, update in zip(weights, adapter.updates.values()):
        weight.data = student.merged(weight.data.T, update.A.data, update.B.data, 2.0).T
    try:
        after = frozen(batch)
    finally:
        for weight, data in zip(weights, kept):
            weight.data = data
    compare("the logits with merged weights", after, right)

    # An update of visual tokens alone: the best matrix for it, by least squares over many inputs x of layer 3.
    rows, inputs = processor(scenes(60)), []
    with_updates({3: lambda v, x, _: inputs.append(x.flatten(0, 1)) or v}, lambda: frozen(rows))
    x, M, update = inputs[0], rows.visual_mask.flatten()[:, None], adapter.updates[3, "v"]
    target = M * (x @ update.A @ update.B).detach()
    missed = (x @ torch.linalg.lstsq(x, target).solution - target).norm() / target.norm()
    words = f"LoRA merged: a logit differs by {change(right, after, 0):.0e} at most"
    return f"{words}. Image-LoRA: even the best matrix misses {missed:.0%} of the update"


def moves(order):
    """A training step that makes these moves, one after another."""

    def step(vlm, batch, parameters, optimizer):
        loss = vlm.loss(batch)
        each = {"backward": loss.backward, "step": optimizer.step, "zero": optimizer.zero_grad}
        each["clip"] = lambda: torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for move in order.split():
            each[move]()
        return loss.item()

    return step


def trained(step):
    """(losses, parameters) after four steps of a LoRA on the values of the real model, by this step."""
    torch.manual_seed(4)
    adapter = LoRA(tiny()[0].config, targets=("v",), rank=2, alpha=64)  # large, so that gradients are clipped
    parameters = list(adapter.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = with_adapter(adapter, lambda: [step(tiny()[0], mixed(), parameters, optimizer) for _ in range(4)])
    return losses, torch.cat([p.detach().flatten() for p in parameters])


def the_step(student):
    """Four steps of training_step in the real model give the right losses and the right parameters."""
    orders = {
        "gradients add up from step to step -> optimizer.zero_grad() belongs to every step": "backward clip step",
        "the gradient is too long -> clip it, between backward and step": "backward step zero",
        "nothing is learnt -> backward, clip, step, zero, in this order": "backward clip zero",
    }
    (losses, parameters), right = trained(student.training_step), trained(moves("backward clip step zero"))
    require(isinstance(losses[0], float), "the loss is no number -> a tensor keeps all that it was made of; use .item()")
    mistakes = {sentence: trained(moves(order))[1] for sentence, order in orders.items()}
    compare("the parameters after four steps", parameters, right[1], mistakes)
    compare("the losses", losses, right[0])
    return "the loss of four steps: " + ", ".join(f"{loss:.2f}" for loss in losses)


CHECKS = [the_bytes, the_merge, in_the_real_model, the_step]

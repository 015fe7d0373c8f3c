"""What lesson 3 checks."""

import torch

from course.checks import call, compare, flops, pair, require, same, tensor, train
from course.real import attached, change, logits, mixed, tiny
from imagelora import LoRA


def check_the_start(student):
    """lora_start gives two factors of the right shapes, with which the adapted layer is the frozen one and can learn."""
    A, B = pair("lora_start", student.lora_start(48, 20, 4))
    transposed = list(A.shape) == [4, 48] and list(B.shape) == [20, 4]
    require(not transposed, "the factors are transposed -> x stands on the left, x A B, so A is [inputs, rank]")
    tensor("A", A, 48, 4)
    tensor("B", B, 4, 20)
    require(A.any() or B.any(), "both factors are zero -> both gradients are zero, too, for ever; make one random")
    require(A.any(), "the zero is in A -> it would do, but project and paper keep A random and start with B = 0")
    require(not B.any(), "the first step does not begin at the frozen model -> B is zero at the start")
    require(not same(A, student.lora_start(48, 20, 4)[0]), "A is the same in each call -> draw it at random")


def check_the_formula(student):
    """lora gives what its docstring says, at the cost that it says."""
    T, D, O, R, alpha = 60, 40, 25, 3, 10
    x, y, A, B = torch.randn(2, T // 2, D), torch.randn(2, T // 2, O), torch.randn(D, R), torch.randn(R, O)
    update = x @ A @ B
    mistakes = {
        "the update is R times too large -> divide alpha by the rank": y + alpha * update,
        "the size of the update is wrong -> the factor alpha / R is missing": y + update,
        "alpha is divided by D, the inputs -> the rank is A.shape[1]": y + alpha / D * update,
        "this is the update alone -> add the frozen output y": alpha / R * update,
    }
    compare("lora", call(student.lora, y, x, A, B, alpha), y + alpha / R * update, mistakes)
    mistakes = {"a large matrix is made -> go from left to right, x @ A @ B": 2 * D * R * O + 2 * T * D * O}
    count = flops(lambda: student.lora(y, x, A, B, alpha))
    compare("the operations of lora", count, 2 * T * R * (D + O), mistakes)
    return f"{count:,} operations in place of the {2 * T * D * O:,} of a full matrix"


def check_in_the_real_model(student):
    """On q, k, v and o of all layers: at step 0 the logits are the frozen ones, bit for bit; five steps lower the loss."""
    vlm, batch, before = tiny()[0], mixed(), logits(mixed())
    parameters, updates = [], {}
    for site, ours in LoRA(vlm.config, rank=4).updates.items():
        A, B = (p.clone().requires_grad_() for p in student.lora_start(len(ours.A), ours.B.shape[1], 4))
        updates[site] = lambda y, x, visual_index, A=A, B=B: student.lora(y, x, A, B, 8)
        parameters += [A, B]
    require(same(before, logits(batch, updates)), "the logits at step 0 are not the frozen ones")
    with attached(updates):
        losses = train(lambda: vlm.loss(batch), parameters, steps=5)
    by = change(before, logits(batch, updates), 1)
    require(losses[-1] < losses[0], f"five steps did not lower the loss ({losses[0]:.3f}, {losses[-1]:.3f})")
    return f"five steps: loss {losses[0]:.1f} to {losses[-1]:.1f}; a row without an image changes its logits by up to {by:.1f}"

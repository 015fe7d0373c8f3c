"""What lesson 3 checks."""

import torch

from course.checks import (
    call,
    compare,
    gradients,
    operations,
    pair,
    require,
    same,
    tensor,
)
from course.real import change, frozen, mixed, tiny, with_adapter
from imagelora import LoRA, LoRALayer


def the_start(student):
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


def the_formula(student):
    """lora gives what its docstring says, at the cost that it says."""
    rows, T, D, O, R, alpha = 2, 30, 40, 25, 3, 10
    x, y, A, B = torch.randn(rows, T, D), torch.randn(rows, T, O), torch.randn(D, R), torch.randn(R, O)
    update = x @ A @ B
    mistakes = {
        "the update is R times too large -> divide alpha by the rank": y + alpha * update,
        "the size of the update is wrong -> the factor alpha / R is missing": y + update,
        "alpha is divided by D, the inputs -> the rank is A.shape[1]": y + alpha / D * update,
        "this is the update alone -> add the frozen output y": alpha / R * update,
        "the update is subtracted -> add it": y - alpha / R * update,
    }
    compare("lora", call(student.lora, y, x, A, B, alpha), y + alpha / R * update, mistakes)
    mistakes = {
        "a large matrix is made -> go from left to right, x @ A @ B": 2 * D * R * O + 2 * rows * T * D * O,
        "no product was counted -> use @": 0,
    }
    flops, right = operations(lambda: student.lora(y, x, A, B, alpha)), 2 * rows * T * R * (D + O)
    compare("the operations of lora", flops, right, mistakes)
    return f"{right:,} operations in place of the {2 * rows * T * D * O:,} of a full matrix"


def parameters_are_counted(student):
    """lora_parameters counts what is trained, for three sizes."""
    for inputs, outputs, rank in ((1024, 1024, 8), (2000, 300, 8), (30, 70, 3)):
        mistakes = {
            "the frozen matrix is counted -> LoRA trains A and B only": inputs * outputs,
            "the frozen matrix is counted, too -> it is not trained": inputs * outputs + rank * (inputs + outputs),
            "this counts A only -> B has rank x outputs": inputs * rank,
            "this takes A and B for equally large -> B has rank x outputs": 2 * inputs * rank,
            "A and B are multiplied -> their numbers add up": inputs * outputs * rank,
        }
        got = student.lora_parameters(inputs, outputs, rank)
        compare(f"lora_parameters({inputs}, {outputs}, {rank})", got, rank * (inputs + outputs), mistakes)


class StudentsLoRA(LoRALayer):
    """LoRA in one linear layer of the real model, by the student's two functions."""

    def __init__(self, student, ours):
        super().__init__(len(ours.A), ours.B.shape[1], rank=4, alpha=8)
        A, B = student.lora_start(len(ours.A), ours.B.shape[1], 4)
        self.A.data, self.B.data, self.student = A.clone(), B.clone(), student

    def forward(self, y, x, visual_index):
        return self.student.lora(y, x, self.A, self.B, 8)


def in_the_real_model(student):
    """On q, k, v and o of all layers: at step 0 the logits are the frozen ones, bit for bit; five steps lower the loss."""
    vlm, batch, before = tiny()[0], mixed(), frozen(mixed())
    adapter = LoRA(vlm.config, rank=4, alpha=8)
    adapter.updates = {site: StudentsLoRA(student, ours) for site, ours in adapter.updates.items()}
    parameters = [p for update in adapter.updates.values() for p in (update.A, update.B)]
    optimizer, losses = torch.optim.AdamW(parameters, lr=1e-2), []
    start = with_adapter(adapter, lambda: frozen(batch))
    require(same(before, start), "the logits at step 0 are not the frozen ones")
    for _ in range(5):
        loss = with_adapter(adapter, lambda: vlm.loss(batch))
        for p, g in zip(parameters, gradients(loss, parameters)):
            p.grad = g
        optimizer.step()
        losses.append(loss.item())
    by = change(before, with_adapter(adapter, lambda: frozen(batch)), 1)
    require(losses[-1] < losses[0], f"five steps did not lower the loss ({losses[0]:.3f}, {losses[-1]:.3f})")
    return f"the loss falls from {losses[0]:.1f} to {losses[-1]:.1f}; a row without an image changes its logits by up to {by:.1f}"


CHECKS = [the_start, the_formula, parameters_are_counted, in_the_real_model]

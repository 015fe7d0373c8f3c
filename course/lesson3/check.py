"""What lesson 3 checks."""

import torch

from course.checks import (change, compare, frozen, gradients, mixed, operations, pair, require, same, tensor, tiny,
                           with_adapter)
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
    """lora gives y + (alpha / R) x A B."""
    x, y = torch.randn(2, 5, 12), torch.randn(2, 5, 7)
    A, B, alpha = torch.randn(12, 4), torch.randn(4, 7), 10
    before, update = y.clone(), x @ A @ B
    mistakes = {
        "the update is R times too large -> divide alpha by the rank": y + alpha * update,
        "the size of the update is wrong -> the factor alpha / R is missing": y + update,
        "alpha is divided by D, the inputs -> the rank is A.shape[1]": y + alpha / 12 * update,
        "alpha is divided by the outputs -> the rank is A.shape[1]": y + alpha / 7 * update,
        "this is the update alone -> add the frozen output y": alpha / 4 * update,
        "the update is subtracted -> add it": y - alpha / 4 * update,
    }
    got = student.lora(y, x, A, B, alpha)
    require(same(y, before), "y itself was changed -> `+=` does that; write `y + ...`")
    compare("lora", got, y + alpha / 4 * update, mistakes)


def the_cost(student):
    """lora costs what its docstring says: a thin product, then another."""
    rows, T, D, O, R = 2, 30, 40, 25, 3
    x, y, A, B = torch.randn(rows, T, D), torch.randn(rows, T, O), torch.randn(D, R), torch.randn(R, O)
    flops, right = operations(lambda: student.lora(y, x, A, B, 8)), 2 * rows * T * R * (D + O)
    large = "a large matrix is made, the one that LoRA avoids -> go from left to right, x @ A @ B"
    mistakes = {large: 2 * D * R * O + 2 * rows * T * D * O, "no product was counted -> use @": 0}
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
        super().__init__(*ours.A.shape[:1], *ours.B.shape[1:], rank=4, alpha=8)
        A, B = student.lora_start(len(self.A), self.B.shape[1], 4)
        self.A.data, self.B.data, self.student = A.clone(), B.clone(), student

    def forward(self, y, x, visual_index):
        return self.student.lora(y, x, self.A, self.B, 8)


def in_the_real_model(student):
    """On q, k, v and o of all layers: at step 0 the logits are the frozen ones, bit for bit; five steps lower the loss."""
    (vlm, _), batch = tiny(), mixed()
    before, adapter = frozen(batch), LoRA(tiny()[0].config, rank=4, alpha=8)
    adapter.updates = {site: StudentsLoRA(student, ours) for site, ours in adapter.updates.items()}
    parameters = [p for update in adapter.updates.values() for p in (update.A, update.B)]
    optimizer, losses = torch.optim.AdamW(parameters, lr=1e-2), []

    def step():
        loss = vlm.loss(batch)
        for p, g in zip(parameters, gradients(loss, parameters)):
            p.grad = g
        optimizer.step()
        losses.append(loss.item())

    require(same(before, with_adapter(adapter, lambda: frozen(batch))), "the logits at step 0 are not the frozen ones")
    with_adapter(adapter, lambda: [step() for _ in range(5)])
    after = with_adapter(adapter, lambda: frozen(batch))
    require(losses[-1] < losses[0], f"five steps did not lower the loss ({losses[0]:.3f}, {losses[-1]:.3f})")
    words = f"loss: {losses[0]:.2f}, after five steps {losses[-1]:.2f}; logits of the row without an image: changed by up to"
    return f"{words} {change(before, after, 1):.1f}"


CHECKS = [the_start, the_formula, the_cost, parameters_are_counted, in_the_real_model]

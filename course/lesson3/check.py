"""What lesson 3 checks."""

import torch

from course.checks import (
    Wrong,
    compare,
    frozen,
    mixed,
    operations,
    require,
    tensor,
    tiny,
)
from imagelora import LoRA, LoRALayer


def start_has_the_right_shapes(student):
    """A is [inputs, rank] and random, B is [rank, outputs] and zero."""
    found = student.lora_start(48, 20, 4)
    require(isinstance(found, tuple) and len(found) == 2, "lora_start: return the two factors, `return A, B`")
    A, B = found
    if list(A.shape) == [4, 48] and list(B.shape) == [20, 4]:
        raise Wrong("the factors are transposed: here x stands on the left, x A B, so A is [inputs, rank]")
    tensor("A", A, 48, 4)
    tensor("B", B, 4, 20)
    if (A == 0).all() and (B == 0).all():
        raise Wrong(
            "A and B are both zero: then both gradients are zero, too, and nothing is ever learnt; make A random"
        )
    if (A == 0).all():
        raise Wrong("the zero is in A: the project (and the paper) keep A random and start with B = 0")
    if (B != 0).any():
        raise Wrong("B is not zero: the first step would not begin at the frozen model")
    require(not torch.equal(A, student.lora_start(48, 20, 4)[0]), "A is the same in each call: draw it at random")


def the_formula(student):
    """lora gives y + (alpha / R) x A B."""
    x, y = torch.randn(2, 5, 12), torch.randn(2, 5, 7)
    A, B, alpha = torch.randn(12, 4), torch.randn(4, 7), 10
    before, update = y.clone(), x @ A @ B
    mistakes = [
        (y + alpha * update, "the update is multiplied by alpha; divide alpha by the rank R"),
        (y + update, "the factor alpha / R is missing"),
        (y + alpha / 12 * update, "alpha is divided by D, the inputs; divide by the rank, A.shape[1]"),
        (y + alpha / 7 * update, "alpha is divided by the outputs; divide by the rank, A.shape[1]"),
        (alpha / 4 * update, "this is the update alone: the frozen output y is missing"),
        (y - alpha / 4 * update, "the update is subtracted"),
    ]
    got = student.lora(y, x, A, B, alpha)
    require(torch.equal(y, before), "y itself was changed (`+=` does that): write `y + ...`")
    compare("lora", got, y + alpha / 4 * update, mistakes)


def the_products_go_from_left_to_right(student):
    """lora makes thin products only: 2 * batch * T * R * (D + O) floating-point operations, never a D x O matrix."""
    rows, T, D, O, R = 2, 30, 40, 25, 3
    x, y, A, B = torch.randn(rows, T, D), torch.randn(rows, T, O), torch.randn(D, R), torch.randn(R, O)
    large = "A @ B is made first, the large matrix that LoRA avoids: multiply from left to right, x @ A @ B"
    none = "no product was counted: use @"
    mistakes = [(2 * D * R * O + 2 * rows * T * D * O, large), (0, none)]
    flops = operations(lambda: student.lora(y, x, A, B, 8))
    compare("the operations of lora", flops, 2 * rows * T * R * (D + O), mistakes)


def parameters_are_counted(student):
    """A matrix of 1,024 x 1,024 at rank 8 has 16,384 trained numbers, in place of 1,048,576."""
    for inputs, outputs, rank in ((1024, 1024, 8), (2000, 300, 8), (30, 70, 3)):
        mistakes = [
            (inputs * outputs, "this counts the frozen matrix; LoRA trains A and B only"),
            (inputs * outputs + rank * (inputs + outputs), "the frozen matrix is counted, too; it is not trained"),
            (inputs * rank, "this counts A only"),
            (outputs * rank, "this counts B only"),
            (2 * inputs * rank, "this takes A and B for equally large: B has rank x outputs"),
            (inputs * outputs * rank, "A and B are added, not multiplied: R D + R O"),
        ]
        got = student.lora_parameters(inputs, outputs, rank)
        compare(f"lora_parameters({inputs}, {outputs}, {rank})", got, rank * (inputs + outputs), mistakes)


class StudentsLoRA(LoRALayer):
    """LoRA in one linear layer of the real model, by the student's two functions."""

    def __init__(self, student, inputs, outputs):
        super().__init__(inputs, outputs, rank=4, alpha=8)
        A, B = student.lora_start(inputs, outputs, 4)
        self.A.data, self.B.data, self.student = A.clone(), B.clone(), student

    def forward(self, y, x, visual_index):
        return self.student.lora(y, x, self.A, self.B, 8)


def attached(student):
    """The student's LoRA on q, k, v and o of every layer of the real model."""
    vlm, _ = tiny()
    adapter = LoRA(vlm.config, rank=4, alpha=8)
    for place, ours in adapter.updates.items():
        adapter.updates[place] = StudentsLoRA(student, len(ours.A), ours.B.shape[1])
    return adapter.attach(vlm)


def at_the_start_the_model_is_the_frozen_one(student):
    """In the real model, on q, k, v and o of all layers: at step 0 the logits are the frozen ones, bit for bit."""
    before, adapter = frozen(mixed()), attached(student)
    try:
        after = frozen(mixed())
    finally:
        adapter.detach()
    require(torch.equal(before, after), "at step 0 the logits are not those of the frozen model: is B zero?")


CUT_OFF = "the gradient does not reach A and B: compute with them, without .data or .detach()"


def it_learns_and_text_changes(student):
    """Five steps of training lower the loss. Rows without an image change, too: LoRA acts on every token."""
    (vlm, _), batch = tiny(), mixed()
    before, adapter = frozen(batch), attached(student)
    try:
        parameters = [p for update in adapter.updates.values() for p in (update.A, update.B)]
        optimizer, losses = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0), []
        for _ in range(5):
            loss = vlm.loss(batch)
            require(loss.requires_grad, CUT_OFF)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            require(all(g is not None for g in gradients), CUT_OFF)
            for p, g in zip(parameters, gradients):
                p.grad = g
            optimizer.step()
            losses.append(loss.item())
        after = frozen(batch)
    finally:
        adapter.detach()
    require(
        losses[-1] < losses[0], f"five steps of training did not lower the loss ({losses[0]:.3f}, {losses[-1]:.3f})"
    )
    require(not torch.equal(before[1], after[1]), "the row without an image did not change: LoRA acts on all tokens")


CHECKS = [
    start_has_the_right_shapes,
    the_formula,
    the_products_go_from_left_to_right,
    parameters_are_counted,
    at_the_start_the_model_is_the_frozen_one,
    it_learns_and_text_changes,
]

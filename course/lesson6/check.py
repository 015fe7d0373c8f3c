"""What lesson 6 checks."""

import torch

from course.checks import call, compare, pair, require, same, tensor
from course.real import change, logits, mixed, tiny
from imagelora import ImageLoRA


def check_the_start(student):
    """image_lora_start gives factors of the right shapes and sizes, with which step 0 is the frozen model."""
    D, K, R, heads = 400, 16, 5, [0, 2, 3]
    A, B = pair("image_lora_start", student.image_lora_start(D, K, heads, R))
    require(A.dim() == 2, "there is an A for each head -> the heads of a layer share one, A [D, R]")
    tensor("A", A, D, R)
    require(B.dim() == 3, "there is one B for all heads -> each selected head has its own, B [n, R, K]")
    tensor("B", B, len(heads), R, K)
    require(not B.any(), "B is not zero: step 0 would not be the frozen model")
    deviation = A.std().item()
    sizes = f"{deviation:.2f}, not {1 / R:.2f}"
    require(abs(deviation - 1 / R) < 0.02, f"the standard deviation of A is {sizes} -> divide by R, not by sqrt(R)")


def check_the_formula(student):
    """image_lora changes the selected heads, and no other number, as its docstring says."""
    D, K, R, G, n, alpha, gamma, heads = 10, 4, 2, 6, 3, 5.0, 0.3, [1, 2, 0]
    v, x, A, B = torch.randn(2, 7, G * K), torch.randn(2, 7, D), torch.randn(D, R), torch.randn(n, R, K)
    visual_mask = torch.tensor([[0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0]]).bool()
    M, scale = visual_mask[..., None].float(), alpha / R

    def formula(s=scale * gamma / n**0.5, M=M, B=B, slots=heads):
        """The formula with one thing changed."""
        V = v.unflatten(-1, (-1, K)).clone()
        for i, h in enumerate(slots):
            V[:, :, h] += s * M * (x @ A @ B[i])
        return V.flatten(2)

    mistakes = {
        "the update grows with the number of heads -> the factor 1/sqrt(n) is missing": formula(scale * gamma),
        "the update shrinks with the number of heads -> divide by sqrt(n), not by n": formula(scale * gamma / n),
        "n is the number of all heads -> it is that of the selected ones": formula(scale * gamma / G**0.5),
        "the size of the update is wrong -> the factor gamma is missing": formula(scale / n**0.5),
        "the update is R times too large -> alpha is divided by the rank R": formula(alpha * gamma / n**0.5),
        "every token is changed -> the mask is not used": formula(M=1.0),
        "text is changed, the image is not -> the mask is the wrong way round": formula(M=1 - M),
        "the updates go into heads 0, 1, ... in turn -> B[i] belongs to head heads[i]": formula(slots=range(n)),
        "all heads get the same update -> B[i] is that of the i-th selected head": formula(B=B[:1].expand(n, R, K)),
        "the frozen values v are missing -> this is the update alone": formula() - v,
    }
    compare("image_lora", call(student.image_lora, v, x, visual_mask, A, B, gamma, alpha, heads), formula(), mistakes)


def check_in_the_real_model(student):
    """In the real model your update gives the logits of the project's own Image-LoRA; at step 0, the frozen ones."""
    vlm, batch, heads, before = tiny()[0], mixed(), {0: [1], 2: [0, 3], 5: [0, 1, 2, 3]}, logits(mixed())
    adapter, updates = ImageLoRA(vlm.config, heads, rank=4, alpha=12, gamma=0.5), {}
    for site, ours in adapter.updates.items():
        numbers = ours.A, ours.B, ours.gamma, 12, heads[site[0]]
        updates[site] = lambda v, x, _, n=numbers: student.image_lora(v, x, batch.visual_mask, *n)
    require(same(logits(batch, updates), before), "with B = 0 the logits are not those of the frozen model")
    for p in adapter.parameters():
        p.data.copy_(0.5 * torch.randn(p.shape))
    yours, ours = logits(batch, updates), logits(batch, adapter.updates)
    compare("the logits with your image_lora", yours, ours)
    return f"7 of 24 heads change a logit by up to {change(before, ours, 0):.1f}; yours differ by {change(yours, ours, 0):.0e}"


def check_flops_are_counted(student):
    """adapter_flops counts one layer of a training step, for two sizes."""
    for N, D, R, n, K in ((5000, 2048, 8, 1, 128), (1568, 128, 8, 3, 16)):
        right = 6 * N * (D * R + R * n * K)
        mistakes = {
            "this is the forward pass alone -> the backward pass makes each product twice more": right / 3,
            "half of the operations are missing -> a multiply-add counts as two": right / 2,
            "the second product is too small -> it makes n heads: [N, R] x [R, n*K]": 6 * N * (D * R + R * K),
            "X A is made for each head -> once for all heads of a layer: they share A": 6 * N * n * (D * R + R * K),
        }
        compare("adapter_flops", student.adapter_flops(N, D, R, n, K), right, mistakes)

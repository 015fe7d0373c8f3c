import torch


def image_lora_start(hidden, head_size, heads, rank):
    A = torch.randn(hidden, rank) / rank
    B = torch.zeros(len(heads), rank, head_size)
    return A, B


def image_lora(v, x, visual_mask, A, B, gamma, alpha, heads):
    n, R, K = B.shape
    s = alpha / R * gamma / n**0.5
    M = visual_mask[..., None]
    V = v.unflatten(-1, (-1, K)).clone()
    for i, h in enumerate(heads):
        V[:, :, h] += s * (M * x) @ A @ B[i]
    return V.flatten(2)


def adapter_flops(visual_tokens, hidden, rank, heads, head_size):
    return 6 * visual_tokens * (hidden * rank + rank * heads * head_size)

import torch

NUMBER = 0


def my_heads(scores):
    L, G = scores.shape
    return {layer: list(range(G)) for layer in range(L)}


def my_start(hidden, head_size, heads):
    return [torch.randn(hidden, 4) / 4, torch.zeros(len(heads), 4, head_size)]


def my_update(v, x, visual_mask, parameters, heads):
    A, B = parameters
    M = visual_mask[..., None]
    V = v.unflatten(-1, (-1, B.shape[-1])).clone()
    for i, h in enumerate(heads):
        V[:, :, h] += (M * x) @ A @ B[i]
    return V.flatten(2)

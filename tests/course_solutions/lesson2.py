import torch


def attend(q, k, v):
    groups, T = q.shape[1] // k.shape[1], q.shape[2]
    k = k.repeat_interleave(groups, dim=1)
    v = v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    earlier = torch.ones(T, T, dtype=torch.bool).tril()
    weights = scores.masked_fill(~earlier, float("-inf")).softmax(dim=-1)
    return weights @ v, weights


def taken_from_image(weights, v, visual_mask):
    v = v.repeat_interleave(weights.shape[1] // v.shape[1], 1)
    keys = visual_mask[:, None, None, :]
    return (weights * keys) @ v

import torch


def training_bytes(frozen, trained):
    return 2 * frozen + 4 * trained, 4 * trained, 8 * trained


def merged(W, A, B, s):
    return W + s * A @ B


def training_step(vlm, batch, parameters, optimizer):
    loss = vlm.loss(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()

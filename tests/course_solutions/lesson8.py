import torch


def layer_shares(scores, budget, tau):
    mass = scores.sum(dim=1)
    weight = mass**tau
    return budget * weight / weight.sum()


def limited(shares, G):
    total, given = shares.sum(), torch.zeros_like(shares)
    while total - given.sum() > 1e-5:
        weight = shares * (given < G - 1e-5)
        given = (given + (total - given.sum()) * weight / weight.sum()).clamp(max=G)
    return given


def rounded(shares):
    down = (shares + 1e-5).floor()
    missing = round(shares.sum().item() - down.sum().item())
    order = (shares - down).argsort(descending=True, stable=True)
    down[order[:missing]] += 1
    return down.int().tolist()

def gradient_of_B(dV, x, visual_mask, A):
    xA = x @ A
    each = xA[visual_mask][..., None] * dV[visual_mask]
    return each.sum(dim=0)


def head_scores(gradients):
    return gradients.square().sum(dim=-1).sum(dim=0)

def formula_update(v, x, visual_mask, A, B, s):
    M = visual_mask[..., None]
    return v + s * (M * x) @ A @ B


def gathered_update(v, x, visual_index, A, B, s):
    X = x.flatten(0, 1)[visual_index]
    update = s * (X @ A @ B)
    changed = v.flatten(0, 1).clone()
    changed[visual_index] += update
    return changed.view_as(v)

"""What lesson 2 checks."""

import torch

from course.checks import compare, frozen, require, scenes, tiny
from parts.backbones.layers import fused_attention


def random_heads(B=2, H=6, G=2, T=5, K=4):
    return torch.randn(B, H, T, K), torch.randn(B, G, T, K), torch.randn(B, G, T, K)


def by_mistake(q, k, v, scale=None, mask=None, repeat="interleave", dim=-1):
    """(out, weights) of attention with one thing changed."""
    groups = q.shape[1] // k.shape[1]
    if repeat == "interleave":
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    else:
        k, v = k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1)
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if mask is None else mask
    weights = scores.masked_fill(~causal, float("-inf")).softmax(dim=dim)
    return weights @ v, weights


def pair(found):
    require(isinstance(found, tuple) and len(found) == 2, "attend: return both, `return out, weights`")
    return found


def the_formula(student):
    """attend is softmax(q k^T / sqrt(K)) v, causal, with grouped heads."""
    q, k, v = random_heads()
    T, K = q.shape[2], q.shape[3]
    everyone, triangle = torch.ones(T, T, dtype=torch.bool), torch.ones(T, T, dtype=torch.bool).tril()
    scores = by_mistake(q, k, v)[1]
    late = (q @ k.repeat_interleave(3, 1).transpose(-2, -1) * K**-0.5).softmax(-1) * triangle
    zeros = ((q @ k.repeat_interleave(3, 1).transpose(-2, -1) * K**-0.5) * triangle).softmax(-1)
    mistakes = [
        (by_mistake(q, k, v, scale=1.0)[1], "the factor 1/sqrt(K) is missing"),
        (by_mistake(q, k, v, scale=1 / K)[1], "the scores are divided by K; divide by sqrt(K)"),
        (
            by_mistake(q, k, v, scale=q.shape[1] ** -0.5)[1],
            "the scores are divided by sqrt(H); K is the last dimension of q",
        ),
        (by_mistake(q, k, v, scale=T**-0.5)[1], "the scores are divided by sqrt(T); K is the last dimension of q"),
        (by_mistake(q, k, v, mask=everyone)[1], "tokens look into the future: a causal mask is missing"),
        (by_mistake(q, k, v, mask=triangle.T)[1], "the mask is upside down: a token looks at earlier ones"),
        (by_mistake(q, k, v, mask=triangle.tril(-1))[1], "a token must look at itself, too; without it row 0 is NaN"),
        (by_mistake(q, k, v, repeat="tile")[1], "heads are grouped the wrong way: use repeat_interleave, not repeat"),
        (by_mistake(q, k, v, dim=-2)[1], "the softmax is over the queries: it belongs to the keys, the last dimension"),
        (late, "the mask comes after the softmax: the weights no longer add up to 1; use -inf before it"),
        (zeros, "a score of 0 is not nothing: e^0 = 1; use -inf where a token may not look"),
    ]
    out, weights = pair(student.attend(q, k, v))
    compare("the weights of attend", weights, scores, mistakes)
    wrong_values = weights @ v.repeat(1, 3, 1, 1)
    words = "the values are grouped the wrong way: use repeat_interleave for them, too"
    compare("the output of attend", out, by_mistake(q, k, v)[0], [(wrong_values, words)])


def in_the_real_model(student):
    """In the real model, in all layers, your attention gives the right logits."""
    vlm, processor = tiny()
    batch = processor(scenes(1))
    before = frozen(batch)
    for layer in vlm.model.layers:
        layer.self_attn.attention = lambda q, k, v, mask: student.attend(q, k, v)[0]
    try:
        after = frozen(batch)
    finally:
        for layer in vlm.model.layers:
            layer.self_attn.attention = fused_attention
    compare("the logits with your attention", after, before)


def what_is_taken(student):
    """taken_from_image is the part of the sum that comes from visual keys."""
    q, k, v = random_heads()
    visual_mask = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()
    _, weights = by_mistake(q, k, v)
    values, keys = v.repeat_interleave(3, dim=1), visual_mask[:, None, None, :]
    right = (weights * keys) @ values
    again = weights * keys / (weights * keys).sum(-1, keepdim=True).clamp(min=1e-9)
    text = (weights * ~keys) @ values
    mistakes = [
        (weights @ values, "this is taken from all tokens: the mask is not used"),
        (text, "this is taken from the text: the mask is the wrong way round"),
        (
            (weights * visual_mask[:, None, :, None]) @ values,
            "the mask is on the queries: it belongs to those looked at, the keys",
        ),
        (
            again @ values,
            "the weights of the image were scaled to add up to 1: text tokens keep their share, leave it so",
        ),
        ((weights * visual_mask[:1, None, None, :]) @ values, "the mask of row 0 is used for all rows"),
        ((weights * keys) @ v.repeat(1, 3, 1, 1), "the values are grouped the wrong way: use repeat_interleave"),
    ]
    compare("taken_from_image", student.taken_from_image(weights, v, visual_mask), right, mistakes)


def values_change_what_and_keys_change_who(student):
    """At a layer of the real model: changed values of the image leave all weights as they are, changed keys do not; and all
    that a text token notices of changed values is what it takes from the image."""
    vlm, processor = tiny()
    batch = processor(scenes(1))
    kept = []

    def keep(q, k, v, mask):
        kept.append((q, k, v))
        return fused_attention(q, k, v, mask)

    layer = vlm.model.layers[3].self_attn
    layer.attention = keep
    try:
        frozen(batch)
    finally:
        layer.attention = fused_attention
    q, k, v = kept[0]
    visual = batch.visual_mask[:, None, :, None]
    other_k, other_v = k + visual * torch.randn_like(k), v + visual * torch.randn_like(v)
    out, weights = student.attend(q, k, v)
    out_v, weights_v = student.attend(q, k, other_v)
    require(torch.equal(weights, weights_v), "the weights changed with the values: they are made of q and k alone")
    require(not torch.equal(weights, student.attend(q, other_k, v)[1]), "the weights did not change with the keys")
    before, after = (student.taken_from_image(weights, values, batch.visual_mask) for values in (v, other_v))
    if not torch.allclose(out_v - out, after - before, atol=1e-4):
        compare("what changed in the output, by taken_from_image", after - before, out_v - out)


CHECKS = [the_formula, in_the_real_model, what_is_taken, values_change_what_and_keys_change_who]

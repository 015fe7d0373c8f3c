"""What lesson 2 checks."""

import torch

from course.checks import compare, pair, require, same
from course.real import frozen, scenes, tiny
from parts.backbones.layers import fused_attention


def random_heads(B=2, H=6, G=2, T=5, K=4):
    return torch.randn(B, H, T, K), torch.randn(B, G, T, K), torch.randn(B, G, T, K)


def by_hand(q, k, scale=None, mask=None, repeat=None, hidden=float("-inf")):
    """The weights of attention, with one thing changed."""
    k = (repeat or k.repeat_interleave)(q.shape[1] // k.shape[1], 1)
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if mask is None else mask
    return scores.masked_fill(~causal, hidden).softmax(dim=-1)


def the_formula(student):
    """attend is softmax(q k^T / sqrt(K)) v, causal, with grouped heads."""
    q, k, v = random_heads()
    triangle, values = torch.ones(5, 5, dtype=torch.bool).tril(), v.repeat_interleave(3, dim=1)
    right, everyone = by_hand(q, k), by_hand(q, k, mask=torch.ones(5, 5, dtype=torch.bool))
    mistakes = {
        "the weights are too sharp -> the factor 1/sqrt(K) is missing": by_hand(q, k, scale=1.0),
        "the weights are too even -> the scores are divided by K; divide by sqrt(K)": by_hand(q, k, scale=1 / 4),
        "the scores are divided by sqrt(H) -> K is the last dimension of q": by_hand(q, k, scale=6**-0.5),
        "tokens look into the future -> a causal mask is missing": everyone,
        "tokens look at later ones only -> the mask is upside down": by_hand(q, k, mask=triangle.T),
        "row 0 is NaN -> a token must look at itself, too": by_hand(q, k, mask=triangle.tril(-1)),
        "a hidden token has a weight -> a score of 0 is not nothing, e^0 = 1; use -inf": by_hand(q, k, hidden=0.0),
        "the weights do not add up to 1 -> the mask comes before the softmax, as -inf": everyone * triangle,
        "heads read the wrong keys -> use repeat_interleave, not repeat": by_hand(q, k, repeat=lambda n, _: k.repeat(1, n, 1, 1)),
        "columns add up to 1, not rows -> the softmax belongs to the keys, the last dimension": (
            (q @ k.repeat_interleave(3, 1).transpose(-2, -1) / 2).masked_fill(~triangle, float("-inf")).softmax(dim=-2)
        ),
    }
    out, weights = pair("attend", student.attend(q, k, v))
    compare("the weights of attend", weights, right, mistakes)
    tiled = {"heads read the wrong values -> use repeat_interleave for them, too": weights @ v.repeat(1, 3, 1, 1)}
    compare("the output of attend", out, right @ values, tiled)


def watched(task, attention):
    """task() with another attention function in all layers of the real model."""
    layers = [layer.self_attn for layer in tiny()[0].model.layers]
    for layer in layers:
        layer.attention = attention
    try:
        return task()
    finally:
        for layer in layers:
            layer.attention = fused_attention


def in_the_real_model(student):
    """In the real model, in all layers, your attention gives the right logits."""
    batch = tiny()[1](scenes(1))
    logits = watched(lambda: frozen(batch), lambda q, k, v, mask: student.attend(q, k, v)[0])
    compare("the logits with your attention", logits, frozen(batch))
    return f"largest difference of a logit: {(logits - frozen(batch)).abs().max():.1g}"


def what_is_taken(student):
    """taken_from_image is the part of the sum that comes from visual keys."""
    q, k, v = random_heads()
    visual_mask = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()
    weights, values, keys = by_hand(q, k), v.repeat_interleave(3, dim=1), visual_mask[:, None, None, :]
    shares = (weights * keys).sum(-1, keepdim=True).clamp(min=1e-9)
    mistakes = {
        "this is taken from all tokens -> the mask is not used": weights @ values,
        "this is taken from the text -> the mask is the wrong way round": (weights * ~keys) @ values,
        "rows of text tokens are zero -> the mask belongs to those looked at, the keys": weights * keys.mT @ values,
        "the weights were scaled to add up to 1 -> text tokens keep their share, leave it so": weights * keys / shares @ values,
        "both rows have the image of row 0 -> each row has its own mask": weights * keys[:1] @ values,
        "heads read the wrong values -> use repeat_interleave, not repeat": weights * keys @ v.repeat(1, 3, 1, 1),
    }
    compare("taken_from_image", student.taken_from_image(weights, v, visual_mask), weights * keys @ values, mistakes)


def values_change_what_and_keys_change_who(student):
    """At a layer of the real model: the image's keys decide who looks where, its values only what is taken from there."""
    batch, kept = tiny()[1](scenes(1)), []
    watched(lambda: frozen(batch), lambda *qkv: kept.append(qkv[:3]) or fused_attention(*qkv))
    (q, k, v), visual = kept[3], batch.visual_mask[:, None, :, None]
    other_k, other_v = k + visual * torch.randn_like(k), v + visual * torch.randn_like(v)
    (out, weights), (out_v, weights_v) = student.attend(q, k, v), student.attend(q, k, other_v)
    on_text = ~batch.visual_mask[:, None, None, :]
    by_values, by_keys = ((w - weights).abs().mul(on_text).max() for w in (weights_v, student.attend(q, other_k, v)[1]))
    require(same(weights, weights_v), "the weights changed with the values -> they are made of q and k alone")
    require(by_keys > 0, "the weights did not change with the keys -> they are made of q and k")
    before, after = (student.taken_from_image(weights, values, batch.visual_mask) for values in (v, other_v))
    compare("what changed in the output, against taken_from_image", after - before, out_v - out)
    return f"weights on text: changed by {by_values:.0f} with values, by up to {by_keys:.2f} with keys"


CHECKS = [the_formula, in_the_real_model, what_is_taken, values_change_what_and_keys_change_who]

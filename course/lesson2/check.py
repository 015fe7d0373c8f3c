"""What lesson 2 checks."""

import torch

from course.checks import Wrong, compare, pair, require, same
from course.real import logits, scenes, tiny
from model import attend
from parts.backbones.layers import weights_kept


def check_the_formula(student):
    """attend is softmax(q k^T / sqrt(K)) v, causal, with grouped heads."""
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    causal, everyone = torch.ones(5, 5, dtype=torch.bool).tril(), torch.ones(5, 5, dtype=torch.bool)
    right_out, right = attend(q, k, v, causal)

    def weights_by(mask=causal, scale=1.0, k=k):
        return attend(scale * q, k, k, mask)[1]

    scores = (q @ k.repeat_interleave(3, dim=1).mT / 2).masked_fill(~causal, float("-inf"))  # K = 4
    mistakes = {
        "the weights are too sharp -> the factor 1/sqrt(K) is missing": weights_by(scale=2),
        "the weights are too even -> the scores are divided by K; divide by sqrt(K)": weights_by(scale=1 / 2),
        "tokens look into the future -> a causal mask is missing": weights_by(everyone),
        "tokens look at later ones only -> the mask is upside down": weights_by(causal.T),
        "row 0 is NaN -> a token must look at itself, too": weights_by(causal.tril(-1)),
        "a hidden token has a weight -> a score of 0 is not nothing, e^0 = 1; use -inf": scores.nan_to_num(neginf=0.0).softmax(dim=-1),
        "the weights do not add up to 1 -> the mask comes before the softmax": weights_by(everyone) * causal,
        "the columns add up to 1, not the rows -> the softmax is over the last dimension": scores.softmax(dim=-2),
        "heads read the wrong keys -> use repeat_interleave, not repeat": weights_by(k=k.repeat(1, 3, 1, 1)),
    }
    try:
        out, weights = pair("attend", student.attend(q, k, v))
    except RuntimeError as error:
        raise Wrong("q has 6 heads, k and v have 2 -> repeat_interleave both") if "(6) must match" in str(error) else error
    compare("the weights of attend", weights, right, mistakes)
    mistakes = {"heads read the wrong values -> use repeat_interleave for them, too": weights @ v.repeat(1, 3, 1, 1)}
    compare("the output of attend", out, right_out, mistakes)


def check_in_the_real_model(student):
    """In the real model, in all layers, your attention gives the right logits."""
    batch, layers = tiny()[1](scenes(1)), tiny()[0].model.layers
    with weights_kept(layers, lambda q, k, v, mask: student.attend(q, k, v)):
        yours = logits(batch)
    compare("the logits with your attention", yours, logits(batch))


def check_what_is_taken(student):
    """taken_from_image is the part of the sum that comes from visual keys."""
    v = torch.randn(2, 2, 5, 4)
    weights = attend(torch.randn(2, 6, 5, 4), torch.randn(2, 2, 5, 4), v, None)[1]
    visual_mask = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()
    values, keys = v.repeat_interleave(3, dim=1), visual_mask[:, None, None, :]
    shares = (weights * keys).sum(-1, keepdim=True).clamp(min=1e-9)
    mistakes = {
        "this is taken from all tokens -> the mask is not used": weights @ values,
        "this is taken from the text -> the mask is the wrong way round": weights * ~keys @ values,
        "rows of text tokens are zero -> the mask belongs to those looked at, the keys": weights * keys.mT @ values,
        "the weights were scaled to add up to 1 -> text keeps its share, leave it so": weights * keys / shares @ values,
    }
    compare("taken_from_image", student.taken_from_image(weights, v, visual_mask), weights * keys @ values, mistakes)


def check_values_change_what_and_keys_change_who(student):
    """At a layer of the real model: the image's keys decide who looks where, its values only what is taken from there."""
    batch, kept = tiny()[1](scenes(1)), []
    with weights_kept(tiny()[0].model.layers, lambda *qkv: kept.append(qkv[:3]) or attend(*qkv)):
        logits(batch)
    (q, k, v), visual = kept[3], batch.visual_mask[:, None, :, None]
    other_k, other_v = k + visual * torch.randn_like(k), v + visual * torch.randn_like(v)
    (out, weights), (other_out, same_weights) = student.attend(q, k, v), student.attend(q, k, other_v)
    by_keys = ((student.attend(q, other_k, v)[1] - weights).abs() * ~visual.mT).max()
    require(same(weights, same_weights), "the weights changed with the values -> they are made of q and k alone")
    require(by_keys > 0, "the weights did not change with the keys -> they are made of q and k")
    before, after = (student.taken_from_image(weights, values, batch.visual_mask) for values in (v, other_v))
    compare("what changed in the output, against taken_from_image", after - before, other_out - out)
    return f"weights on text: changed by 0 with values, by up to {by_keys:.2f} with keys"

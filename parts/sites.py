"""Sites of LoRA: the projections of the decoder's attention, and other Linear layers. A new one is a line in each part."""

from torch import nn

SITES = ("q", "k", "v", "o", "mlp", "encoder", "merger")
IN_ENCODER = ("encoder", "merger")  # these change the embeddings of images


def sizes(c):
    """{site: [(inputs, outputs) of its Linear layers, in order]}. c: VLM.config."""
    D, F, E, L = c.hidden, c.intermediate, c.vision.hidden, c.layers
    query, value = c.heads * c.head_size, c.value_heads * c.head_size
    M = E * c.vision.merge**2  # the patches of a visual token, side by side
    return {
        "q": [(D, query)] * L,
        "k": [(D, value)] * L,
        "v": [(D, value)] * L,
        "o": [(query, D)] * L,
        "mlp": [(D, F), (D, F), (F, D)] * L,  # gate, up, down
        "encoder": [(E, 3 * E), (E, E)] * c.vision.depth,  # qkv and proj of a block's attention
        "merger": [(M, M), (M, D)],
    }


def rows(c, site, tokens, visual_tokens):
    """How many inputs the layers of a site have: patches in the encoder, which the merger joins to visual tokens."""
    return {"encoder": visual_tokens * c.vision.merge**2, "merger": visual_tokens}.get(site, tokens)


def updates_of(vlm, site, i):
    """The list in the model of what is added to the i-th Linear layer of a site. Attention has its own lists, since it knows
    which tokens are visual. Any other layer gets a list, and a hook that adds what is in it."""
    if site in ("q", "k", "v", "o"):
        return vlm.model.layers[i].self_attn.updates[site]
    linears = {
        "mlp": [linear for layer in vlm.model.layers for linear in layer.mlp.children()],
        "encoder": [linear for block in vlm.visual.blocks for linear in block.attn.children()],
        "merger": [linear for linear in vlm.visual.merger.modules() if isinstance(linear, nn.Linear)],
    }
    linear = linears[site][i]
    if not hasattr(linear, "updates"):
        linear.updates = []
        linear.register_forward_hook(lambda linear, x, y: linear.updates[0](y, *x, None) if linear.updates else y)
    return linear.updates

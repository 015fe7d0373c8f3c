"""--shard: for models that one card cannot hold. Every process holds its part of each decoder layer (torch's FSDP2).

A layer is put together from its parts when it computes, in the forward pass and again in the backward pass, and is dropped
after that. Embedding table, head, vision encoder and adapters are complete in every process.

All processes must put the same layer together at the same time, so all must make the same number of passes through the
decoder. But one has more batches than another, or longer answers. So every pass is announced, and a process that has
none left takes part in those of the others with one token, whose result counts nothing.
"""

import torch
import torch.distributed as dist

from harness.processes import WORLD, together
from parts.files import InputError

ALONE = "--shard: there is only this process; start one for each card: torchrun --nproc-per-node=4 train.py --shard ..."


def refused(found):
    """Why a run with these {flag: value} cannot be sharded, or None."""
    if WORLD == 1:
        return ALONE
    if found["method"] == "full":
        return "--method full trains the layers, --shard can only read them: leave one of the two out"
    if found["selection"] == "weight-norm":
        return "--selection weight-norm reads complete layers, which --shard has not: choose another one"
    return None


def load_sharded(load, dtype, device):
    """load(dtype, device) -> a frozen VLM; this one has its layers sharded over all processes.

    The files are mapped, and one layer at a time goes to `dtype` and `device` and is sharded there: a process never holds
    more than its parts, one complete layer, and what is not sharded. Raises InputError without other processes.
    """
    if WORLD == 1:  # of a run that --resume continues; else `refused` has said it
        raise InputError(ALONE)
    # Imported here, because it takes seconds.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    vlm = load(None, "cpu")
    fingerprint = vlm.fingerprint()
    vlm.fingerprint = lambda: fingerprint  # of the complete model
    vlm.save = refuse_to_save

    mesh = init_device_mesh(device.type, (WORLD,))
    for layer in vlm.model.layers:
        fully_shard(layer.to(device, dtype), mesh=mesh, reshard_after_forward=True)
    complete = set(vlm.parameters()) - set(vlm.model.layers.parameters())
    for p in complete:
        p.data = p.data.to(device, dtype)
    # Nothing more is sharded by this: with the decoder as root, a GPU fetches a layer while the one before it computes.
    fully_shard(vlm.model, mesh=mesh, ignored_params=complete)

    vlm.sharded, vlm.model.idle = True, False
    vlm.model.register_forward_pre_hook(announce)
    return vlm


def refuse_to_save(path):
    raise InputError(f"{path}: a sharded model is not saved; load it without --shard")


# -- the same number of passes in all processes


def any_busy(busy):
    """All processes ask this together: is any of them busy?"""
    found = torch.tensor(int(busy))
    with together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item() == 1


def announce(decoder, inputs):
    """Before each pass through the decoder: the others are to take part."""
    if not decoder.idle:
        any_busy(True)


def empty_passes(vlm, backward):
    """Where this process has made all its passes: take part in those of the others, until all have made theirs.

    backward: whether they are forward and backward passes. The one token has no image; an adapter, which adds nothing to
    it, is in its graph all the same, so the backward pass goes through the same layers. Gradients of zero are added.
    """
    if not vlm.sharded:
        return
    decoder, device = vlm.model, vlm.device
    token = decoder.embed_tokens.weight[None, :1]  # [1, 1, D]
    position = torch.zeros(3, 1, 1, dtype=torch.long, device=device)
    no_image = position.new_zeros(0)
    decoder.idle = True
    while any_busy(False):
        with torch.set_grad_enabled(backward):
            x = decoder(token, position, None, no_image)
        if backward:
            (0 * x.sum()).backward()
    decoder.idle = False

"""Images are encoded once a run and their embeddings kept: the encoder is frozen."""

import torch

from harness.processes import progress
from tasks.images import image_key


@torch.no_grad()
def encode_pictures(args, vlm, processor, examples):
    """{image_key: visual embeddings} of the examples' pictures, until --cache-vision is full. The encoder is frozen, so
    what it says of a picture never changes: once a run is enough, for every epoch and evaluation."""
    known, kept, left = {}, [], args.cache_vision * 2**30
    pictures = {image_key(image): image for e in examples for image in e.visuals} if left else {}
    for key, image in pictures.items():
        left -= processor.visual_tokens(image) * vlm.config.hidden * vlm.dtype.itemsize
        if left < 0:
            break
        kept.append(key)
    with progress(total=len(kept), desc="encoding pictures") as bar:
        for i in range(0, len(kept), 16):
            cuts = [processor.cut(pictures[key]) for key in kept[i : i + 16]]
            grids = torch.tensor([grid for _, grid in cuts])
            visual = vlm.visual(torch.cat([patches for patches, _ in cuts]).to(vlm.device), grids).cpu()
            sizes = [processor.visual_tokens(pictures[key]) for key in kept[i : i + 16]]
            known |= zip(kept[i : i + 16], visual.split(sizes))
            bar.update(len(cuts))
    if pictures:
        print(f"pictures {len(known)} of {len(pictures)} encoded once and kept")
    return known

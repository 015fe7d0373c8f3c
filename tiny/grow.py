"""Grows a tiny model: the weights of a checkpoint with fewer layers or another tokenizer, made to fit this folder's
config.json and tokenizer.json. What it has learnt stays, so that the pretraining that follows is short.

    python tiny/grow.py OLD_FOLDER NEW_FOLDER       NEW_FOLDER gets everything that --model needs

A new layer begins as the identity: what it would add to the residual stream (o_proj, down_proj) is zero. A token that
both tokenizers know keeps its row of the embedding; a new one begins as the mean of its pieces' rows.
"""

import shutil
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from backbones.checkpoint import read_config
from files import read_safetensors, write_safetensors
from model import VLM

EMBEDDING = "model.embed_tokens.weight"


def grown_embedding(old, old_tokenizer, tokenizer):
    """Rows [old vocabulary, D] -> [vocabulary, D]."""
    rows = torch.empty(tokenizer.get_vocab_size(), old.shape[1])
    for token, i in tokenizer.get_vocab().items():
        same = old_tokenizer.token_to_id(token)
        pieces = old_tokenizer.encode(tokenizer.decode([i]), add_special_tokens=False).ids
        rows[i] = old[pieces].mean(dim=0) if same is None else old[same]
    return rows


def grown(old, new):
    """The weights {name: tensor} of a checkpoint folder `old`, for the config.json and tokenizer.json of `new`. Tensors
    that the old one does not have are random, or zero where a layer writes."""
    weights = dict(read_safetensors(old / "model.safetensors"))
    tokenizers = [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (old, new)]
    found = {}
    for name, fresh in VLM.from_scratch(read_config(new)).state_dict().items():
        if name == EMBEDDING:
            found[name] = grown_embedding(weights[name], *tokenizers)
        elif name in weights:
            found[name] = weights[name]
        else:
            writes = "o_proj" in name or "down_proj" in name
            found[name] = torch.zeros_like(fresh) if writes else fresh
    return found


def main():
    old, new = map(Path, sys.argv[1:])
    new.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json"):
        shutil.copyfile(HERE / name, new / name)
    weights = grown(old, new)
    write_safetensors(new / "model.safetensors", weights, {"format": "pt"})
    print(f"{new}: {sum(t.numel() for t in weights.values()):,} parameters")


if __name__ == "__main__":
    main()

"""Checkpoints in the hub's layout: a folder or a hub id -> the frozen model, and back.

model.py hangs these functions on VLM: VLM.from_pretrained, vlm.save, vlm.fingerprint.
"""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer

from parts import files
from parts.backbones import FAMILIES
from parts.backbones.nf4 import nf4_layers, use_nf4


def read_config(path_or_hub_id):
    """The configuration of a checkpoint: its config.json and, if there is one, generation_config.json. Raises InputError
    for a model family that is not implemented here."""
    folder = checkpoint_folder(path_or_hub_id)
    file, generation_file = folder / "config.json", folder / "generation_config.json"
    raw = files.read_json(file)
    generation = files.read_json(generation_file) if generation_file.exists() else None
    family = raw.get("model_type") if isinstance(raw, dict) else None
    if family not in list(FAMILIES):
        raise files.InputError(f"{file}: model_type is {family!r:.60}; implemented: {', '.join(FAMILIES)}")
    return FAMILIES[family].Config.from_dict(raw, generation, source=str(file))


def read_preprocessor(path_or_hub_id):
    """How the checkpoint's images are prepared: the parsed preprocessor_config.json, with min_pixels and max_pixels. Raises
    InputError if it is broken."""
    folder = checkpoint_folder(path_or_hub_id)
    file = folder / "preprocessor_config.json"
    if not file.exists():  # newer transformers writes one file for all processors
        file = folder / "processor_config.json"
    with files.reading(file, "a preprocessor's configuration"):
        raw = files.read_json(file)
        raw = raw.get("image_processor", raw)
        torch.tensor([raw["image_mean"], raw["image_std"]], dtype=torch.float32).view(2, 3)  # red, green, blue
        size = raw.get("size") or {}  # where newer files have the limits
        limits = {"min_pixels": size.get("shortest_edge") or 56 * 56}
        limits["max_pixels"] = size.get("longest_edge") or 28 * 28 * 1280
        settings = limits | {k: v for k, v in raw.items() if v is not None}
        return settings | {name: int(settings[name]) for name in limits}


def read_tokenizer(path_or_hub_id):
    """The checkpoint's tokenizer.json. Raises InputError if it is missing or broken."""
    file = checkpoint_folder(path_or_hub_id) / "tokenizer.json"
    files.read_json(file)  # missing or broken: one clear line
    with files.reading(file, "a tokenizer"):
        return Tokenizer.from_file(str(file))


def from_pretrained(cls, path_or_hub_id, dtype=torch.float32, device="cpu", quantize=None):
    """Load a checkpoint in the hub's layout: a folder, or a model id that is downloaded once.

    The safetensors files are memory-mapped and each tensor goes straight to `dtype` and `device`; one that changes neither
    stays in the file. With quantize="nf4" each projection of the decoder's layers goes straight to 4 bits (nf4.py). Returns
    the model frozen and in eval mode. Raises InputError for a missing, surplus, doubled or misshapen tensor.
    """
    if quantize not in (None, "nf4"):
        raise ValueError(f"quantize is {quantize!r}; it can be None or 'nf4'")
    folder = checkpoint_folder(path_or_hub_id)
    config = read_config(folder)
    with torch.device("meta"):  # names and shapes without memory
        vlm = cls(config)
    expected = {name: tuple(p.shape) for name, p in vlm.state_dict().items()}
    if quantize:
        use_nf4(vlm)
    in_4_bits = nf4_layers(vlm)  # {name: the layer that keeps this weight}

    # Every tensor of the files is used exactly once.
    tensors = {}
    for file in checkpoint_files(folder):
        for name, tensor in files.read_safetensors(file, device):
            name = our_name(name)
            if name not in expected:
                raise files.InputError(f"{file}: surplus tensor {name}; does config.json belong to these weights?")
            if name in tensors:
                raise files.InputError(f"{file}: tensor {name} occurs twice in this checkpoint")
            if (shape := tuple(tensor.shape)) != expected[name]:
                raise files.InputError(f"{file}: {name} is {list(shape)}, config.json asks for {list(expected[name])}")
            if not torch.stack(tensor.aminmax()).isfinite().all():  # NaN, if there is one
                raise files.InputError(f"{file}: {name} holds NaN or infinity; copy or download it again")
            layer = in_4_bits.get(name)
            tensors[name] = layer.keep(tensor, sample(tensor)) if layer else tensor.to(dtype)
    if missing := [name for name in expected if name not in tensors]:
        raise files.InputError(f"{folder}: missing tensor {missing[0]} (and {len(missing) - 1} more)")

    vlm.load_state_dict({name: t for name, t in tensors.items() if name not in in_4_bits}, assign=True)
    vlm.source = str(path_or_hub_id)
    return vlm.requires_grad_(False).eval()


def our_name(name):
    """A tensor's name in a file -> in model.py. Both forms are read, whichever is the family's."""
    return re.sub(r"^model\.(visual\.)|^(model\.)language_model\.", r"\1\2", name)


def hub_name(name, family):
    """A tensor's name in model.py -> in the family's checkpoints on the hub."""
    return re.sub(r"^(visual|model)\.", lambda ours: FAMILIES[family].TOWERS[ours[1]], name)


def save(self, path):
    """Write config.json, generation_config.json and model.safetensors into the folder `path`, with the hub's names.
    Raises InputError for a model in 4 bits."""
    if nf4_layers(self):
        raise files.InputError(f"{path}: a model in 4 bits is not saved; load it without --quantize, and save that")
    folder = Path(path)
    weights = {hub_name(name, self.config.family): t for name, t in self.state_dict().items()}
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    raw = {k: v for k, v in self.config.raw.items() if k != "dtype"} | {"torch_dtype": dtype}
    generation = self.config.generation or {"eos_token_id": list(self.config.end_tokens)}
    files.write_text(folder / "config.json", json.dumps(raw, indent=2) + "\n")
    files.write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    files.write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})


def fingerprint(self):
    """Which model this is: a hash of the configuration and of 16 values of every tensor. They are hashed as bfloat16, so
    that one checkpoint has one fingerprint in every dtype. A model in 4 bits has the hash of the weights that it was made
    of, and says that it is in 4 bits: it answers differently, so an adapter of the one is refused by the other."""
    config = {k: v for k, v in asdict(self.config).items() if k not in ("raw", "generation", "end_tokens")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    in_4_bits = {name: layer.stored for name, layer in nf4_layers(self).items()}
    values = {name: sample(p.detach()) for name, p in self.named_parameters()} | in_4_bits
    for name in sorted(values):
        digest.update(str(values[name].to(torch.bfloat16).view(torch.int16).tolist()).encode())
    return digest.hexdigest()[:32] + (" with --quantize nf4" if in_4_bits else "")


def sample(tensor, count=16):
    """`count` values of a tensor, evenly spaced from its first to its last. (float32 could not tell the last of the 311
    million indices of an embedding table from the next one, so the indices are integers throughout.)"""
    index = torch.arange(count, device=tensor.device) * (tensor.numel() - 1) // (count - 1)
    return tensor.reshape(-1)[index]


def checkpoint_folder(path_or_hub_id):
    """A local folder as it is, without touching the network; a hub id ("Qwen/Qwen2.5-VL-3B-Instruct") downloaded (json and
    safetensors files only) into the hub's cache. Raises InputError if there is neither."""
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    if folder.parent.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path_or_hub_id)):
        raise files.InputError(f"{path_or_hub_id}: no such checkpoint folder (a hub id has the form owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise files.InputError(f"{path_or_hub_id}: no such folder, and the hub did not give it: {reason}") from None


def checkpoint_files(folder):
    """The safetensors files of a checkpoint: those that the index names, or the only one."""
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.exists():
        with files.reading(index, "the index of a checkpoint"):
            names = sorted({str(name) for name in files.read_json(index)["weight_map"].values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise files.InputError(f"{folder / name}: no such file; the folder holds no complete checkpoint")
    return [folder / name for name in names]

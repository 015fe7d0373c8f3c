"""Checkpoints in the hub's layout: a folder or a hub id -> the frozen model, and back. model.py hangs them on VLM."""

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
from parts.files import InputError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")  # the first that has one counts
OTHERS = (*TEMPLATES, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")  # saved as they are


def read_config(path_or_hub_id):
    """The configuration of a checkpoint: config.json and, if there are any, generation_config.json and the chat template.
    Raises InputError for another model family, quantized weights, an adapter of peft."""
    folder = checkpoint_folder(path_or_hub_id)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise InputError(f"{folder}: an adapter of peft, not a model; save what its merge_and_unload() gives")
    file, generation_file = file_of(folder, "config.json"), folder / "generation_config.json"
    raw = files.read_json(file)
    generation = files.read_json(generation_file) if generation_file.exists() else None
    family = raw.get("model_type") if isinstance(raw, dict) else None
    if family not in list(FAMILIES):
        raise InputError(f"{file}: model_type is {family!r:.60}; implemented: {', '.join(FAMILIES)}")
    if quantized := raw.get("quantization_config"):
        method = quantized.get("quant_method", quantized) if isinstance(quantized, dict) else quantized
        raise InputError(f"{file}: weights quantized by {method!s:.60}; load the original checkpoint, with --quantize nf4")
    return FAMILIES[family].Config.from_dict(raw, generation, folder, read_template(folder))


def file_of(folder, *names):
    """The first of these files that the folder has. Raises InputError if it has none."""
    for name in names:
        if (file := folder / name).exists():
            return file
    raise InputError(f"{folder}: has no {names[0]}; copy it from the checkpoint that this one was made from")


def read_template(folder):
    """The text of the chat template that the folder brings, "" without one."""
    for file in (folder / name for name in TEMPLATES if (folder / name).exists()):
        with files.reading(file, "a chat template"):
            text = file.read_text(encoding="utf-8")
            if text := text if file.suffix == ".jinja" else json.loads(text).get("chat_template"):
                return text
    return ""


def read_preprocessor(path_or_hub_id):
    """How images are prepared: the parsed preprocessor_config.json, with min_pixels and max_pixels."""
    folder = checkpoint_folder(path_or_hub_id)
    file = file_of(folder, "preprocessor_config.json", "processor_config.json")  # the newer one is for all processors
    with files.reading(file, "a preprocessor's configuration"):
        raw = files.read_json(file)
        raw = raw.get("image_processor", raw)
        torch.tensor([raw["image_mean"], raw["image_std"]], dtype=torch.float32).view(2, 3)  # red, green, blue
        size = raw.get("size") or {}  # where newer files have the limits
        limits = {"min_pixels": size.get("shortest_edge") or 56**2, "max_pixels": size.get("longest_edge") or 1280 * 28**2}
        settings = limits | {k: v for k, v in raw.items() if v is not None}
        return settings | {name: int(settings[name]) for name in limits}


def read_tokenizer(path_or_hub_id):
    """The checkpoint's tokenizer.json, which neither cuts nor pads. Raises InputError if it is missing or broken."""
    file = file_of(checkpoint_folder(path_or_hub_id), "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the library's PanicException is no Exception
        raise InputError(f"{file}: not a tokenizer ({error}); copy it from the original checkpoint") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def from_pretrained(cls, path_or_hub_id, dtype=torch.float32, device="cpu", quantize=None):
    """A checkpoint in the hub's layout, a folder or a model id -> the model, frozen and in eval mode. The files are mapped
    and each tensor goes straight to `dtype` and `device`; one that changes neither stays in the file. With quantize="nf4"
    each projection of the decoder's layers goes straight to 4 bits (nf4.py). Raises InputError for a missing, surplus,
    doubled or misshapen tensor."""
    assert quantize in (None, "nf4"), f"quantize is {quantize!r}; it can be None or 'nf4'"
    folder = checkpoint_folder(path_or_hub_id)
    config = read_config(folder)
    with files.reading(folder / "config.json", "a model"), torch.device("meta"):  # names and shapes without memory
        vlm = cls(config)
    needed = {name: tuple(p.shape) for name, p in vlm.state_dict().items()}
    expected = needed | {HEAD: needed[EMBEDDING]}  # files of a tied model may have a head as well
    if quantize:
        use_nf4(vlm)
    in_4_bits = nf4_layers(vlm)  # {name: the layer that keeps this weight}

    # Every tensor of the files is used exactly once.
    tensors, vlm.marks = {}, {}
    for file in checkpoint_files(folder):
        for name, tensor in files.read_safetensors(file, device):
            name = our_name(name)
            if name.endswith(".inv_freq"):  # older files have the frequencies: they follow from the config
                continue
            if name not in expected:
                raise InputError(f"{file}: surplus tensor {name}: the model of config.json has none of this name")
            if name in tensors:
                raise InputError(f"{file}: tensor {name} occurs twice in this checkpoint")
            if tuple(tensor.shape) != expected[name] or tensor.itemsize == 1:  # 8 bits mean nothing without their scales
                asked = f"config.json asks for {list(expected[name])} of 16 or 32 bits"
                raise InputError(f"{file}: {name} is {list(tensor.shape)} of {tensor.dtype}, {asked}")
            vlm.marks[name] = mark(tensor)
            tensors[name] = in_4_bits[name].keep(tensor) if name in in_4_bits else tensor.to(dtype)
    if missing := [name for name in needed if name not in tensors]:
        raise InputError(f"{folder}: missing tensor {missing[0]} (and {len(missing) - 1} more)")
    if config.tied and vlm.marks.pop(HEAD, vlm.marks[EMBEDDING]) != vlm.marks[EMBEDDING]:
        raise InputError(f"{folder}: {HEAD} is not the embedding; set tie_word_embeddings to false in config.json")

    vlm.load_state_dict({name: tensors[name] for name in needed if name not in in_4_bits}, assign=True)
    vlm.source = str(path_or_hub_id)
    return vlm.requires_grad_(False).eval()


def our_name(name):
    """A tensor's name in a file -> in model.py. Both forms are read, whichever is the family's; DataParallel's too."""
    return re.sub(r"^model\.(visual\.)|^(model\.)language_model\.", r"\1\2", name.removeprefix("module."))


def hub_name(name, family):
    """A tensor's name in model.py -> in the family's checkpoints on the hub."""
    return re.sub(r"^(visual|model)\.", lambda ours: FAMILIES[family].TOWERS[ours[1]], name)


def save(self, path):
    """Write config.json, generation_config.json and model.safetensors into the folder `path`, with the hub's names; and
    the small files beside them that the model was loaded with. Raises InputError for a model in 4 bits."""
    if nf4_layers(self):
        raise InputError(f"{path}: a model in 4 bits is not saved; load it without --quantize, and save that")
    folder = Path(path)
    weights = {hub_name(name, self.config.family): t for name, t in self.state_dict().items()}
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    raw = {k: v for k, v in self.config.raw.items() if k != "dtype"} | {"torch_dtype": dtype}
    generation = self.config.generation or {"eos_token_id": list(self.config.end_tokens)}
    files.write_text(folder / "config.json", json.dumps(raw, indent=2) + "\n")
    files.write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    files.write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})
    for name in OTHERS:
        if self.config.folder and (self.config.folder / name).exists():
            files.write_text(folder / name, (self.config.folder / name).read_text(encoding="utf-8"))


def fingerprint(self, old=False):
    """Which model this is: a hash of what config.json says about the numbers, and of every weight as the files have it,
    whatever dtype it was loaded in; as it is now, if it has changed or is of no file. A model in 4 bits says so: an adapter
    of the one is refused by the other. old: the hash that adapter files had before, of 16 values of each tensor."""
    own = ("raw", "generation", "folder", "system", "opening", "end_tokens")
    config = {k: v for k, v in asdict(self.config).items() if k not in own}
    new = {name: mark(p) for name, p in self.named_parameters() if p._version or name not in self.marks}
    marks = sorted((self.marks | new).items())
    if old:
        text = json.dumps(config, sort_keys=True) + "".join(str(values) for _, (_, values) in marks)
    else:
        del config["max_positions"]
        config = json.loads(json.dumps(config), parse_int=float)  # 5000000 and 5e6 are one number
        text = json.dumps([config, [(name, total) for name, (total, _) in marks]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32] + " with --quantize nf4" * bool(nf4_layers(self))


def mark(tensor, part=2**16):
    """(total, values) of a tensor's bits as bfloat16: the sum of each times its position, and 16 of them, evenly spaced.
    The sum is exact (in 64 bits, what overflows is dropped), so it is the same in every order of adding."""
    flat = tensor.detach().reshape(-1)
    positions, total = torch.arange(1, min(part, len(flat)) + 1, device=flat.device), 0
    for i, values in enumerate(flat.split(part)):  # which stay in the processor's cache
        bits = values.to(torch.bfloat16).view(torch.int16)
        total = total + (bits * (positions[: len(bits)] + i * part)).sum()
    some = torch.arange(16, device=flat.device) * (len(flat) - 1) // 15  # integers: float32 cannot count to 311 million
    return int(total), flat[some].to(torch.bfloat16).view(torch.int16).tolist()


def checkpoint_folder(path_or_hub_id):
    """A local folder as it is, without touching the network; a hub id ("Qwen/Qwen2.5-VL-3B-Instruct") downloaded into the
    hub's cache (texts and safetensors only). Raises InputError if there is neither."""
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    if folder.parent.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path_or_hub_id)):
        raise InputError(f"{path_or_hub_id}: no such checkpoint folder (a hub id has the form owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=["*.json", "*.jinja", "*.txt", "*.safetensors"]))
    except Exception as error:  # whatever a server can answer
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise InputError(f"{path_or_hub_id}: no such folder, and the hub did not give it: {reason}") from error


def checkpoint_files(folder):
    """The safetensors files of a checkpoint: those that the index names, or the only one."""
    index = folder / "model.safetensors.index.json"
    with files.reading(index, "the index of a checkpoint"):
        names = files.read_json(index)["weight_map"].values() if index.exists() else ["model.safetensors"]
        return [file_of(folder, name) for name in sorted(set(names))]

"""Checkpoint formats, configurations, and the parts that a model is made of."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from cases import CASES
from conftest import ROOT, small_config, write_checkpoint

from model import VLM
from parts.backbones.checkpoint import read_config, sample
from parts.backbones.layers import linear
from parts.backbones.qwen import group_patches
from parts.backbones.qwen2_5_vl import Config
from parts.files import InputError, read_metadata, read_safetensors, write_safetensors


def test_patches_are_grouped_with_those_they_attend_to():
    table, mask, slot = group_patches(torch.tensor([5, 3, 5, 5, 3]))
    assert [row[ok].tolist() for row, ok in zip(table, mask[:, 0, 0])] == [[1, 4], [0, 2, 3]]
    assert table.flatten()[slot].tolist() == [0, 1, 2, 3, 4]
    assert group_patches(torch.tensor([1, 1, 0, 0]))[1] is None


@pytest.mark.parametrize(("rows", "outputs"), [(1, 32), (7, 48), (64, 32), (65, 32), (7, 33)])
def test_few_rows_multiplied_in_parts_give_the_same_product(rows, outputs):
    x, weight, bias = torch.randn(rows, 1, 24), torch.randn(outputs, 24), torch.randn(outputs)
    for b in (bias, None):
        expected = torch.nn.functional.linear(x, weight, b)
        assert linear(x, weight, b).shape == expected.shape
        assert torch.allclose(linear(x, weight, b), expected, rtol=1e-5, atol=1e-5)


def test_values_are_sampled_from_the_largest_tensors_too():
    assert sample(torch.ones(1).expand(311_164_928)).tolist() == [1] * 16  # the 3B's embedding table
    assert sample(torch.arange(3)).tolist() == [0] * 8 + [1] * 7 + [2]


# -- checkpoints


def tensors_of(folder):
    return dict(read_safetensors(folder / "model.safetensors"))


def newer_names(tensors):
    renamed = {re.sub(r"^model\.", "model.language_model.", name): t for name, t in tensors.items()}
    return {re.sub(r"^visual\.", "model.visual.", name): t for name, t in renamed.items()}


def nested(raw):
    """The configuration as newer transformers writes it."""
    outside = (
        "model_type",
        "vision_config",
        "image_token_id",
        "video_token_id",
        "tie_word_embeddings",
        "architectures",
    )
    text = {k: v for k, v in raw.items() if k not in outside and k not in ("rope_scaling", "rope_theta")}
    rope = {
        "rope_type": "default",
        "mrope_section": raw["rope_scaling"]["mrope_section"],
        "rope_theta": raw["rope_theta"],
    }
    return {k: raw[k] for k in outside} | {"text_config": text | {"rope_parameters": rope}}


@pytest.mark.parametrize("tied", [False, True])
def test_every_checkpoint_form_gives_the_same_model(tmp_path, processor, tied):
    folder = write_checkpoint(tmp_path, tied=tied)
    batch = processor(CASES["one image"]())
    expected = VLM.from_pretrained(folder)(batch)
    tensors, raw = tensors_of(folder), json.loads((folder / "config.json").read_text())
    assert ("lm_head.weight" in tensors) == (not tied)

    (folder / "config.json").write_text(json.dumps(nested(raw)))
    assert torch.equal(VLM.from_pretrained(folder)(batch), expected)

    write_safetensors(folder / "model.safetensors", newer_names(tensors), {})
    assert torch.equal(VLM.from_pretrained(folder)(batch), expected)

    (folder / "model.safetensors").unlink()
    names, files = sorted(tensors), {}
    for i in range(3):
        part = f"model-0000{i + 1}-of-00003.safetensors"
        write_safetensors(folder / part, {name: tensors[name] for name in names[i::3]}, {"format": "pt"})
        files |= dict.fromkeys(names[i::3], part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert torch.equal(VLM.from_pretrained(folder)(batch), expected)


def test_what_is_saved_loads_as_the_same_model(tmp_path, vlm, processor):
    vlm.save(tmp_path / "copy")
    again = VLM.from_pretrained(tmp_path / "copy")
    batch = processor(CASES["one image"]())
    assert torch.equal(again(batch), vlm(batch)) and again.config == vlm.config
    assert again.fingerprint() == vlm.fingerprint()


def test_the_fingerprint_is_the_same_in_every_dtype_and_differs_between_models(tmp_path, checkpoint, vlm):
    half = VLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    assert half.fingerprint() == vlm.fingerprint()
    assert VLM.from_pretrained(write_checkpoint(tmp_path, seed=7)).fingerprint() != vlm.fingerprint()


def test_float32_weights_on_the_cpu_are_the_mapped_file_itself(checkpoint, vlm):
    """No second copy: the weights lie inside the memory map of the file."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [
        tuple(int(x, 16) for x in m[0].split("-")) for m in maps if m[-1] == str(checkpoint / "model.safetensors")
    ]
    assert all(any(a <= p.data_ptr() < b for a, b in ranges) for p in vlm.parameters())


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_the_loader_expects_the_tensors_of_the_hub_checkpoints(shared, size):
    folder = shared / "qwen2.5-vl"
    with torch.device("meta"):
        vlm = VLM(Config.from_dict(json.loads((folder / f"config_{size}.json").read_text())))
    expected = json.loads((folder / f"tensor_names_{size}.json").read_text())["shapes"]
    assert {name: list(p.shape) for name, p in vlm.state_dict().items()} == expected


def broken(folder, change):
    tensors = tensors_of(folder)
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.merger.ln_q.weight"), "missing tensor visual.merger.ln_q.weight"),
        (lambda t: t.update({"model.extra": torch.zeros(2)}), "surplus tensor model.extra"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight is \[3\].*asks for \[64\]"),
        (lambda t: t.update({"model.language_model.norm.weight": torch.zeros(64)}), "model.norm.weight occurs twice"),
    ],
)
def test_every_tensor_is_used_exactly_once(tmp_path, change, message):
    broken(write_checkpoint(tmp_path), change)
    with pytest.raises(InputError, match=message):
        VLM.from_pretrained(tmp_path)


def test_bad_checkpoints_are_named(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint folder"):
        VLM.from_pretrained(tmp_path / "nowhere")
    folder = write_checkpoint(tmp_path / "a")
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 5, 1000, len(whole) - 4):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(InputError, match="model.safetensors: not a complete safetensors file"):
            VLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors: no such file"):
        VLM.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: not JSON"):
        VLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}, "mrope_section"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(tmp_path, change, message):
    raw = {k: v for k, v in (small_config() | change).items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=f"config.json: .*{message}"):
        read_config(tmp_path)


def test_end_tokens_come_from_the_generation_config_else_from_the_config():
    raw = small_config()
    assert Config.from_dict(raw, {"eos_token_id": [2, 0]}).end_tokens == (2, 0)
    assert Config.from_dict(raw).end_tokens == (raw["eos_token_id"],)


# -- the hub, played by a local server


@pytest.fixture
def hub(checkpoint):
    """A local HTTP server that answers as the hub does for the model team/small; yields (address, [(method, path)] seen)."""
    files, seen = {p.name: p.read_bytes() for p in checkpoint.iterdir()} | {"README.md": b"x", "old.bin": b"y"}, []

    class Hub(BaseHTTPRequestHandler):
        def answer(self):
            seen.append((self.command, self.path))
            name = self.path.split("/")[-1]
            if self.path.startswith("/api/models/team/small/tree/"):
                body = json.dumps(
                    [{"type": "file", "path": n, "size": len(b), "oid": "b" * 40} for n, b in files.items()]
                )
                body, kind = body.encode(), "application/json"
            elif self.path.startswith("/api/models/team/small"):
                body = json.dumps({"id": "team/small", "sha": "a" * 40, "siblings": [{"rfilename": n} for n in files]})
                body, kind = body.encode(), "application/json"
            elif "/team/small/resolve/" in self.path and name in files:
                body, kind = files[name], "application/octet-stream"
            else:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            for key, value in (("Content-Type", kind), ("Content-Length", len(body)), ("X-Repo-Commit", "a" * 40)):
                self.send_header(key, str(value))
            self.send_header("ETag", f'"{name}-1"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()


LOADED = """
import sys
sys.path.insert(0, sys.argv[1])
from parts.files import InputError
from model import VLM
for name in sys.argv[2:]:
    try:
        print(VLM.from_pretrained(name).fingerprint())
    except InputError as error:
        print(error)
"""


def test_a_folder_needs_no_network_and_a_hub_id_is_downloaded_once_json_and_safetensors_only(
    hub, tmp_path, checkpoint, vlm
):
    """In a fresh process, whose hub is a local server."""
    address, seen = hub
    names = [str(checkpoint), "team/small", "team/small", "team/unknown"]
    hub_of = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", LOADED, str(ROOT), *names]
    said = subprocess.run(command, check=True, env=os.environ | hub_of, capture_output=True, text=True).stdout
    *loaded, unknown = said.splitlines()
    assert loaded == [vlm.fingerprint()] * 3
    assert "team/unknown: no such folder, and the hub did not give it" in unknown
    assert not any(path.endswith(("README.md", "old.bin")) for _, path in seen)
    assert sum(method == "GET" and path.endswith("model.safetensors") for method, path in seen) == 1
    assert not any(str(checkpoint) in path for _, path in seen)


def test_equal_contents_make_equal_files_whatever_the_order_of_the_metadata(tmp_path):
    tensors = {"b": torch.randn(3, 5), "a": torch.arange(4)}
    metadata = {f"key {i}": f'"value" {i} – ä\n' for i in range(12)}
    write_safetensors(tmp_path / "one", tensors, metadata)
    write_safetensors(tmp_path / "two", tensors, dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_metadata(tmp_path / "one") == metadata
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_safetensors(tmp_path / "one"))

"""Attacks on files, seeded: whatever is in a file of a user or of a run, it is used or named in one line.

Each kind of file is made as it should be and then broken, at random: bytes changed, cut, doubled; in JSON any value
replaced by one that does not belong there, any key taken away. IMAGELORA_ATTACKS=1 makes ten times as many (14,000).
"""

import io
import json
import pickle
import random
import zipfile
from functools import partial
from pathlib import Path

import pytest
from breaking import TIMES, attack, broken_bytes, broken_json, broken_text
from conftest import randomised
from local_web import zipped
from task_folders import MAKERS, make_refer, write_json

from data import Processor, load
from harness.loading import pixel_limits
from imagelora import ImageLoRA, LoRA, load_adapter
from model import VLM
from parts.files import (
    InputError,
    read_json,
    read_metadata,
    read_safetensors,
    write_safetensors,
)
from parts.tasks.download import unpack
from parts.tasks.rows import read_bytes

# -- data files


DATA = {  # data set: [(file, split)]
    "refcoco": [("refcoco_train.jsonl", "train"), ("refcoco_val.json", "val")],
    "screenspot-pro": [("annotations/autocad_windows.json", "test")],
    "screenspot-v2": [("screenspot_web_v2.json", "test")],
    "textvqa": [("TextVQA_0.5.1_val.json", "val")],
    "nextqa": [("val.csv", "val"), ("map_vid_vidorID.json", "val")],
    "vilp": [("vilp.jsonl", "test")],
    "gsm8k": [("test.jsonl", "test")],
    "jsonl": [("val.jsonl", "val")],
    "llava": [("val.json", "val")],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in DATA:
        MAKERS[name](root / name)
    make_refer(root / "refer")
    return root


@pytest.mark.parametrize(("name", "file", "split"), [(name, *each) for name in DATA for each in DATA[name]])
def test_a_broken_file_of_a_data_set_is_read_or_named(folders, name, file, split):
    breaks = broken_bytes if file.endswith(".csv") else broken_text
    attack(folders / name / file, lambda: load(name, folders / name, split), breaks, 45, str(folders / name))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_broken_pickle_is_read_or_named(folders, protocol):
    file = folders / "refer/refcoco/refs(unc).p"
    refs = pickle.loads(file.read_bytes())

    def breaks(content, draw):
        if draw.random() < 0.5:
            return broken_bytes(content, draw)
        return pickle.dumps(broken_json(refs, draw), protocol)

    file.write_bytes(pickle.dumps(refs, protocol))
    attack(file, lambda: load("refcoco", folders / "refer", "val"), breaks, 40, str(folders))
    file = folders / "refer/refcoco/instances.json"
    attack(file, lambda: load("refcoco", folders / "refer", "val"), broken_text, 15, str(folders))


def test_a_broken_archive_is_unpacked_or_named(tmp_path):
    file, target = tmp_path / "boxes.zip", tmp_path / "new"
    file.write_bytes(zipped({"rec/a.json": "[1, 2]" * 50, "rec/b.jsonl": "[3]\n", "readme.txt": "text"}))
    target.mkdir()
    attack(file, lambda: unpack(file, target, str(file)), broken_bytes, 100, str(tmp_path))
    assert {found.parent for found in tmp_path.rglob("*") if found.is_file()} == {tmp_path, target}


# -- checkpoints and adapters


@pytest.fixture(scope="module")
def own(checkpoint, tmp_path_factory):
    """A checkpoint with an index, to be broken."""
    folder = tmp_path_factory.mktemp("broken")
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_json(
        folder / "model.safetensors.index.json",
        {"weight_map": {name: "model.safetensors" for name, _ in read_safetensors(folder / "model.safetensors")}},
    )
    return folder


@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("config.json", 60),
        ("generation_config.json", 20),
        ("preprocessor_config.json", 40),
        ("tokenizer.json", 60),
        ("model.safetensors.index.json", 30),
    ],
)
def test_a_broken_file_of_a_checkpoint_is_read_or_named(own, file, count):
    def use():
        if file != "model.safetensors.index.json":
            Processor.from_pretrained(own)
        if file not in ("tokenizer.json", "preprocessor_config.json"):
            VLM.from_pretrained(own)

    attack(own / file, use, broken_text, count)


def test_broken_weights_are_named(own):
    def breaks(content, draw):
        if draw.random() < 0.5:  # the header is a small part of the file
            size = 8 + int.from_bytes(content[:8], "little")
            return broken_bytes(content[:size], draw) + content[size:]
        return broken_bytes(content, draw)

    attack(own / "model.safetensors", lambda: VLM.from_pretrained(own), breaks, 40, str(own))


def use_adapter(file, vlm):
    pixel_limits(None, None, file)
    load_adapter(file, vlm).detach()


def test_a_broken_adapter_is_named(vlm, tmp_path):
    for i, make in enumerate((ImageLoRA, LoRA)):
        adapter = make(vlm.config, {0: [1], 2: [0, 1]}) if make is ImageLoRA else make(vlm.config)
        adapter.notes = {"min_pixels": 3136, "max_pixels": 401408}
        file = tmp_path / f"adapter{i}.safetensors"
        randomised(adapter).attach(vlm).save(file)
        adapter.detach()
        use = partial(use_adapter, file, vlm)
        attack(file, use, broken_bytes, 40)

        # Settings and notes of any kind, under a checksum that fits.
        metadata, tensors = read_metadata(file), dict(read_safetensors(file))
        draw, refused, count = random.Random(i), 0, 60 * TIMES
        for _ in range(count):
            key = draw.choice(("settings", "settings", "notes", "method", "base", "format_version"))
            value = metadata[key]
            if key in ("settings", "notes"):
                value = json.dumps(broken_json(json.loads(value), draw))
            else:
                value = draw.choice(("", "x", "\0", "lora", "image-lora", "ablation", "[]"))
            write_safetensors(file, tensors, metadata | {key: value.encode("utf-8", "replace").decode()})
            try:
                use()
            except InputError as error:
                refused += 1
                assert str(file) in str(error) and len(str(error)) < 1000, error
        print(f"metadata of an adapter: {count} inputs, {refused} refused")


# -- named one by one


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": [-Infinity]}', "-Infinity"),
        (b"[" * 100_000, "Recursion"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
        (b'{"a": "\xff"}', "UnicodeDecodeError"),
        (b'{"a": "x"', "JSONDecodeError"),
        (b"", "JSONDecodeError"),
    ],
)
def test_json_that_would_break_a_run_later_is_refused_where_it_is_read(tmp_path, content, why):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=f"a.json: not JSON .*({why})") as error:
        read_json(tmp_path / "a.json")
    assert len(str(error.value)) < len(str(tmp_path)) + 300


def test_json_at_the_edge_of_that_is_read(tmp_path):
    for text in ('"\\ud83d\\ude00"', '"\\\\ud800"', "1e308", "[" * 100 + "]" * 100, "9" * 300, "-0.0"):
        (tmp_path / "a.json").write_text(text)
        assert read_json(tmp_path / "a.json") == json.loads(text)


def test_files_and_lines_beyond_their_size_are_named(tmp_path):
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(65 * 2**20)  # without a byte on the disk
    with pytest.raises(InputError, match="large.json: not JSON of at most 64 MB .it is larger"):
        read_json(tmp_path / "large.json")
    (tmp_path / "val.jsonl").write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "' + b"a" * 50 * 10**6)
    with pytest.raises(InputError, match="val.jsonl:2: not JSON .a line of more than 16 MB"):
        load("jsonl", tmp_path, "val")
    for what in (tmp_path, Path("/dev/zero"), tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no such file"):
            read_bytes(what)


def long_put(index):
    return b"\x80\x02]r" + index.to_bytes(4, "little") + b"."


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (long_put(2**31), "LONG_BINPUT 2147483648 as instruction 2"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x80\x04\x96" + (2**40).to_bytes(8, "little") + b".", "BYTEARRAY8|expected"),
        (b"cos\nsystem\n(S'id'\ntR.", "GLOBAL .os system"),
        (pickle.dumps([{1, 2}], 4), "EMPTY_SET"),
        (b"(" + b"]" * 200 + b"a" * 199 + b"l.", "nested deeper than 100"),
        (b"]q\x00h\x00a.", "nested deeper than 100"),  # a list that holds itself
    ],
    ids=["memo", "length", "bytearray", "code", "set", "deep", "circle"],
)
def test_a_pickle_that_would_run_code_or_fill_the_memory_is_refused_before_it_is_loaded(tmp_path, content, why):
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/refs(unc).p").write_bytes(content)
    with pytest.raises(InputError, match=rf"refs\(unc\).p: not a pickle of plain data.*({why})"):
        load("refcoco", tmp_path, "val")


def bomb(size):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", b" " * size)
    return file.getvalue()


def linked():
    file, link = io.BytesIO(), zipfile.ZipInfo("a.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return file.getvalue()


@pytest.mark.parametrize(("content", "why"), [(bomb(30 * 2**20), "more than 1000 files or"), (linked(), "is a link")])
def test_an_archive_that_is_a_bomb_or_holds_a_link_is_refused(tmp_path, content, why):
    (tmp_path / "a.zip").write_bytes(content)
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match=f"a.zip: .*{why}"):
        unpack(tmp_path / "a.zip", tmp_path / "new", str(tmp_path / "a.zip"))
    assert [*(tmp_path / "new").iterdir()] == []

"""Files: read completely or named in one line, written completely or not at all."""

import json
import pickle

import pytest
import torch
from safetensors import safe_open

from data import load
from parts import files
from parts.files import InputError


@pytest.mark.parametrize("content", [b'{"a": NaN}', b'{"a": -1e999}', b"[" * 100_000, b'{"a": "\xff"}', b'{"a": "x"', b""])
def test_broken_json_is_one_line_that_names_the_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="a.json: not JSON ") as error:
        files.read_json(tmp_path / "a.json")
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < len(str(tmp_path)) + 300
    with pytest.raises(InputError, match="b.json: no such file"):
        files.read_json(tmp_path / "b.json")


def test_what_fails_while_a_file_is_written_leaves_the_file_of_before(tmp_path):
    for text in ("long before", "before"):
        files.write_text(tmp_path / "new/a.txt", text)
    with pytest.raises(KeyboardInterrupt), files.writing(tmp_path / "new/a.txt") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert [(file.name, file.read_text()) for file in (tmp_path / "new").iterdir()] == [("a.txt", "before")]
    with pytest.raises(InputError, match="a.txt/b.txt: cannot be written"):
        files.write_text(tmp_path / "new/a.txt/b.txt", "")


TENSORS = {"b": torch.arange(6.0).view(2, 3).T, "half": torch.arange(3).bfloat16(), "a": torch.arange(4)}
TENSORS |= {"one": torch.tensor(0.5), "none": torch.empty(0, 3)}


def test_equal_contents_make_equal_safetensors_files_that_the_library_reads(tmp_path):
    metadata = {str(i): f"text {i}" for i in range(9)}
    files.write_safetensors(tmp_path / "a", TENSORS, metadata)
    files.write_safetensors(tmp_path / "b", dict(reversed(TENSORS.items())), dict(reversed(metadata.items())))
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes() and files.read_metadata(tmp_path / "a") == metadata
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert all(header[name]["data_offsets"][0] % t.itemsize == 0 for name, t in TENSORS.items())  # aligned
    again = dict(files.read_safetensors(tmp_path / "a"))
    with safe_open(str(tmp_path / "a"), framework="pt") as file:
        for name, t in TENSORS.items():
            assert torch.equal(file.get_tensor(name), t) and torch.equal(again[name], t) and again[name].dtype == t.dtype


class Evil:
    def __reduce__(self):
        return print, ("this pickle ran code",)


CODE = [pickle.dumps([Evil()], protocol) for protocol in (0, 2, 4)] + [b"cos\nsystem\n(S'id'\ntR.", pickle.dumps({1, 2}, 2)]


@pytest.mark.parametrize("content", [*CODE, b"", b"not a pickle", pickle.dumps([{"a": 1}])[:-3]])
def test_a_pickle_that_carries_code_or_is_broken_is_refused(tmp_path, capsys, content):
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/refs(unc).p").write_bytes(content)
    with pytest.raises(InputError, match=r"refs\(unc\).p: not a pickle of plain data"):
        load("refcoco", tmp_path, "val")
    assert "ran code" not in capsys.readouterr().out

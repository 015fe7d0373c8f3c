"""Attacks by names in annotations: nothing is read outside the folder that is meant."""

import os
from pathlib import Path

import pytest
from conftest import picture
from task_folders import animated, write_json, write_lines

from data import load

# -- names in annotations


def names_that_lead_out(secret):
    """Names that lead, or seem to lead, out of a data root to the image `secret` beside it."""
    full, name, deep = str(secret), secret.name, "../" * 30
    up = [f"../{name}", f"images/../../{name}", f"./../{name}", f"..//{name}", f"../root/../{name}", f".././{name}"]
    up += [
        f"a/b/../../../{name}",
        f"inside/../../{name}",
        f"{deep}{full[1:]}",
        f"images/{deep}{full[1:]}",
        "..",
        "../",
        ".",
    ]
    up += ["/", "//", "./", "..//", f"link/../{name}", f"../*/{name}", f"{deep * 200}{name}", "images/.."]
    full_names = [
        full,
        f"/{full}",
        f"//{full}",
        f"/.{full}",
        f"{secret.parent}/root/../{name}",
        f"/proc/self/cwd/{name}",
    ]
    full_names += ["/dev/zero", "/dev/stdin", "/proc/self/environ", f"/{name}"]
    windows = [
        f"..\\{name}",
        f"images\\..\\..\\{name}",
        f"..\\/{name}",
        f"../\\{name}",
        f"C:\\{name}",
        f"C:{name}",
        f"c:/{name}",
    ]
    windows += [
        f"\\\\host\\share\\{name}",
        f"//host/share/{name}",
        f"\\{name}",
        f"\\\\?\\C:\\{name}",
        "\\",
        f"Z:..\\{name}",
    ]
    windows += [f"\\\\.\\C:\\{name}", "\\\\.\\pipe\\x", f"\\/{name}", f"//?/C:/{name}"]
    plain = [
        f"%2e%2e/{name}",
        f"..%2f{name}",
        f"%2e%2e%2f{name}",
        f"..;/{name}",
        f"....//{name}",
        f".../{name}",
        f"~/{name}",
    ]
    plain += [
        f"~root/{name}",
        f"$HOME/{name}",
        f"%USERPROFILE%/{name}",
        f"file://{full}",
        f"file:{full}",
        f"http://x/{name}",
    ]
    plain += [
        f"．．/{name}",
        f"..∕{name}",
        f"..\u2215{name}",
        f"{name}\0.png",
        f"../{name}\0",
        f"\0../{name}",
        f"..\0/{name}",
    ]
    plain += [
        "a" * 5000,
        "a/" * 3000 + name,
        f"\ud800{name}",
        f"se\ncret/{name}",
        f"\x1b[31m{name}",
        f" ../{name}",
        f".. /{name}",
    ]
    return [*up, *full_names, *windows, *plain]


NO_NAMES = [3, 0.5, True, ["a.png"], {"a": 1}, 10**400, [["../secret.png"]], -1]


def rows_with(name):
    """The rows of every data set that can name an image or a video, with the name in each place."""
    ask = {"prompt": "What?", "answer": "x"}
    talk = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "x"}]}
    yield "jsonl", {"val.jsonl": [ask | {"image": name}]}
    yield "jsonl", {"val.jsonl": [ask | {"images": ["inside.png", name]}]}
    yield "jsonl", {"val.jsonl": [ask | {"video": name}]}
    yield "llava", {"val.json": [talk | {"image": name}]}
    yield "refcoco", {"refcoco_val.json": [{"image": name, "sent": "cup", "bbox": [1, 2, 30, 40]}]}
    target = {"img_filename": name, "bbox": [1, 2, 30, 40], "instruction": "x", "data_type": "icon"}
    yield "screenspot-v2", {"screenspot_web_v2.json": [target]}
    yield "textvqa", {"TextVQA_0.5.1_val.json": {"data": [{"image_id": name, "question": "?", "answers": ["x"] * 10}]}}
    yield "nextqa", {"val.csv": NEXTQA, "map_vid_vidorID.json": {"1": name}}


NEXTQA = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n1,9,60,40,why,1,0,CW,a,b,c,d,e\n"


@pytest.fixture
def root(tmp_path):
    """A data root; beside it and in another folder what must not be read; in it a link to a folder elsewhere."""
    for folder in (tmp_path / "data", tmp_path / "data/root", tmp_path / "linked"):
        folder.mkdir()
        for name in ("secret.png", "secret.gif", "secret"):
            animated(folder / "secret.gif", 3)
            (folder / name).write_bytes((folder / "secret.gif").read_bytes())
    for name in ("secret.png", "secret.gif", "secret"):
        (tmp_path / "data/root" / name).unlink()
    picture(60, 60).save(tmp_path / "data/root/inside.png")
    (tmp_path / "data/root/link").symlink_to(tmp_path / "linked", target_is_directory=True)
    return tmp_path / "data/root"


def write_files(root, files):
    for file in [*root.glob("*.json*"), *root.glob("*.csv")]:
        file.unlink()
    for file, rows in files.items():
        if file.endswith(".csv"):
            (root / file).write_text(rows)
        else:
            (write_lines if file.endswith("jsonl") else write_json)(root / file, rows)


def test_no_name_in_an_annotation_leads_out_of_the_root(root, count, monkeypatch):
    opened, really = [], open

    def spy(file, *args, **kwargs):
        opened.append(file)
        return really(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", spy)
    monkeypatch.setattr("io.open", spy)  # that of pathlib
    names = names_that_lead_out(root.parent / "secret.png")
    assert len(names) >= 70
    for name in [*names, *NO_NAMES]:
        for data, files in rows_with(name):
            write_files(root, files)
            opened.clear()
            file = next(iter(files))
            source = file + {"l": ":1", "n": ", row 1", "v": ":2"}[file[-1]]  # .jsonl, .json, .csv
            if name == 10**400 or "\ud800" in str(name):  # no JSON that is read: the line may name the file alone
                source = root
            split = "test" if data == "screenspot-v2" else "val"
            count.case(source, load, data, root, split)
            assert [f for f in opened if not Path(os.path.normpath(f)).is_relative_to(root)] == [], (data, name)
    assert count.worked == 0


def test_what_an_owner_put_into_the_root_or_beside_it_is_found(root):
    (root.parent / "train2014").symlink_to(root.parent.parent / "linked", target_is_directory=True)
    for name in ("inside.png", str(root / "inside.png"), "elsewhere/inside.png", "link/secret.png", "./inside.png"):
        write_lines(root / "val.jsonl", [{"image": name, "prompt": "What?", "answer": "x"}])
        assert load("jsonl", root, "val")[0].images[0].is_file()
    write_json(root / "refcoco_val.json", [{"image": "train2014/secret.png", "sent": "cup", "bbox": [1, 2, 30, 40]}])
    (example,) = load("refcoco", root, "val")
    assert example.images == [root / "../train2014/secret.png"]

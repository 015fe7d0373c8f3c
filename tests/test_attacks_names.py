"""Attacks by names in annotations and by web servers: nothing is read or written outside the folder that is meant."""

import os
import zipfile
from io import BytesIO
from itertools import repeat
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import picture
from local_web import IMAGE, NAME, serving, zipped
from task_folders import animated, write_json, write_lines
from test_attacks_images import other_formats

from data import load
from parts.files import InputError
from parts.tasks import download
from parts.tasks.download import fetch_annotations, fetch_images

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


# -- web servers


@pytest.fixture
def web(monkeypatch):
    with serving(monkeypatch) as web:
        yield web


def answers(web):
    """[(status, headers, parts of the body)] that a server may give instead of an image or an archive."""
    wrong = [(200, {"Content-Type": "image/jpeg"}, [content]) for content in other_formats().values()]
    wrong += [(200, {"Content-Length": n}, [IMAGE]) for n in ("10", "0", "x", "1e9", "99999", str(10**12), "9" * 5000)]
    wrong += [
        (200, {}, repeat(bytes(2**16))),
        (206, {}, repeat(IMAGE)),
        (200, {"Content-Encoding": "gzip"}, [IMAGE[9:]]),
    ]
    wrong += [(200, {"Transfer-Encoding": "chunked"}, [b"5\r\nhello\r\n"])]
    wrong += [(status, {}, [b"no"]) for status in (204, 304, 400, 401, 403, 404, 407, 410, 416, 429, 500, 503)]
    to = [
        "file:///etc/hostname",
        "file://localhost/etc/hostname",
        "ftp://127.0.0.1:9/a.jpg",
        "data:image/png;base64,AAAA",
    ]
    to += [
        "gopher://127.0.0.1/",
        "javascript:alert(1)",
        "jar:file:///a!/b",
        "FILE:///etc/hostname",
        "//",
        "http://",
        "\\\\host\\a",
    ]
    to += [f"{web.address}{NAME}", "http://127.0.0.1:9/a.jpg", "http://[::1", "http://127.0.0.1:99999/"]
    return wrong + [(status, {"Location": address}, []) for address in to for status in (301, 302, 303, 307, 308)]


def inside(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.name != ".lock")


def test_a_server_that_sends_something_else_leaves_nothing(web, tmp_path, count):
    name, expected = "a.jpg", ["cache", "cache/train2014"]
    for answer in answers(web):
        web.faults = {name: [answer] * 9, NAME: [answer] * 99}
        count.case(f"{web.address}{name}: ", fetch_images, [name], tmp_path / "cache", web.address)
        assert inside(tmp_path) == expected, answer
    assert count.worked == 0


def test_an_archive_that_is_something_else_leaves_nothing(web, tmp_path, count, monkeypatch):
    monkeypatch.setattr(download, "MAX_ARCHIVE", 2**20)
    for answer in answers(web):
        web.faults = {"a.zip": [answer] * 9, NAME: [answer] * 99}
        count.case(f"{web.address}a.zip: ", fetch_annotations, tmp_path / "cache", f"{web.address}a.zip")
        assert inside(tmp_path) == ["cache"], answer
    assert count.worked == 0


def test_too_much_is_not_taken_and_not_asked_for_again(web, tmp_path):
    for answer in ((200, {}, repeat(bytes(2**16))), (200, {"Content-Length": str(10**12)}, [IMAGE])):
        web.faults, web.seen = {"a.jpg": [answer]}, []
        with pytest.raises(InputError, match=f"^{web.address}a.jpg: more than 16,777,216 bytes; no more are taken$"):
            fetch_images(["a.jpg"], tmp_path, web.address)
        assert len(web.seen) == 1


def test_a_redirection_within_the_web_is_followed(web, tmp_path):
    web.faults = {"a.jpg": [(302, {"Location": f"{web.address}{NAME}"}, [])]}
    fetch_images(["a.jpg"], tmp_path, web.address)
    assert (tmp_path / "train2014/a.jpg").read_bytes() == IMAGE


@pytest.mark.parametrize("address", ["file:///etc/", "ftp://127.0.0.1:9/", "data:,", "/etc/", ""])
def test_images_come_from_the_web_alone(web, tmp_path, address):
    with pytest.raises(InputError, match="a.jpg: failed 3 times .not an http or https address."):
        fetch_images(["a.jpg"], tmp_path, address)
    assert inside(tmp_path) == ["train2014"]


def test_a_secure_address_leads_to_no_other(web):
    request = download.Request("https://there/a.jpg")
    follow = download.WebOnly().redirect_request
    assert follow(request, None, 302, "", {}, "http://there/a.jpg") is None
    assert follow(request, None, 302, "", {}, "https://elsewhere/a.jpg").full_url == "https://elsewhere/a.jpg"


def test_the_names_of_images_to_fetch_do_not_choose_a_folder(web, tmp_path, count):
    folder = tmp_path / "deep/cache"
    for name in ["", *names_that_lead_out(tmp_path / "secret.png")]:
        web.files[quote(Path(name).name, errors="replace")] = IMAGE
        count.case(web.address, fetch_images, [name], folder, web.address)
        files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"]
        assert {file.parent for file in files} <= {folder / "train2014"}, name


def test_an_archive_writes_only_files_of_its_own_right_into_the_folder(tmp_path, count):
    link = zipfile.ZipInfo("link.json")
    link.create_system, link.external_attr = 3, 0o120777 << 16  # a symbolic link, as Unix packs it
    for name in [*names_that_lead_out(tmp_path / "secret"), link]:
        if name == link:
            file = BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(link, "/etc/hostname")
            content = file.getvalue()
        elif "\0" not in name and "\ud800" not in name:
            content = zipped({f"{name}.json": "[1]", f"{name}/x.json": "[2]"})
        (tmp_path / "a.zip").write_bytes(content)
        count.case(tmp_path, fetch_annotations, tmp_path / "deep/cache", str(tmp_path / "a.zip"))
        files = [file for file in tmp_path.rglob("*") if file.is_symlink() or file.is_file()]
        assert not any(file.is_symlink() for file in files)
        assert {file.parent for file in files} <= {tmp_path, tmp_path / "deep/cache"}
        (tmp_path / "deep/cache/annotations.txt").unlink(missing_ok=True)

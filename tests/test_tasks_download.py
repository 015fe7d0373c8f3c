"""Fetching: a set of images is continued, nothing incomplete gets a final name, nothing is fetched twice."""

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, picture

from files import InputError
from tasks import download
from tasks.download import cache_folder, fetch_annotations, fetch_images


def jpeg(seed, size=200):
    file = io.BytesIO()
    picture(size, size, seed).save(file, "jpeg", quality=95)
    return file.getvalue()


def zipped(files):
    """{name: text} -> the bytes of a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file.getvalue()


IMAGES = {f"COCO_train2014_{i:012d}.jpg": jpeg(i) for i in range(1, 6)}
NAME, IMAGE = next(iter(IMAGES.items()))


class Web:
    """A local server: `files` by name, `seen` requests as (name, Range header), and for each name `faults`, one a
    request: a status, "cut" (half of the body), "hang" (half, then silence until `gate` is set) or bytes instead."""

    def __init__(self):
        self.files, self.seen, self.faults, self.ranges = dict(IMAGES), [], {}, True
        self.gate = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, wanted = self.path.split("/")[-1], self.headers["Range"]
                web.seen.append((name, wanted))
                fault = web.faults[name].pop(0) if web.faults.get(name) else None
                if isinstance(fault, int) or name not in web.files:
                    return self.send_error(fault or 404)
                body = fault if isinstance(fault, bytes) else web.files[name]
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and web.ranges else 0
                if start and start >= len(body):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                rest = body[start:]
                self.wfile.write(rest[: len(rest) // 2] if fault in ("cut", "hang") else rest)
                if fault == "hang":
                    web.gate.wait(60)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/train2014/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    web = Web()
    yield web
    web.gate.set()
    web.server.shutdown()
    web.server.server_close()


def in_cache(folder):
    """The names and contents of the images in a cache folder, incomplete ones included."""
    return {file.name: file.read_bytes() for file in (folder / "train2014").iterdir()}


@contextmanager
def elsewhere(code, **env):
    """Run code, with all of tasks/download.py at hand, in another process; it ends with the block."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tasks.download import *; {code}"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | env, stdout=-1, stderr=-1, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# -- images


def test_missing_images_are_fetched_once_and_a_second_run_asks_the_network_nothing(web, tmp_path, capsys):
    first = NAME
    fetch_images([first, first], tmp_path, web.address)
    assert capsys.readouterr().out == f"fetching 1 images from {web.address} into {tmp_path / 'train2014'}\n"
    fetch_images(IMAGES, tmp_path, web.address)
    assert in_cache(tmp_path) == IMAGES
    assert sorted(name for name, _ in web.seen) == sorted(IMAGES)
    capsys.readouterr()
    fetch_images(IMAGES, tmp_path, web.address)
    assert len(web.seen) == len(IMAGES) and capsys.readouterr().out == ""


def test_what_is_left_of_an_image_is_fetched_again_from_its_first_byte(web, tmp_path):
    (tmp_path / "train2014").mkdir()
    for left in (IMAGE[:1000], b"?" * len(IMAGE)):
        (tmp_path / f"train2014/{NAME}.part").write_bytes(left)
        fetch_images([NAME], tmp_path, web.address)
        assert in_cache(tmp_path) == {NAME: IMAGE}
        (tmp_path / f"train2014/{NAME}").unlink()
    assert web.seen == [(NAME, None)] * 2


def test_a_connection_that_is_cut_is_tried_again(web, tmp_path):
    web.faults[NAME] = ["cut", 503]
    fetch_images([NAME], tmp_path, web.address)
    assert web.seen == [(NAME, None)] * 3
    assert in_cache(tmp_path) == {NAME: IMAGE}


def test_silence_counts_as_a_lost_connection(web, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    web.faults[NAME] = ["hang"]
    fetch_images([NAME], tmp_path, web.address)
    assert len(web.seen) == 2 and in_cache(tmp_path) == {NAME: IMAGE}


def test_an_address_that_keeps_failing_is_named_and_the_same_command_continues(web, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WORKERS", 1)
    last = max(IMAGES)
    web.faults[last] = ["cut", "cut", "cut"]
    with pytest.raises(
        InputError, match=f"{web.address}{last}: failed 3 times .*IncompleteRead.* the same command again"
    ):
        fetch_images(IMAGES, tmp_path, web.address)
    assert in_cache(tmp_path) == {name: content for name, content in IMAGES.items() if name != last}
    asked = len(web.seen)
    fetch_images(IMAGES, tmp_path, web.address)
    assert web.seen[asked:] == [(last, None)] and in_cache(tmp_path) == IMAGES


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/", "nowhere/"])
def test_an_address_that_nobody_answers_is_named(web, tmp_path, address):
    with pytest.raises(InputError, match=f"{address}{NAME}: failed 3 times"):
        fetch_images([NAME], tmp_path, address)
    assert in_cache(tmp_path) == {}


def test_an_image_that_is_not_there_is_named_without_a_second_try_and_ends_the_run_soon(web, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WORKERS", 1)
    with pytest.raises(InputError, match=rf"^{web.address}absent.jpg: not found \(404\)$"):
        fetch_images(["absent.jpg", *(f"later {i}.jpg" for i in range(500))], tmp_path, web.address)
    assert web.seen[0] == ("absent.jpg", None) and len(web.seen) < 100
    assert in_cache(tmp_path) == {}


def test_after_an_error_what_was_fetched_stays(web, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WORKERS", 1)
    with pytest.raises(InputError, match="404"):
        fetch_images([NAME, "absent.jpg"], tmp_path, web.address)
    assert in_cache(tmp_path) == {NAME: IMAGE}


CORRUPT = pytest.mark.parametrize("corrupt", [b"<html>please log in</html>", IMAGE[: len(IMAGE) // 2], b""])


@CORRUPT
def test_a_corrupt_image_is_fetched_once_more(web, tmp_path, corrupt):
    web.faults[NAME] = [corrupt]
    fetch_images([NAME], tmp_path, web.address)
    assert web.seen == [(NAME, None)] * 2
    assert in_cache(tmp_path) == {NAME: IMAGE}


@CORRUPT
def test_an_image_that_is_corrupt_twice_is_named_and_nothing_of_it_stays(web, tmp_path, corrupt):
    web.faults[NAME] = [corrupt] * 2
    with pytest.raises(InputError, match=f"{web.address}{NAME}: not a complete image, though fetched twice"):
        fetch_images([NAME], tmp_path, web.address)
    assert web.seen == [(NAME, None)] * 2
    assert in_cache(tmp_path) == {}


def test_the_name_of_an_image_does_not_choose_its_folder(web, tmp_path):
    folder = tmp_path / "a/b"
    fetch_images([f"../../{NAME}"], folder, web.address)
    assert in_cache(folder) == {NAME: IMAGE}
    assert [file for file in tmp_path.rglob("*.jpg") if file.parent != folder / "train2014"] == []


def test_a_folder_that_cannot_be_made_is_named(web, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path}/file/cache: cannot be written .*IMAGELORA_CACHE"):
        fetch_images([NAME], tmp_path / "file/cache", web.address)


def test_of_two_processes_one_waits_and_each_image_is_fetched_once(web, tmp_path):
    web.faults[NAME] = ["hang"]  # the first holds the lock until the gate opens
    first = threading.Thread(target=fetch_images, args=(IMAGES, tmp_path, web.address))
    first.start()
    with elsewhere(f"fetch_images({list(IMAGES)}, {str(tmp_path)!r}, {web.address!r})") as second:
        assert second.stdout.readline() == f"waiting  for another run that is fetching into {tmp_path}\n"
        web.gate.set()
        rest, errors = second.communicate(timeout=60)
    first.join()
    assert (second.returncode, rest) == (0, ""), errors
    asked = sorted(name for name, _ in web.seen)
    assert asked == sorted([*IMAGES, NAME])  # the one that hung was asked for twice, by the first process
    assert in_cache(tmp_path) == IMAGES


def test_after_a_killed_process_its_images_stay_and_the_others_are_fetched(web, tmp_path):
    last = max(IMAGES)
    web.faults[last] = ["hang"]
    with elsewhere(f"fetch_images({list(IMAGES)}, {str(tmp_path)!r}, {web.address!r})") as process:
        assert process.stdout.readline().startswith("fetching 5 images")
        while len(list(tmp_path.glob("train2014/*.jpg"))) < 4 and process.poll() is None:
            threading.Event().wait(0.01)
    assert in_cache(tmp_path) == {name: content for name, content in IMAGES.items() if name != last}
    asked = len(web.seen)
    fetch_images(IMAGES, tmp_path, web.address)
    assert web.seen[asked:] == [(last, None)]
    assert in_cache(tmp_path) == IMAGES


# -- annotations

ARCHIVE = {
    "rec/refcoco_val.json": "[1]",
    "../../refcoco_train.json": "[2]",
    "/nowhere/refcoco_test.jsonl": "[3]\n",
    "rec/readme.txt": "text",
    "rec/folder.json/": "",
}
UNPACKED = {"refcoco_val.json": "[1]", "refcoco_train.json": "[2]", "refcoco_test.jsonl": "[3]\n"}


def unpacked(folder):
    return {file.name: file.read_text() for file in folder.glob("*.json*")}


@pytest.fixture(params=["address", "local file"])
def publish(request, web, tmp_path):
    """A function that puts bytes where `fetch_annotations` can get them -> the source to give it."""

    def put(name, content):
        if request.param == "address":
            web.files[name] = content
            return web.address + name
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return put


def test_json_files_of_an_archive_are_unpacked_by_their_base_names_and_nothing_lands_elsewhere(publish, web, tmp_path):
    folder = tmp_path / "a/b/cache"
    source = publish("boxes.zip", zipped(ARCHIVE))
    fetch_annotations(folder, source)
    assert unpacked(folder) == UNPACKED
    assert {file.name for file in folder.iterdir()} == {*UNPACKED, "annotations.txt", ".lock"}
    assert [file for file in tmp_path.rglob("*.json*") if file.parent != folder] == []


def test_a_second_call_neither_asks_the_network_nor_needs_the_archive(publish, web, tmp_path, capsys):
    source = publish("boxes.zip", zipped(ARCHIVE))
    fetch_annotations(tmp_path / "cache", source)
    assert capsys.readouterr().out == f"fetching annotations from {source} into {tmp_path / 'cache'}\n"
    asked = len(web.seen)
    web.files.clear()
    (tmp_path / "boxes.zip").unlink(missing_ok=True)
    fetch_annotations(tmp_path / "cache", source)
    assert len(web.seen) == asked and capsys.readouterr().out == ""


def test_another_source_replaces_the_files_of_the_former_and_a_lost_file_is_fetched_again(publish, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/own.json").write_text("[0]")
    first, second = publish("1.zip", zipped(ARCHIVE)), publish("2.zip", zipped({"refcoco_val.json": "[9]"}))
    fetch_annotations(tmp_path / "cache", first)
    fetch_annotations(tmp_path / "cache", second)
    assert unpacked(tmp_path / "cache") == {"refcoco_val.json": "[9]", "own.json": "[0]"}
    (tmp_path / "cache/refcoco_val.json").unlink()
    fetch_annotations(tmp_path / "cache", second)
    assert unpacked(tmp_path / "cache") == {"refcoco_val.json": "[9]", "own.json": "[0]"}


def damaged():
    good = zipped({"a.json": json.dumps(list(range(2000)))})
    return good[:200] + bytes(200) + good[400:]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>please log in</html>", "not a complete zip archive"),
        (zipped(ARCHIVE)[:-30], "not a complete zip archive"),
        (damaged(), "not a complete zip archive"),
        (b"", "not a complete zip archive"),
        (zipped({"readme.txt": "text"}), "no .json or .jsonl file in this archive"),
    ],
    ids=["no archive", "cut", "damaged", "empty", "without JSON"],
)
def test_a_broken_archive_is_named_and_leaves_the_folder_as_it_was(publish, tmp_path, content, why):
    fetch_annotations(tmp_path / "cache", publish("good.zip", zipped(ARCHIVE)))
    source = publish("broken.zip", content)
    with pytest.raises(InputError) as error:
        fetch_annotations(tmp_path / "cache", source)
    assert str(error.value).startswith(f"{source}: {why}")
    assert str(error.value).endswith("; --annotations FILE_OR_URL names another archive")
    assert "\n" not in str(error.value)
    assert unpacked(tmp_path / "cache") == UNPACKED
    assert {file.name for file in (tmp_path / "cache").iterdir()} == {*UNPACKED, "annotations.txt", ".lock"}


def test_an_archive_that_is_nowhere_is_named(web, tmp_path):
    with pytest.raises(InputError, match=rf"^{web.address}no.zip: not found \(404\); --annotations FILE_OR_URL"):
        fetch_annotations(tmp_path, web.address + "no.zip")
    with pytest.raises(InputError, match="^/nowhere/no.zip: no such file, nor an http address, nor .*--annotations"):
        fetch_annotations(tmp_path, "/nowhere/no.zip")
    assert unpacked(tmp_path) == {}


def test_the_archive_of_a_cut_connection_is_continued(web, tmp_path):
    web.files["boxes.zip"] = zipped(ARCHIVE)
    web.faults["boxes.zip"] = ["cut"]
    fetch_annotations(tmp_path, web.address + "boxes.zip")
    assert len(web.seen) == 2 and web.seen[1][1] and unpacked(tmp_path) == UNPACKED


@pytest.mark.parametrize("ranges", [True, False])
def test_a_partial_archive_is_continued_where_it_ends_or_taken_completely_without_ranges(web, tmp_path, ranges):
    content, file = zipped(ARCHIVE), tmp_path / "archive.zip"
    web.files["boxes.zip"], web.ranges = content, ranges
    file.write_bytes(content[:100])
    download.continue_file(web.address + "boxes.zip", file)
    assert web.seen == [("boxes.zip", "bytes=100-")] and file.read_bytes() == content


def test_a_partial_archive_no_shorter_than_the_archive_is_fetched_again(web, tmp_path):
    content, file = zipped(ARCHIVE), tmp_path / "archive.zip"
    web.files["boxes.zip"] = content
    file.write_bytes(b"?" * len(content))
    download.tried(lambda: download.continue_file(web.address + "boxes.zip", file), "boxes.zip", threading.Event())
    assert web.seen == [("boxes.zip", f"bytes={len(content)}-"), ("boxes.zip", None)]
    assert file.read_bytes() == content


def test_an_archive_on_the_hub_is_fetched_and_one_that_is_not_there_is_named(tmp_path):
    body, seen = zipped(ARCHIVE), []

    class Hub(BaseHTTPRequestHandler):
        def answer(self):
            seen.append(self.path)
            found = self.path == "/datasets/team/boxes/resolve/main/rec/boxes.zip"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body) if found else 0))
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.end_headers()
            if found and self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    names = "team/boxes/rec/boxes.zip", "team/boxes/absent.zip"
    with elsewhere(f"[fetch_annotations({str(tmp_path / 'cache')!r}, name) for name in {names}]", **env) as process:
        _, errors = process.communicate(timeout=60)
    server.shutdown()
    server.server_close()
    assert unpacked(tmp_path / "cache") == UNPACKED, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("files.InputError: team/boxes/absent.zip: no such file, and the hub does not give it: ")
    assert last.endswith("--annotations FILE_OR_URL names another archive")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("IMAGELORA_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache/image-lora"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared/image-lora"
    monkeypatch.setenv("IMAGELORA_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"

"""Fetching annotations: an archive is continued where it was cut, and a broken one leaves everything as it was."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from local_web import elsewhere, serving, zipped

from parts.files import InputError
from parts.tasks import download
from parts.tasks.download import fetch_annotations


@pytest.fixture
def web(monkeypatch):
    with serving(monkeypatch) as web:
        yield web


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

"""RefCOCO's annotations and images: fetched once, completely, into the cache folder and nowhere else. The server is local."""

import io
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, picture
from short_run import run
from task_folders import COCO, make_refcoco

from parts.files import InputError
from parts.tasks import download
from parts.tasks.download import fetch_images


def jpeg(seed):
    file = io.BytesIO()
    picture(200, 200, seed).save(file, "jpeg", quality=95)
    return file.getvalue()


def zipped(files):
    """{name: text} -> the bytes of a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file.getvalue()


IMAGES = {f"COCO_train2014_{i:012d}.jpg": jpeg(i) for i in range(1, 6)}
NAME, LAST = min(IMAGES), max(IMAGES)


@pytest.fixture
def web(monkeypatch):
    """COCO's server and the hub: `files` by name, the names `asked` for, and for each name `faults`, one a request: a
    status, "cut" (half of the body) or bytes instead."""

    class Web(BaseHTTPRequestHandler):
        files, asked, faults = dict(IMAGES), [], {}

        def do_GET(self):
            name = self.path.split("/")[-1]
            self.asked.append(name)
            fault = self.faults[name].pop(0) if self.faults.get(name) else None
            if isinstance(fault, int) or name not in self.files:
                return self.send_error(fault or 404)
            body = fault if isinstance(fault, bytes) else self.files[name]
            self.send_response(200)
            for header in (("Content-Length", str(len(body))), ("ETag", '"1"'), ("X-Repo-Commit", "a" * 40)):
                self.send_header(*header)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        Web.address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(download, "COCO_IMAGES", f"{Web.address}train2014/")
        monkeypatch.setattr(download, "PAUSE", 0)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield Web
        server.shutdown()


def images_in(folder):
    """Names and contents, incomplete ones included."""
    return {file.name: file.read_bytes() for file in (folder / "train2014").iterdir()}


def test_only_missing_images_are_fetched_and_a_second_run_asks_the_network_nothing(web, tmp_path):
    fetch_images([NAME, NAME], tmp_path)
    fetch_images(IMAGES, tmp_path)
    fetch_images(IMAGES, tmp_path)
    assert images_in(tmp_path) == IMAGES and sorted(web.asked) == sorted(IMAGES)


@pytest.mark.parametrize("fault", ["cut", 503, b"<html>please log in</html>", jpeg(1)[:2000], b""])
def test_an_incomplete_image_is_asked_for_again_or_named_and_the_next_run_continues(web, tmp_path, fault):
    web.faults = {NAME: [fault] * 2, LAST: [fault] * 3}
    with pytest.raises(InputError, match=f"^{web.address}train2014/{LAST}: failed 3 times .*; the same command"):
        fetch_images(IMAGES, tmp_path)
    kept = images_in(tmp_path)
    assert kept.items() <= IMAGES.items() and LAST not in kept
    fetch_images(IMAGES, tmp_path)
    assert images_in(tmp_path) == IMAGES and web.asked.count(NAME) == 3


def test_the_name_of_an_image_does_not_choose_its_folder(web, tmp_path):
    fetch_images([f"../../{NAME}"], tmp_path / "a/b")
    assert {file for file in tmp_path.rglob("*.*") if file.name != ".lock"} == {tmp_path / "a/b/train2014" / NAME}


FETCH = "import sys, pathlib; from parts.tasks.download import fetch_annotations; "
FETCH += "folder = pathlib.Path(sys.argv[1]); fetch_annotations(folder); fetch_annotations(folder)"


def test_annotations_come_from_the_hub_once(web, tmp_path):
    web.files["rec_jsons_processed.zip"] = zipped({"rec/refcoco_val.json": "[1]", "../../leads/out.json": "[2]"})
    env = {"HF_ENDPOINT": web.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", FETCH, str(tmp_path / "cache")]
    done = subprocess.run(command, env=os.environ | env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == f"fetching rec_jsons_processed.zip of omlab/VLM-R1 into {tmp_path / 'cache'}\n", done.stderr
    assert (tmp_path / "cache/rec/refcoco_val.json").read_text() == "[1]"
    assert (tmp_path / "cache/leads/out.json").exists()  # no member leaves the folder


def test_refcoco_needs_nothing_prepared_and_a_second_run_no_network(web, checkpoint, tmp_path, monkeypatch, capsys):
    make_refcoco(tmp_path / "web")
    annotations = {f"rec_jsons_processed/{file.name}": file.read_text() for file in (tmp_path / "web").glob("*.json*")}
    (tmp_path / "annotations.zip").write_bytes(zipped(annotations))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: tmp_path / "annotations.zip")
    monkeypatch.setenv("IMAGELORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # where there is no data/refcoco
    flags = ["--data=refcoco", "--eval=refcoco", "--limit=2", "--eval-limit=1", "--steps=1", "--workers=0"]
    web.files = images_in(tmp_path / "web")
    first = run(checkpoint, tmp_path / "first", *flags)
    assert str(tmp_path / "cache/refcoco") in capsys.readouterr().out
    assert images_in(tmp_path / "cache/refcoco").keys() == set(COCO[:2])  # no more than needed
    web.files = {}
    assert run(checkpoint, tmp_path / "second", *flags)["tuned"] == first["tuned"]

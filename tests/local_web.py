"""A local server with faults, for the tests of downloads."""

import io
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conftest import picture

from parts.tasks import download


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
NAME, IMAGE = next(iter(IMAGES.items()))


@contextmanager
def serving(monkeypatch):
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

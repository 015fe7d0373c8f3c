"""A local server with faults, and another process that fetches: what the tests of downloads share."""

import io
import os
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conftest import ROOT, picture

from parts.tasks import download


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
    request: a status, "cut" (half of the body), "hang" (half, then silence until `gate` is set), bytes instead, or all of
    an answer: (status, {header: value}, parts of the body)."""

    def __init__(self):
        self.files, self.seen, self.faults, self.ranges = dict(IMAGES), [], {}, True
        self.gate = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, wanted = self.path.split("/")[-1], self.headers["Range"]
                web.seen.append((name, wanted))
                fault = web.faults[name].pop(0) if web.faults.get(name) else None
                if isinstance(fault, tuple):
                    return self.answer(*fault)
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

            def answer(self, status, headers, body):
                self.send_response(status)
                for header in headers.items():
                    self.send_header(*header)
                self.end_headers()
                with suppress(OSError):  # the other side has had enough
                    for part in body:
                        self.wfile.write(part)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/train2014/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@contextmanager
def serving(monkeypatch):
    """A Web that is asked again without a pause and ends with the block."""
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    web = Web()
    yield web
    web.gate.set()
    web.server.shutdown()
    web.server.server_close()


@contextmanager
def elsewhere(code, **env):
    """Run code, with all of parts/tasks/download.py at hand, in another process; it ends with the block."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from parts.tasks.download import *; {code}"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | env, stdout=-1, stderr=-1, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()

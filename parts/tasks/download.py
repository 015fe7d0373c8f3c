"""What is fetched from the network, in a cache folder.

A file gets its final name only once it is complete and checked. So whatever stops a run, the next one continues; and a
run that has everything uses neither the network nor the lock.
"""

import os
import re
import shutil
import stat
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock, Timeout
from tqdm import tqdm

from parts.files import InputError, reading, write_text
from parts.tasks.images import opened
from parts.tasks.rows import MOST

ANNOTATIONS = "omlab/VLM-R1/rec_jsons_processed.zip"  # of RefCOCO, RefCOCO+ and RefCOCOg: a data set on the hub, 38 MB
COCO_IMAGES = "http://images.cocodataset.org/train2014/"  # its certificate is for another name, so https fails
WEB = ("http://", "https://")
AGENT = {"User-Agent": "image-lora"}
MAX_IMAGE, MAX_ARCHIVE = 16 * 2**20, 2**30  # bytes that are taken of an image (COCO's have up to 1 MB), of an archive
WORKERS, TIMEOUT = 16, 30  # images fetched at once; seconds without a byte until a connection counts as lost
TRIES, PAUSE = 3, 2.0  # of one address, and seconds between them


def cache_folder():
    """Where fetched data is: $IMAGELORA_CACHE, else image-lora in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("IMAGELORA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-lora"


@contextmanager
def locked(folder):
    """Make the folder and keep other processes from fetching into it; waits, and says so, while one does."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting  for another run that is fetching into {folder}", flush=True)
            lock.acquire()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); IMAGELORA_CACHE names another folder") from None
    try:
        yield
    finally:
        lock.release()


class Stopped(InputError):
    """Another download failed first."""


def tried(fetch, url, stop):
    """Call fetch() until it succeeds, at most TRIES times. Raises InputError, naming the address, if nothing is there, if
    too much is there or if all tries fail; begins no further try once the Event `stop` is set."""
    for attempt in range(TRIES):
        if stop.wait(PAUSE if attempt else 0):
            raise Stopped(f"{url}: stopped")
        try:
            fetch()
            return
        except InputError:  # the next try would end in the same way
            raise
        except HTTPError as error:
            if error.code == 404:
                raise InputError(f"{url}: not found (404)") from None
            reason = error
        except (OSError, HTTPException, ValueError) as error:
            reason = error
    raise InputError(f"{url}: failed {TRIES} times ({reason}); the same command tries again")


class WebOnly(HTTPRedirectHandler):
    """Follows no redirection but to http and https, and from https to https alone."""

    def redirect_request(self, request, response, code, message, headers, url):
        if url.startswith("https://" if request.type == "https" else WEB):
            return super().redirect_request(request, response, code, message, headers, url)


def ask(url, **headers):
    """The response to a request. Raises ValueError for an address that is not http or https: urllib reads files, too."""
    if not url.startswith(WEB):
        raise ValueError("not an http or https address")
    return build_opener(WebOnly).open(Request(url, headers=AGENT | headers), timeout=TIMEOUT)


def body(response, most, have=0):
    """Yield the body of a response in parts; `have` bytes of it are there already. Raises InputError if it has more than
    `most` bytes, announced or not, and OSError if it has fewer than announced."""
    announced = have + int(response.headers["Content-Length"] or 0)
    while announced <= most and have <= most and (part := response.read(2**16)):
        yield part
        have += len(part)
    if max(announced, have) > most:
        raise InputError(f"{response.url}: more than {most:,} bytes; no more are taken")
    if have < announced:
        raise OSError(f"the connection closed after {have:,} of {announced:,} bytes")


# -- images: small, each fetched in one piece


def fetch_images(names, folder, base_url=COCO_IMAGES):
    """Fetch the named images that are missing in folder/train2014, each from base_url + name. Raises InputError, naming
    the address, at the first that fails; those fetched until then stay."""
    images = Path(folder) / "train2014"
    names = {Path(name).name for name in names} - {"", ".."}  # annotations, where they are from, choose no folder

    def missing():
        return sorted(name for name in names if not os.path.exists(images / name))

    if not missing():
        return
    with locked(Path(folder)):
        if not (names := missing()):  # the run that was waited for has fetched them
            return
        print(f"fetching {len(names):,} images from {base_url} into {images}", flush=True)
        images.mkdir(exist_ok=True)
        stop = Event()
        with ThreadPoolExecutor(WORKERS) as pool, tqdm(total=len(names), desc="images", leave=False) as bar:
            try:
                jobs = [pool.submit(fetch_image, base_url, images / name, stop) for name in names]
                for job in as_completed(jobs):
                    with suppress(Stopped):  # the one that failed is still to come
                        job.result()
                    bar.update()
            finally:  # on an error or Ctrl-C whatever is queued ends at once; the lock is held until all have ended
                stop.set()


def fetch_image(base_url, file, stop):
    """Fetch one image; what does not decode is fetched once more. An image that fails stops those that are queued."""
    try:
        fetch_complete(base_url, file, stop)
    except InputError:
        stop.set()
        raise


def fetch_complete(base_url, file, stop):
    url, part = base_url + quote(file.name, errors="replace"), file.with_name(file.name + ".part")

    def fetch():
        with ask(url) as response:
            part.write_bytes(b"".join(body(response, MAX_IMAGE)))

    for _ in range(2):
        tried(fetch, url, stop)
        try:
            with opened(part) as image:
                image.load()
        except InputError:
            part.unlink()
        else:
            os.replace(part, file)
            return
    raise InputError(f"{url}: not a complete image, though fetched twice")


# -- annotations: one archive, large, continued where a connection was lost


def fetch_annotations(folder, source=ANNOTATIONS):
    """Unpack the JSON files of a zip archive into the folder, unless they are there from the same source.

    source: a local zip file, an http(s) address, or owner/name/file of a data set on the hub. Raises InputError if the
    archive cannot be fetched, is broken or holds no JSON file; the folder is then as it was.
    """
    folder = Path(folder)
    marker = folder / "annotations.txt"  # a line for the source, and one for each file unpacked from it
    if not source.startswith(WEB) and Path(source).is_file():
        source = str(Path(source).resolve())

    def recorded():
        return marker.read_text(encoding="utf-8").splitlines() if marker.exists() else [""]

    def complete():
        recorded_source, *names = recorded()
        return recorded_source == source and all((folder / name).exists() for name in names)

    if complete():
        return
    with locked(folder):
        if complete():  # the run that was waited for has fetched them
            return
        print(f"fetching annotations from {source} into {folder}", flush=True)
        with TemporaryDirectory(dir=folder) as new:
            # everything that can fail happens beside the folder's own files
            try:
                names = unpack(archive(source, Path(new)), Path(new), source)
            except InputError as error:
                raise InputError(f"{error}; --annotations FILE_OR_URL names another archive") from None
            # the files of another source go, so that none of its splits is left among the new ones
            for name in recorded()[1:]:
                (folder / name).unlink(missing_ok=True)
            marker.unlink(missing_ok=True)
            # the marker comes last: without it nothing counts as fetched
            for name in names:
                os.replace(Path(new) / name, folder / name)
        write_text(marker, "\n".join([source, *names]) + "\n")


def archive(source, folder):
    """The zip file that a source of `fetch_annotations` names; one from an http(s) address comes into the folder."""
    if source.startswith(WEB):
        file = folder / "archive.zip"
        tried(lambda: continue_file(source, file), source, Event())
        return file
    if Path(source).is_file():
        return Path(source)
    on_hub = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)/(.+)", source)
    if not on_hub:
        raise InputError(f"{source}: no such file, nor an http address, nor owner/name/file of a data set on the hub")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(on_hub[1], on_hub[2], repo_type="dataset"))
    except Exception as error:  # noqa: BLE001 (the hub's errors and those of its HTTP library share nothing narrower)
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(f"{source}: no such file, and the hub does not give it: {reason}") from None


def continue_file(url, file):
    """One try to fetch a large file, from the byte where the try before it ended. Raises OSError if it is cut again."""
    # ask for the bytes that are missing
    have = file.stat().st_size if file.exists() else 0
    wanted = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = ask(url, **wanted)
    except HTTPError as error:
        if error.code == 416:  # the file is no shorter than what is there: the next try starts again
            file.unlink(missing_ok=True)
        raise
    with response:
        # a server that knows no ranges says 200 instead of 206 and sends everything
        if response.status != 206:
            have = 0
        with open(file, "ab" if have else "wb") as target:
            target.writelines(body(response, MAX_ARCHIVE, have))


def unpack(file, folder, source):
    """Unpack the JSON files of a zip archive, from whatever folder in it, right into `folder` -> their names.
    source: what an InputError calls it."""
    names, broken = set(), (zipfile.BadZipFile, zlib.error, RuntimeError)
    with reading(source, "a complete zip archive", *broken), zipfile.ZipFile(file) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith((".json", ".jsonl"))]
        most = min(MOST, 100 * os.path.getsize(file))  # text shrinks to a tenth; zipfile unpacks no more than is said
        if len(members) > 1000 or sum(m.file_size for m in members) > most:
            raise InputError(f"{source}: more than 1000 files or {most:,} bytes in this archive; refused")
        for member in members:
            link = stat.S_ISLNK(member.external_attr >> 16)
            if link or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename!r:.100} is a link or packed in another way")
            name = Path(member.filename).name  # not the path: "../x.json" would leave the folder
            target = folder / name
            with archive.open(member) as packed, open(target, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
            names.add(name)
    if not names:
        raise InputError(f"{source}: no .json or .jsonl file in this archive")
    return sorted(names)

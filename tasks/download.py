"""What is fetched lies in a cache folder. A file has its final name only once it is whole and checked, so whatever stops
a run, the next one goes on; and a run that misses nothing asks neither the network nor the lock."""

import os
import re
import shutil
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from tqdm import tqdm

from files import InputError, write_text
from tasks.images import opened

ANNOTATIONS = "omlab/VLM-R1/rec_jsons_processed.zip"  # of RefCOCO, RefCOCO+ and RefCOCOg: a data set on the hub, 38 MB
WEB = ("http://", "https://")
COCO_IMAGES = "http://images.cocodataset.org/train2014/"
WORKERS, TIMEOUT = 16, 30  # images fetched at once; seconds without a byte until a connection counts as lost
TRIES, PAUSE = 3, 2.0  # of one address, and seconds between them


def cache_folder():
    """Where fetched data lies: $IMAGELORA_CACHE, else image-lora in $XDG_CACHE_HOME or ~/.cache."""
    own, shared = os.environ.get("IMAGELORA_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(shared or Path.home() / ".cache") / "image-lora"


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


def download(url, part, stop):
    """The bytes at an address -> the file `part`, going on where an earlier try or run left it. Raises InputError if
    they are not there or do not come in TRIES tries; begins no further try once the Event `stop` is set."""
    for attempt in range(TRIES):
        if stop.wait(PAUSE if attempt else 0):
            raise InputError(f"{url}: stopped")
        have = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": "image-lora"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
                have *= response.status == 206  # a server that knows no ranges says 200 and sends everything
                with open(part, "ab" if have else "wb") as file:
                    shutil.copyfileobj(response, file)
                size, announced = part.stat().st_size, have + int(response.headers["Content-Length"] or 0)
            if size >= announced:
                return
            reason = f"the connection closed after {size:,} of {announced:,} bytes"
        except HTTPError as error:
            if error.code == 404:
                raise InputError(f"{url}: not found (404)") from None
            if error.code == 416:  # `part` is no shorter than what is there: start over
                part.unlink(missing_ok=True)
            reason = error
        except (OSError, HTTPException, ValueError) as error:
            reason = error
    raise InputError(f"{url}: not to be had in {TRIES} tries ({reason}); the same command again goes on from here")


def fetch_image(url, file, stop):
    """Fetch one image; what does not decode is fetched once more, from its first byte."""
    part = file.with_name(file.name + ".part")
    for _ in range(2):
        download(url, part, stop)
        try:
            with opened(part) as image:
                image.load()
        except InputError:
            part.unlink()
        else:
            os.replace(part, file)
            return
    raise InputError(f"{url}: not a whole image, though fetched twice")


def fetch_images(names, folder, base_url=COCO_IMAGES):
    """Fetch those of the named images that folder/train2014 lacks, each from base_url + name. Raises InputError, naming
    the address, at the first that cannot be had; those fetched until then stay."""
    images = Path(folder) / "train2014"
    names = {Path(name).name for name in names}  # they come from annotations, which must not choose the folder

    def missing():
        return sorted(name for name in names if not (images / name).exists())

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
                urls = [(base_url + quote(name), images / name) for name in names]
                for job in as_completed([pool.submit(fetch_image, url, file, stop) for url, file in urls]):
                    job.result()
                    bar.update()
            finally:  # on an error or Ctrl-C whatever is queued ends at once; the lock is held until all have
                stop.set()


def fetch_annotations(folder, source=ANNOTATIONS):
    """Unpack the JSON files of a zip archive into the folder, unless they are there from the same source.

    source: a local zip file, an http(s) address, or owner/name/file of a data set on the hub. Raises InputError if it
    cannot be had, is broken or holds no JSON file; the folder is then as it was.
    """
    folder = Path(folder)
    marker = folder / "annotations.txt"  # a line for the source, and one for each file unpacked from it
    if not source.startswith(WEB) and Path(source).is_file():
        source = str(Path(source).resolve())

    def recorded():
        return marker.read_text(encoding="utf-8").splitlines() if marker.exists() else [""]

    def there():
        known, *names = recorded()
        return known == source and all((folder / name).exists() for name in names)

    if there():
        return
    with locked(folder):
        if there():
            return
        print(f"fetching annotations from {source} into {folder}", flush=True)
        with TemporaryDirectory(dir=folder) as new:
            try:
                names = unpack(archive(source, Path(new)), Path(new), source)
            except InputError as error:
                raise InputError(f"{error}; --annotations FILE_OR_URL names another archive") from None
            for name in recorded()[1:]:  # so that no split of another source is left among the new ones
                (folder / name).unlink(missing_ok=True)
            marker.unlink(missing_ok=True)
            for name in names:
                os.replace(Path(new) / name, folder / name)
        write_text(marker, "\n".join([source, *names]) + "\n")


def archive(source, folder):
    """The zip file that a source of `fetch_annotations` names; one from an http(s) address comes into the folder."""
    if source.startswith(WEB):
        download(source, folder / "archive.zip", Event())
        return folder / "archive.zip"
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
        raise InputError(f"{source}: no such file, and not to be had from the hub: {reason}") from None


def unpack(file, folder, source):
    """Unpack the JSON files of a zip archive, wherever they lie in it, right into the folder -> their names.
    source: what an InputError calls it."""
    names = set()
    try:
        with zipfile.ZipFile(file) as members:
            for member in members.infolist():
                if member.filename.endswith((".json", ".jsonl")):
                    name = Path(member.filename).name  # not the path: "../x.json" would leave the folder
                    with members.open(member) as packed, open(folder / name, "wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
                    names.add(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{source}: not a whole zip archive ({error})") from None
    if not names:
        raise InputError(f"{source}: no .json or .jsonl file in this archive")
    return sorted(names)

"""RefCOCO is fetched: its annotations, and only those of COCO's images that a run needs, into a cache folder. Whatever stops
a run, the next one continues. A run that has everything uses neither the network nor the lock."""

import os
import time
import zipfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from filelock import FileLock
from tqdm.contrib.concurrent import thread_map

from parts.files import InputError, reading, write_text, writing
from parts.tasks.images import open_image

ANNOTATIONS = ("rec_jsons_processed.zip", "omlab/VLM-R1")  # of RefCOCO, RefCOCO+ and RefCOCOg: on the hub, 38 MB
COCO_IMAGES = "http://images.cocodataset.org/train2014/"  # its certificate is for another name, so https fails
WORKERS, TIMEOUT = 16, 30  # images fetched at once; seconds without a byte until a connection counts as lost
TRIES, PAUSE = 3, 2.0  # of one image, and seconds after a failed one


def cache_folder():
    return Path(os.environ.get("IMAGELORA_CACHE") or "~/.cache/image-lora").expanduser()


def locked(folder):
    """Makes the folder and waits until no other process fetches into it: a context."""
    with reading(folder, "a folder that can be written into; IMAGELORA_CACHE names another"):
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock").acquire()


def fetch_annotations(folder):
    """Unpacks RefCOCO's archive into the folder, unless it is there."""
    marker = folder / "annotations.txt"  # written last
    if marker.exists():
        return
    with locked(folder):
        print(f"fetching {' of '.join(ANNOTATIONS)} into {folder}", flush=True)
        from huggingface_hub import hf_hub_download

        with reading("/".join(ANNOTATIONS[::-1]), "an archive that the hub gives; the same command tries again"):
            archive = hf_hub_download(*ANNOTATIONS[::-1], repo_type="dataset")
            zipfile.ZipFile(archive).extractall(folder)  # drops "../" and a leading "/"
        write_text(marker, "fetched\n")


def fetch_images(names, folder):
    """Fetches the named images that are missing in folder/train2014; an annotation's name chooses no other folder."""
    files = sorted({folder / "train2014" / Path(name).name for name in names})
    if all(file.exists() for file in files):
        return
    with locked(folder):
        missing = [file for file in files if not file.exists()]
        print(f"fetching {len(missing):,} images from {COCO_IMAGES} into {folder}", flush=True)
        thread_map(fetch_image, missing, max_workers=WORKERS, desc="images", leave=False)


def fetch_image(file):
    """Fetches one image; one that does not decode is fetched again."""
    url = COCO_IMAGES + file.name
    for _ in range(TRIES):
        try:
            with urlopen(url, timeout=TIMEOUT) as response:
                content = response.read()
            with writing(file) as part:
                part.write_bytes(content)
                open_image(part)
            return
        except (OSError, HTTPException, ValueError) as error:  # an InputError is a ValueError
            reason = error
            time.sleep(PAUSE)
    raise InputError(f"{url}: failed {TRIES} times ({reason}); the same command tries again")

"""RefCOCO's annotations and images: fetched once, completely, into the cache folder and nowhere else."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from local_web import IMAGE, IMAGES, NAME, serving, zipped

from parts.files import InputError
from parts.tasks.download import fetch_images, unpack


@pytest.fixture
def web(monkeypatch):
    with serving(monkeypatch) as web:
        yield web


def images_in(folder):
    """Names and contents, incomplete ones included."""
    return {file.name: file.read_bytes() for file in (folder / "train2014").iterdir()}


def test_only_missing_images_are_fetched_and_a_second_run_asks_the_network_nothing(web, tmp_path):
    fetch_images([NAME, NAME], tmp_path)
    fetch_images(IMAGES, tmp_path)
    fetch_images(IMAGES, tmp_path)
    assert images_in(tmp_path) == IMAGES and sorted(web.asked) == sorted(IMAGES)


@pytest.mark.parametrize("fault", ["cut", 503, b"<html>please log in</html>", IMAGE[: len(IMAGE) // 2], b""])
def test_what_is_no_complete_image_is_asked_for_again(web, tmp_path, fault):
    web.faults[NAME] = [fault] * 2
    fetch_images([NAME], tmp_path)
    assert images_in(tmp_path) == {NAME: IMAGE} and len(web.asked) == 3


@pytest.mark.parametrize("fault", ["cut", 404, b"<html>please log in</html>"])
def test_an_image_that_keeps_failing_is_named_the_others_stay_and_the_next_run_continues(web, tmp_path, fault):
    web.faults[NAME] = [fault] * 3
    with pytest.raises(InputError, match=f"^{web.address}train2014/{NAME}: failed 3 times .*; the same command"):
        fetch_images(IMAGES, tmp_path)
    kept = images_in(tmp_path)
    assert kept.items() <= IMAGES.items() and NAME not in kept
    fetch_images(IMAGES, tmp_path)
    assert images_in(tmp_path) == IMAGES


def test_the_name_of_an_image_does_not_choose_its_folder(web, tmp_path):
    fetch_images([f"../../{NAME}"], tmp_path / "a/b")
    assert [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"] == [
        tmp_path / "a/b/train2014" / NAME
    ]


FETCH = "import sys, pathlib; from parts.tasks.download import fetch_annotations; "
FETCH += "folder = pathlib.Path(sys.argv[1]); fetch_annotations(folder); fetch_annotations(folder)"


def test_annotations_come_from_the_hub_once(web, tmp_path):
    web.files["rec_jsons_processed.zip"] = zipped({"rec/refcoco_val.json": "[1]"})
    env = {"HF_ENDPOINT": web.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", FETCH, str(tmp_path / "cache")]
    done = subprocess.run(command, env=os.environ | env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"fetching rec_jsons_processed.zip of omlab/VLM-R1 into {tmp_path / 'cache'}\n"
    assert (tmp_path / "cache/refcoco_val.json").read_text() == "[1]"


def test_members_of_an_archive_stay_inside_the_folder(tmp_path):
    names = ["rec/a.json", "../../b.json", "/nowhere/c.jsonl", "rec/readme.txt", "rec/folder.json/"]
    (tmp_path / "a.zip").write_bytes(zipped(dict.fromkeys(names, "[1]") | {"rec/folder.json/": ""}))
    unpack(tmp_path / "a.zip", tmp_path / "x/y")
    inside = {file.name for file in (tmp_path / "x/y").iterdir()}
    assert inside == {"a.json", "b.json", "c.jsonl"} and len([*tmp_path.rglob("*.json*")]) == 3

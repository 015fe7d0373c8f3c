"""Fetching images: a set is continued, nothing incomplete gets a final name, nothing is fetched twice."""

import threading

import pytest
from local_web import IMAGE, IMAGES, NAME, elsewhere, serving

from parts.files import InputError
from parts.tasks import download
from parts.tasks.download import cache_folder, fetch_images


@pytest.fixture
def web(monkeypatch):
    with serving(monkeypatch) as web:
        yield web


def in_cache(folder):
    """The names and contents of the images in a cache folder, incomplete ones included."""
    return {file.name: file.read_bytes() for file in (folder / "train2014").iterdir()}


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
        InputError, match=f"{web.address}{last}: failed 3 times .*the connection closed after .* the same command tries again"
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
    assert web.seen == [("absent.jpg", None)]
    assert in_cache(tmp_path) == {}


def test_with_several_workers_the_line_names_the_image_that_failed_first(web, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 60)  # the others wait for their second try
    others = [f"later{i}.jpg" for i in range(20)]
    web.faults |= {name: [503] for name in others}
    with pytest.raises(InputError, match=r"absent.jpg: not found \(404\)$"):
        fetch_images(["absent.jpg", *others], tmp_path, web.address)


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


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("IMAGELORA_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache/image-lora"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared/image-lora"
    monkeypatch.setenv("IMAGELORA_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"

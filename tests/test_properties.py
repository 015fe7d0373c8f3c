"""Whatever a user gives: it is used, or one line names it (docs/reliability.md, promise 1). Inputs are searched by hypothesis.

Every test has one property: the reader returns, or raises InputError (a flag: exit code 2) with one line; nothing else,
and nothing half-written is left. The inputs are a function of the test, so every machine sees the same.
"""

import io
import json
import shutil
from contextlib import contextmanager

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed (tests/requirements.txt)")

from conftest import picture, randomised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_folders import MAKERS, make_refer

import train
from data import Processor, load
from imagelora import ImageLoRA, load_adapter
from model import VLM
from parts.files import InputError
from parts.tasks.images import Visual, open_image

MANY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(MANY, max_examples=30)


def used_or_one_line(name, attempt, *arguments):
    """Run attempt(*arguments): what it returns, or None if it refuses its input in one line that names `name`."""
    try:
        return attempt(*arguments)
    except InputError as error:
        assert str(name) in str(error) and len(str(error)) < 2000, error  # harness/processes.py makes one line of it
        return None


@contextmanager
def damaged(path, content):
    """A file with other content for a while."""
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        yield
    finally:
        path.write_bytes(before)


# -- what may be in a file

NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 2**63, 1e308])
TEXTS = st.text(max_size=8) | st.sampled_from(["", "x" * 10**4, "\0", "../../etc/passwd", "C:\\x", "a.png", "nan"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def broken(draw, content):
    """The bytes with a few of them cut out, replaced or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        a = draw(st.integers(0, len(content)))
        b = min(len(content), a + draw(st.sampled_from([0, 1, 2, 8, 100, len(content)])))
        new = draw(st.binary(max_size=8) | st.sampled_from([b"", content[a:b] * 2, b"[" * 10**5, b"NaN", b"\xff\xfe"]))
        content = content[:a] + new + content[b:]
    return content


def places_in(value):
    """(container, key) of everything inside plain data."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places_in(value[key])


@st.composite
def changed(draw, value):
    """A copy of plain data in which one value is replaced by any other, or taken away."""
    value = json.loads(json.dumps(value))
    inside, key = draw(st.sampled_from(list(places_in(value))))
    if draw(st.booleans()):
        inside[key] = draw(VALUES)
    else:
        del inside[key]
    return value


def in_json(value):
    """JSON as careless programs write it: NaN, half a surrogate pair, numbers without end."""
    return json.dumps(value).encode()


# -- rows and files of data sets

OWN = [
    {"image": "a.png", "sent": "the ring", "bbox": [1, 2, 30, 40]},
    {"images": ["a.png", "a.png"], "prompt": "Is <image> or <image> sharper?", "answer": "the second"},
    {"prompt": "17 + 25 =", "answer": "42"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every data set in its official format."""
    root = tmp_path_factory.mktemp("data")
    for name, make in MAKERS.items():
        make(root / name)
    make_refer(root / "refer")
    (root / "own").mkdir()
    picture(60, 50).save(root / "own/a.png")
    return root


@MANY
@given(row=st.sampled_from(OWN).flatmap(changed), more=st.dictionaries(TEXTS, VALUES, max_size=1))
def test_a_row_of_ones_own_is_used_or_named(folders, row, more):
    file = folders / "own/train.jsonl"
    file.write_bytes(in_json(row | more) + b"\n")
    examples = used_or_one_line("train.jsonl", load, "jsonl", folders / "own", "train")
    for example in examples or []:  # what is accepted can be used
        assert all(open_image(frame).size == visual.size for visual in example.visuals for frame in visual.frames)


DATA = [
    ("refcoco", "refcoco_train.jsonl", "train"),
    ("refcoco", "refcoco_val.json", "val"),
    ("screenspot-pro", "annotations/autocad_windows.json", "test"),
    ("screenspot-v2", "screenspot_web_v2.json", "test"),
    ("textvqa", "TextVQA_0.5.1_val.json", "val"),
    ("nextqa", "val.csv", "val"),
    ("vilp", "vilp.jsonl", "test"),
    ("gsm8k", "test.jsonl", "test"),
    ("llava", "val.json", "val"),
    ("refer", "refs(*.p", "train"),
]


@pytest.mark.parametrize(("name", "file", "split"), DATA)
@FEW
@given(data=st.data())
def test_a_damaged_file_of_a_data_set_is_used_or_named(folders, name, file, split, data):
    (path,) = (folders / name).rglob(file)
    with damaged(path, data.draw(broken(path.read_bytes()))):
        used_or_one_line(folders / name, load, name.replace("refer", "refcoco"), folders / name, split)


# -- images

@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "EPS", "PPM"])
@FEW
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow's own
def test_a_damaged_image_is_decoded_or_named(tmp_path_factory, kind, data):
    path, buffer = tmp_path_factory.mktemp("image") / "photo.png", io.BytesIO()
    picture(40, 30).save(buffer, kind)
    path.write_bytes(data.draw(broken(buffer.getvalue())))
    visual = Visual(path)
    size = used_or_one_line(path.name, lambda: visual.size)
    if size:
        image = used_or_one_line(path.name, open_image, visual.frames[0])
        assert image is None or (image.size == size and image.mode == "RGB")


# -- checkpoints and adapters


@pytest.fixture(scope="module")
def copied(checkpoint, tmp_path_factory):
    """A checkpoint that may be damaged, with an adapter beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    vlm = VLM.from_pretrained(folder)
    adapter = randomised(ImageLoRA(vlm.config, {0: [1], 2: [0]}, rank=2)).attach(vlm)
    adapter.save(folder / "adapter.safetensors")
    return folder


@FEW
@given(data=st.data())
def test_a_changed_configuration_is_used_or_named(copied, data):
    for name, read in (("config.json", VLM.from_pretrained), ("preprocessor_config.json", Processor.from_pretrained)):
        with damaged(copied / name, in_json(data.draw(changed(json.loads((copied / name).read_bytes()))))):
            used_or_one_line(copied, read, copied)


@FEW
@given(data=st.data())
def test_a_damaged_checkpoint_file_is_used_or_named(copied, data):
    path = copied / data.draw(st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]))
    with damaged(path, data.draw(broken(path.read_bytes()))):
        used_or_one_line(copied, VLM.from_pretrained, copied)
        used_or_one_line(copied, Processor.from_pretrained, copied)


@MANY
@given(data=st.data())
def test_a_damaged_adapter_is_used_or_named_and_leaves_the_model_as_it_was(copied, data):
    file, vlm = copied / "adapter.safetensors", VLM.from_pretrained(copied)
    with damaged(file, data.draw(broken(file.read_bytes()))):
        adapter = used_or_one_line(file, load_adapter, file, vlm)
    if adapter is None:
        assert not any(site for layer in vlm.model.layers for site in layer.self_attn.updates.values())


# -- flags

FLAGS = ["--model", "--data", "--method", "--heads", "--steps", "--epochs", "--lr", "--batch", "--accumulate", "--seed"]
FLAGS += ["--max-pixels", "--min-pixels", "--device", "--dtype", "--quantize", "--workers", "--cache-vision", "--limit"]
FLAGS += ["--eval", "--eval-split", "--eval-limit", "--max-new-tokens", "--adapter", "--rank", "--alpha", "--gamma"]
FLAGS += ["--selection", "--tau", "--probe-samples", "--targets", "--ablate", "--resume", "--train-split", "--save-every"]
WORDS = st.sampled_from(["", " ", "0", "-1", "1e400", "nan", "x", "/dev/null", "/no/such", "jsonl=/no", "\0", "path=z", "🜂"])


@MANY
@given(flags=st.lists(st.tuples(st.sampled_from(FLAGS), WORDS), min_size=1, max_size=3))
def test_flags_without_sense_are_one_line_and_leave_nothing(tmp_path_factory, capsys, monkeypatch, flags):
    folder = tmp_path_factory.mktemp("run")
    monkeypatch.chdir(folder)
    short = ["--limit", "0", "--method", "none", "--data", "jsonl=/no/such"]  # ends before a model works
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train.main([*short, *(f"{flag}={word}" for flag, word in flags), "--out", str(folder / "out")])
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and lines[-1].startswith("error: "), lines
    assert not any(line.startswith("Traceback") for line in lines)
    assert list(folder.iterdir()) == []


# -- a run's folder


@FEW
@given(data=st.data())
def test_a_damaged_state_is_continued_or_named(state_of_a_run, capsys, data):
    folder, state = state_of_a_run
    for file in folder.iterdir():
        file.unlink()
    (folder / "state.pt").write_bytes(data.draw(broken(state)))
    capsys.readouterr()
    try:
        train.main(["--resume", str(folder)])
    except SystemExit as end:
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert end.code == 2 and line.startswith("error: ") and str(folder) in line, line


@pytest.fixture(scope="module")
def state_of_a_run(checkpoint, tmp_path_factory):
    """(folder, content of state.pt) of a short run of which everything but the evaluation at the end is done."""
    out = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--data=scenes-day", "--eval=sums", "--limit=4", "--eval-limit=1", "--steps=1", "--batch=1", "--no-base"]
    flags += ["--probe-samples=1", "--max-new-tokens=1", "--heads=2"]
    train.main(["--model", str(checkpoint), *flags, "--out", str(out)])
    return out, (out / "state.pt").read_bytes()

"""Attacks on what a run leaves, seeded: a file that is broken, changed or of another run is named, not used; a disk that
is full leaves what was there."""

import json
import random
import zipfile
from functools import partial

import pytest
import torch
from breaking import attack, broken_bytes, broken_text
from PIL import Image
from task_folders import write_json, write_lines

import train
from data import Example
from harness import figures, report
from harness.evaluate import score_again
from harness.state import (
    FORMAT,
    make_folder,
    read_state,
    restore,
    save_state,
    sealed,
    start,
)
from parts.files import InputError, write_safetensors, write_text
from parts.tasks.rows import json_rows
from probe import load_selection, save_selection

# -- what a run leaves


ARGUMENTS = ["--data=scenes-day", "--limit=8"]


def state_of_a_run():
    """A state as a run saves it, and the parameters and the optimiser that it belongs to."""
    parameters = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(2))]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    log = [{"step": 0, "loss": 1.5, "lr": 0.1, "ms": 3.5, "tokens": 9, "visual_tokens": 4, "elapsed": 2.0}]
    state = {"origin": {"--seed": 0}, "base": "[]", "heads": {0: [1]}, "scores": [[0.1, 0.2]], "step": 1, "log": log}
    state |= {"curve": [(1, 0.5)], "parameters": [p.detach() for p in parameters], "optimizer": optimizer.state_dict()}
    return state, parameters, optimizer


@pytest.fixture
def left(tmp_path):
    """A folder with all that a run leaves: small, and made without running."""
    out = tmp_path / "run"
    arguments = vars(train.arguments(ARGUMENTS))
    write_json(out / "arguments.json", sealed({"format": FORMAT} | arguments))
    state, *_ = state_of_a_run()
    save_state(state, out)
    save_selection(out / "heads.json", {0: [1], 2: [0]}, [[0.5, 1.5]] * 3)
    line = {"metric": "iou", "text": "[1, 2, 3, 4]", "reference": [1, 2, 3, 4], "size": [9, 9], "resized": [9, 9]}
    line |= {"data": "d", "kind": "k", "group": "", "images": ["a.png"], "videos": 0, "when": "base", "score": 1.0}
    write_lines(out / "predictions.jsonl", [line, line | {"when": "tuned", "metric": "exact", "reference": "x"}])
    write_lines(out / "log.jsonl", state["log"])
    return out


def use_state(out):
    _, parameters, optimizer = state_of_a_run()
    restore(read_state(out / "state.pt"), parameters, optimizer)


RUN_FILES = {  # file: (what is done with it, how many times it is broken)
    "arguments.json": (lambda out, config: start(train.arguments(["--resume", str(out)])), 60),
    "state.pt": (lambda out, config: use_state(out), 80),
    "heads.json": (lambda out, config: load_selection(out / "heads.json", config), 60),
    "log.jsonl": (lambda out, config: [*json_rows(out / "log.jsonl")], 20),
    "predictions.jsonl": (lambda out, config: score_again(out / "predictions.jsonl"), 60),
}


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_broken_file_of_a_run_is_used_or_named_and_the_others_stay(left, vlm, name):
    use, count = RUN_FILES[name]
    others = {file: file.read_bytes() for file in left.iterdir() if file.name != name}
    breaks = broken_bytes if name == "state.pt" else broken_text
    attack(left / name, lambda: use(left, vlm.config), breaks, count, str(left))
    assert all(file.read_bytes() == content for file, content in others.items())


def test_every_value_of_the_arguments_and_of_a_state_has_one_kind(left):
    """Also where the checksum fits: as if another program had written the file."""
    count, (state, *_) = 0, state_of_a_run()
    arguments = json.loads((left / "arguments.json").read_text())
    for key in arguments:
        (left / "arguments.json").write_text(json.dumps(arguments | {key: ["something else"]}))
        with pytest.raises(InputError, match="arguments.json: not the arguments of a run|begun by another version"):
            start(train.arguments(["--resume", str(left)]))
        count += 1
    for key in state:
        for wrong in (7.5, "x", {"a": 1}, [None], torch.zeros(2)):
            if type(wrong) is type(state[key]):
                continue
            try:
                save_state(state | {key: wrong}, left)
            except (TypeError, AttributeError):  # a tensor among plain data, and no tensors
                continue
            with pytest.raises(InputError, match="state"):
                use_state(left)
            count += 1
    print(f"wrong kinds: {count} inputs, {count} refused")


def test_a_flipped_byte_of_a_state_is_never_accepted_as_another_number(left):
    """Every byte of the numbers themselves."""
    file = left / "state.pt"
    saved = torch.load(file, weights_only=True)["parameters"][0]
    with zipfile.ZipFile(file) as archive:
        numbers = [archive.read(m) for m in archive.infolist() if m.filename.endswith("/data/0")]
    whole = file.read_bytes()
    at = whole.index(numbers[0])
    assert len(numbers) == 1 and len(numbers[0]) == saved.nbytes
    for i in range(at, at + saved.nbytes):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(InputError, match="state.pt: not a saved state .*checksum"):
            read_state(file)


# -- a state belongs to its run


class Model:
    """All that `make_folder` asks of a model."""

    def fingerprint(self):
        return "abc"


@pytest.mark.parametrize(
    ("seed", "fingerprint", "rows", "said"),
    [
        (0, "abc", ["a", "b"], None),
        (1, "abc", ["a", "b"], "--seed was 0 when it was saved, and is 1 now"),
        (0, "abd", ["a", "b"], "the base model was 'abc' when it was saved, and is 'abd' now"),
        (0, "abc", ["a", "c"], "the rows of training was '2 with the hash"),
        (0, "abc", ["a"], "is '1 with the hash"),
    ],
)
def test_a_state_is_used_for_its_own_run_alone(tmp_path, monkeypatch, seed, fingerprint, rows, said):
    args = train.arguments([*ARGUMENTS, "--out", str(tmp_path)])
    state = state_of_a_run()[0] | {"origin": None}
    make_folder(tmp_path, args, state, Model(), {"training": [Example([], text, "x") for text in ("a", "b")]})
    save_state(state, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    args.seed, examples = seed, [Example([], text, "x") for text in rows]
    monkeypatch.setattr(Model, "fingerprint", lambda self: fingerprint)
    use = partial(make_folder, tmp_path, args, read_state(tmp_path / "state.pt"), Model(), {"training": examples})
    if said is None:
        assert use() == tmp_path
    else:
        with pytest.raises(InputError, match=f"{tmp_path}/state.pt: .*{said}.*; bring that back, or begin a new run"):
            use()
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_state_without_its_arguments_is_not_taken_for_a_new_run(left):
    (left / "arguments.json").unlink()
    with pytest.raises(InputError, match="holds other files; choose another folder"):
        start(train.arguments([*ARGUMENTS, "--out", str(left)]))


def test_a_state_of_another_version_says_which(left):
    torch.save({"step": 3}, left / "state.pt")
    with pytest.raises(
        InputError, match="state.pt: not a saved state .format 1, this version has 2; begin the run again"
    ):
        read_state(left / "state.pt")


# -- the disk is full


def noise():
    return Image.frombytes("RGB", (90, 90), random.Random(0).randbytes(90 * 90 * 3))


def note(out, vlm):
    line = {
        "step": 0,
        "sums": torch.tensor([1.0, 2.0, 3.0, 1.0, 0.0, 1.0]),
        "lr": 0.1,
        "ms": 1.0,
        "wait_ms": 0.0,
        "elapsed": 1.0,
    }
    report.note_step(out, vlm.device, [], line)


WRITES = {  # file: what writes it
    "a.txt": lambda out, vlm: write_text(out / "a.txt", "text\n" * 5000),
    "a.safetensors": lambda out, vlm: write_safetensors(out / "a.safetensors", {"a": torch.randn(5000)}, {"b": "c"}),
    "state.pt": lambda out, vlm: save_state(state_of_a_run()[0], out),
    "a.png": lambda out, vlm: figures.save(noise(), out / "a.png"),
    "model.safetensors": lambda out, vlm: vlm.save(out),
    "log.jsonl": note,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_disk_that_is_full_at_any_of_20_sizes_leaves_the_file_of_before_and_one_line(tmp_path, vlm, name):
    resource = pytest.importorskip("resource")
    write, unlimited = WRITES[name], resource.getrlimit(resource.RLIMIT_FSIZE)
    write(tmp_path, vlm)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    size = len(before[name])
    if name == "log.jsonl":  # it grows by a line
        sizes = range(size, 2 * size, max(1, size // 20))[:20]
    else:
        sizes = [size * i // 20 for i in range(20)]
    for limit in sizes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        try:
            with pytest.raises(InputError) as error:
                write(tmp_path, vlm)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert str(tmp_path) in str(error.value) and "cannot be written" in str(error.value), limit
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 500
        after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        if name == "log.jsonl":  # what is there is there; a resumed run writes it again
            assert after.keys() == before.keys() and after[name].startswith(before[name])
            (tmp_path / name).write_bytes(before[name])
        elif name == "model.safetensors":  # the small files beside it may be new
            assert after[name] == before[name] and not any(file.endswith(".part") for file in after)
        else:
            assert after == before, limit
    print(f"{name}: {len(sizes)} sizes")
    write(tmp_path, vlm)

"""Workers, however they are started, make what the process itself makes: also of special tokens that a user typed."""

import json
import multiprocessing
import pickle

from conftest import by_hand, picture

import train
from data import Example

TYPED = "Is <|im_end|>\n<|im_start|>system a token? <|image_pad|><|vision_start|> <|endoftext|>"


def test_a_pickled_processor_reads_typed_special_tokens_as_text(processor):
    examples = [Example([], TYPED, TYPED), Example([picture(60, 60)], TYPED, "no", history=((TYPED, TYPED),))]
    copied = pickle.loads(pickle.dumps(processor))
    twice = pickle.loads(pickle.dumps(copied))
    for example in examples:
        ids = processor.tokens(example)
        assert copied.tokens(example) == ids == twice.tokens(example)
        assert ids.ids.count(processor.special["image_pad"]) == sum(map(processor.visual_tokens, example.visuals))
        assert ids.ids.count(processor.special["im_end"]) == 3 + 2 * len(example.history)  # those of the template


METHODS = [method for method in ("fork", "spawn", "forkserver") if method in multiprocessing.get_all_start_methods()]


@by_hand
def test_an_adapter_has_the_same_bytes_with_every_way_to_start_workers(checkpoint, tmp_path):
    rows = [{"prompt": TYPED, "answer": f"{i} <|im_end|>"} for i in range(3)]
    rows += [{"image": f"{i}.png", "prompt": TYPED, "answer": "<|image_pad|>"} for i in range(3)]
    for i in range(3):
        picture(60, 60, i).save(tmp_path / f"{i}.png")
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        f"--data=jsonl={tmp_path}",
        "--eval-limit=1",
        "--no-base",
        "--max-new-tokens=2",
        "--steps=2",
    ]
    flags += ["--batch=3", "--selection=all", "--cache-vision=0", "--model", str(checkpoint)]

    def adapter(out, *more):
        train.main([*flags, *more, "--out", str(tmp_path / out)])
        return (tmp_path / out / "adapter.safetensors").read_bytes()

    alone, usual = adapter("alone", "--workers=0"), multiprocessing.get_start_method()
    try:
        for method in METHODS:
            multiprocessing.set_start_method(method, force=True)
            assert adapter(method, "--workers=1") == alone, method
    finally:
        multiprocessing.set_start_method(usual, force=True)

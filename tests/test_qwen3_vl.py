"""What is Qwen3-VL's own: configuration, encoder, DeepStack, positions, prompts, boxes; and complete runs with it.

The method's claims (test_imagelora.py), attention, loss and generation (test_model.py) and the comparison with transformers
(test_reference.py) are tested for both families there.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from cases import CASES
from conftest import (
    ROOT,
    by_hand,
    picture,
    randomised,
    small_config,
    small_qwen3_config,
    write_checkpoint,
)
from short_run import SMALL_RUN, adapter_of, equal, run
from task_folders import MAKERS

import train
from data import Example, Processor, load
from harness.encodings import encode_images
from harness.evaluate import prediction
from imagelora import ImageLoRA, load_adapter
from model import VLM
from parts.backbones.checkpoint import hub_name, our_name, read_config
from parts.backbones.qwen3_vl import Config
from parts.files import InputError, read_json, read_safetensors, write_safetensors
from parts.tasks import TASKS, score
from parts.tasks.boxes import box_from_model, box_to_model, in_another_scale
from parts.tasks.rows import BOX_ANSWER


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("qwen3"), family="qwen3_vl")


@pytest.fixture(scope="module")
def processor(checkpoint):
    return Processor.from_pretrained(checkpoint)


# -- configuration and tensors


@pytest.mark.parametrize(("size", "parameters"), [("2b", 2_127_532_032), ("4b", 4_437_815_808)])
def test_names_and_shapes_are_those_of_the_hub_checkpoints(shared, size, parameters):
    folder = shared / "qwen3-vl"
    with torch.device("meta"):
        vlm = VLM(Config.from_dict(read_json(folder / f"config_{size}.json")))
    ours = {hub_name(name, "qwen3_vl"): list(p.shape) for name, p in vlm.state_dict().items()}
    assert ours == read_json(folder / f"tensor_names_{size}.json")
    assert {our_name(name) for name in ours} == vlm.state_dict().keys()
    assert sum(p.numel() for p in vlm.parameters()) == parameters
    assert vlm.config.layers * vlm.config.value_heads == {"2b": 224, "4b": 288}[size]


def test_a_checkpoint_is_saved_with_the_hubs_names_and_read_with_both(tmp_path, checkpoint, vlm, processor):
    tensors = dict(read_safetensors(checkpoint / "model.safetensors"))
    assert {name.split(".")[1] for name in tensors} == {"visual", "language_model", "weight"}  # lm_head.weight
    batch = processor(CASES["one image"]())
    vlm.save(tmp_path)
    again = VLM.from_pretrained(tmp_path)
    assert torch.equal(again(batch), vlm(batch)) and again.config == vlm.config
    assert again.fingerprint() == vlm.fingerprint()
    write_safetensors(tmp_path / "model.safetensors", {our_name(name): t for name, t in tensors.items()}, {})
    assert torch.equal(VLM.from_pretrained(tmp_path)(batch), vlm(batch))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("text_config", {"head_dim": None}, "not a complete Qwen3-VL configuration .KeyError: 'head_dim'"),
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("text_config", {"head_dim": 20}, "mrope_section"),
        (
            "text_config",
            {"rope_scaling": {"mrope_interleaved": False, "mrope_section": [6, 3, 3]}},
            "mrope_interleaved",
        ),
        ("vision_config", {"hidden_act": "gelu"}, "vision hidden_act"),
        ("vision_config", {"num_position_embeddings": 35}, "num_position_embeddings"),
        ("vision_config", {"deepstack_visual_indexes": [2, 0]}, "deepstack_visual_indexes"),
        ("vision_config", {"deepstack_visual_indexes": [0, 9]}, "deepstack_visual_indexes"),
        ("vision_config", {"deepstack_visual_indexes": [0, 1, 2, 3]}, "deepstack_visual_indexes"),
        ("vision_config", {"out_hidden_size": 32}, "out_hidden_size"),
    ],
)
def test_a_configuration_that_is_not_computed_here_is_refused(tmp_path, part, change, said):
    raw = small_qwen3_config()
    raw[part] = {k: v for k, v in (raw[part] | change).items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=f"config.json: .*{said}"):
        read_config(tmp_path)


def test_interleaved_rotary_sections_are_refused_where_they_are_not_the_familys_own(tmp_path):
    raw = small_config()
    raw["rope_scaling"] = raw["rope_scaling"] | {"mrope_interleaved": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="mrope_interleaved does not fit a Qwen2.5-VL"):
        read_config(tmp_path)


def test_time_height_and_width_take_turns_at_the_frequencies(shared):
    """Sections 24, 20, 20: places 1, 4, ... below 60 are the height's, 2, 5, ... below 60 the width's, the rest time's."""
    config = Config.from_dict(read_json(shared / "qwen3-vl/config_4b.json"))
    assert (config.head_size, config.rope_sections, config.rope_theta) == (128, (24, 20, 20), 5_000_000)
    axis = config.by_axis(torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, 64)).flatten().int().tolist()
    assert axis == [0, 1, 2] * 20 + [0] * 4
    assert [axis.count(a) for a in (0, 1, 2)] == [24, 20, 20]


# -- the encoder


def test_each_image_is_encoded_as_it_is_alone(vlm, processor):
    examples = [Example([picture(90, 60)]), Example([picture(40, 300, 1)]), Example([picture(130, 130, 2)])]
    together, *alone = (
        vlm.visual(batch.patches, batch.grids) for batch in map(processor, [examples, *([e] for e in examples)])
    )
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert together.shape == (sum(processor.count(e)[1] for e in examples), vlm.config.visual_size)


# -- DeepStack


def test_features_are_added_to_the_visual_positions_after_the_first_layers_and_nowhere_else(vlm, mixed):
    _, features = vlm.embed(mixed)
    assert [f.shape for f in features] == [(len(mixed.visual_index), 64)] * 2
    entering, leaving = [], []
    for layer in vlm.model.layers:
        layer.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
        layer.register_forward_hook(lambda module, args, out: leaving.append(out))
    vlm(mixed)
    for i, feature in enumerate(features):
        added = entering[i + 1] - leaving[i]
        assert torch.allclose(added[mixed.visual_mask], feature, atol=1e-5)
        assert (added[~mixed.visual_mask] == 0).all()


def test_without_features_the_model_has_one_road_only_and_the_encoders_output_is_d_wide(tmp_path):
    raw = small_qwen3_config()
    raw["vision_config"] = raw["vision_config"] | {"deepstack_visual_indexes": []}
    folder = write_checkpoint(tmp_path, raw=raw)
    vlm, processor = VLM.from_pretrained(folder), Processor.from_pretrained(folder)
    _, features = vlm.embed(processor(CASES["one image"]()))
    assert features == [] and vlm.config.visual_size == 64
    assert len(vlm.generate(processor(CASES["one image"]()), 4)[0]) == 4


def test_images_encoded_ahead_bring_their_features_and_count_with_them(vlm, processor):
    examples = [Example([picture(60, 60, i)], "What?", "a ring") for i in range(3)]
    each = processor.visual_tokens(examples[0].visuals[0]) * 64 * 3 * 4  # an embedding and two features, float32
    loss = vlm.loss(processor(examples)).item()
    encode_images(vlm, processor, examples, 2.5 * each / 2**30)
    assert processor.encoded.keys() == {e.visuals[0].key for e in examples[:2]}
    encode_images(vlm, processor, examples, 1)
    batch, processor.encoded = processor(examples), {}
    assert len(batch.grids) == 0 and len(vlm.embed(batch)[1]) == 2
    assert vlm.loss(batch).item() == pytest.approx(loss, rel=1e-5)


def test_an_adapter_leaves_the_features_alone(vlm, mixed):
    """Image-LoRA acts on values. What DeepStack adds is the same with and without it."""
    _, frozen = vlm.embed(mixed)
    randomised(ImageLoRA(vlm.config, {0: [0, 1], 1: [1]})).attach(vlm)
    _, adapted = vlm.embed(mixed)
    assert all(torch.equal(a, b) for a, b in zip(frozen, adapted))


# -- prompts


def row_text(processor, example):
    ids, _, _ = processor.tokens(example)
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def test_there_is_no_system_turn(processor):
    assert row_text(processor, Example([picture(96, 64)], "Where?", "here")) == (
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>Where?<|im_end|>\n"
        "<|im_start|>assistant\nhere<|im_end|>"
    )


def test_every_slice_of_a_video_stands_on_its_own_after_its_time(processor):
    """Five frames at two a second are at 0, 0.5, 1, 1.5, 2 s: slices at 0.25 and 1.25 s; the last frame is on its own."""
    asked = Example(videos=[[picture(64, 64, i) for i in range(5)]], fps=2.0, prompt="What happens?")
    tokens = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    text = f"<0.2 seconds>{tokens}<1.2 seconds>{tokens}<2.0 seconds>{tokens}"
    assert row_text(processor, asked) == f"<|im_start|>user\n{text}What happens?<|im_end|>\n<|im_start|>assistant\n"

    batch = processor([asked])
    seen = batch.position_ids[:, 0, batch.visual_mask[0]]
    first = seen[0].view(3, 4)[:, 0]
    assert batch.grids.tolist() == [[3, 4, 4]]
    assert torch.equal(seen[0].view(3, 4), first[:, None].expand(3, 4))  # a slice has one time, that of its first token
    assert (seen[1].view(3, 4) - first[:, None]).tolist() == [[0, 0, 1, 1]] * 3
    between = len(processor.encode("<1.2 seconds>")) + 2  # and <|vision_start|>, <|vision_end|>
    assert (first[1:] - first[:-1]).tolist() == [2 + between] * 2  # a slice takes its larger side


def test_videos_train_and_answer_batched_as_alone(vlm, processor):
    clips = [[picture(60, 60, 10 * k + i) for i in range(4 + k)] for k in range(3)]
    asks = [Example(videos=[clip], fps=2.0 + k, prompt="What happens?") for k, clip in enumerate(clips)]
    asks.append(Example([], "17 + 25 ="))
    assert vlm.generate(processor(asks), 6) == [vlm.generate(processor([ask]), 6)[0] for ask in asks]
    shared = [Example(videos=[clips[0]], fps=2.0, prompt=p, answer="a ring") for p in ("What?", "Where is it?")]
    assert vlm.loss(processor(shared, share_images=True)).item() == pytest.approx(
        vlm.loss(processor(shared)).item(), rel=1e-5
    )


# -- boxes, 0 to 1000 of each side


def test_a_box_is_learnt_in_thousandths_of_the_sides_whatever_the_model_sees(checkpoint):
    e = Example([picture(224, 112)], "?", (56, 28, 224, 112))
    for most in (64 * 64, 401408):
        processor = Processor.from_pretrained(checkpoint, max_pixels=most)
        answer = processor.answer_text(e)
        assert answer == '{\n"bbox_2d": [250, 250, 1000, 1000]\n}'
        made = prediction(e, answer, processor)
        assert made["score"] == 1 and made["parsed"] == pytest.approx([56, 28, 224, 112])
    assert prediction(e, "[56, 28, 224, 112]", processor)["score"] == 0  # pixels
    assert in_another_scale([10, 10, 1200, 900], (1000, 1000)) and not in_another_scale(
        [0, 0, 1000, 1000], (1000, 1000)
    )


@pytest.mark.parametrize("split", ["val", "testA", "testB"])
def test_every_real_refcoco_box_comes_back_within_half_a_thousandth(shared, split):
    for row in read_json(shared / f"refcoco-annotations/refcoco_{split}.json"):
        size, (x, y, w, h) = (row["width"], row["height"]), row["bbox"]
        box, scale = (x, y, min(x + w, size[0]), min(y + h, size[1])), (1000, 1000)
        written = box_to_model(box, size, scale, end=0)
        back = box_from_model(written, size, scale)
        assert all(abs(a - b) <= size[i % 2] / 2000 + 1e-9 for i, (a, b) in enumerate(zip(back, box))), row
        assert score("iou", BOX_ANSWER.format(written), box, size, scale)["score"] == 1, row


# -- complete runs


@pytest.mark.parametrize("name", MAKERS)
def test_every_data_set_trains_and_what_is_learnt_from_a_row_scores_one(name, vlm, checkpoint, tmp_path):
    MAKERS[name](tmp_path)
    processor = Processor.from_pretrained(checkpoint, max_pixels=12544)
    examples = load(name, tmp_path, TASKS[name].eval_split)
    for example in examples:
        made = prediction(example, processor.answer_text(example), processor)
        assert (made["score"], made["failed"]) == (1, False), made
    assert vlm.loss(processor(examples[:3], share_images=True)).isfinite()


@pytest.fixture(scope="module")
def ran(checkpoint, tmp_path_factory):
    """(folder, report) of one short run on drawn scenes."""
    out = tmp_path_factory.mktemp("run")
    return out, run(checkpoint, out)


def test_a_run_trains_an_adapter_that_keeps_text_and_loads_again(ran, vlm, checkpoint, tmp_path):
    out, report = ran
    assert report["text_logit_max_change"] == 0.0 and report["tuned"]["accuracy"] is not None
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    visual, (heads,) = sum(line["visual_tokens"] for line in log) / 4, report["heads"].values()
    assert report["adapter_flops_per_step"] == pytest.approx(6 * visual * (64 * 8 + 8 * len(heads) * 24))
    load_adapter(out / "adapter.safetensors", vlm)
    again = run(checkpoint, tmp_path, "--adapter", str(out / "adapter.safetensors"))
    assert again["tuned"] == report["tuned"] and again["base"] == report["base"]


def test_an_adapter_of_the_other_family_is_refused(ran, tmp_path):
    other = VLM.from_pretrained(write_checkpoint(tmp_path))
    with pytest.raises(InputError, match="made for another checkpoint"):
        load_adapter(ran[0] / "adapter.safetensors", other)


@pytest.mark.parametrize("flags", [["--cache-vision=0"], ["--cache-vision=0", "--checkpointing"]], ids=str)
def test_what_only_saves_time_or_memory_changes_no_result(ran, checkpoint, tmp_path, flags):
    out, report = ran
    other = run(checkpoint, tmp_path, *flags)
    for name, tensor in adapter_of(out).items():
        assert torch.allclose(tensor, adapter_of(tmp_path)[name], rtol=1e-4, atol=1e-6), name
    assert other["base"] == report["base"]


@by_hand
def test_two_processes_that_share_a_step_end_where_one_does(ran, checkpoint, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / "train.py"]
    args = ["--model", checkpoint, "--data", "scenes-day", *SMALL_RUN, "--out", tmp_path]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([str(part) for part in (*command, *args)], check=True, capture_output=True, env=env)
    for name, tensor in adapter_of(ran[0]).items():
        assert torch.allclose(tensor, adapter_of(tmp_path)[name], rtol=1e-5, atol=1e-6), name


def test_lora_and_the_other_criterion_run_too(checkpoint, tmp_path):
    lora = run(checkpoint, tmp_path / "lora", "--method", "lora")
    assert lora["trainable_parameters"] == 3 * 8 * ((64 + 96) * 2 + (64 + 48) * 2)  # q, o: 4 x 24; k, v: 2 x 24
    assert lora["text_logit_max_change"] > 0
    assert sum(map(len, run(checkpoint, tmp_path / "gate", "--selection", "gate")["heads"].values())) == 1


def test_a_run_on_real_photographs_goes_from_files_to_a_report_and_resumes(shared, checkpoint, tmp_path):
    where = f"--data refcoco={shared / 'refcoco-mini'} --train-split testA --eval refcoco --eval-split val".split()
    where += ["--max-pixels=50000", "--save-every=2", "--keep-states"]
    report = run(checkpoint, tmp_path / "run", *where)
    assert report["data"] == "refcoco" and report["steps"] == 4 and report["base"]["accuracy"] is not None
    rows = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert {row["when"] for row in rows} == {"base", "tuned"} and all(row["resized"] == [1000, 1000] for row in rows)

    # The same run, as if it had been killed after its second step.
    whole = adapter_of(tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    (tmp_path / "run/state-2.pt").replace(tmp_path / "run/state.pt")
    train.main(["--resume", str(tmp_path / "run")])
    assert equal(whole, adapter_of(tmp_path / "run"))

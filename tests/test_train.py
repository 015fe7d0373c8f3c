"""Lecture 5: a step, the loop, what is drawn from the seed, and complete runs with their reports."""

import json
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from conftest import picture, randomised
from PIL import Image
from short_run import adapter_of, equal, lines_of, run, stopped

import train
from data import Example
from harness import state
from harness.encodings import row_order, rows_of_steps, step_batches
from imagelora import ImageLoRA, LoRA
from model import VLM
from parts.files import read_metadata

# -- one step


def questions(*answers):
    return [Example([picture(60, 60, i)], "What is it?", answer) for i, answer in enumerate(answers)]


def test_two_steps_are_adamw_on_the_clipped_mean_over_all_answer_tokens_by_hand(vlm, processor, monkeypatch):
    """Batches of unequal answers. The loss is scaled, so that the first gradient is clipped and the second one is not."""
    parameters = list(randomised(LoRA(vlm.config, ("v",), rank=2, alpha=1)).attach(vlm).parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    real, scales = vlm.loss, []
    monkeypatch.setattr(vlm, "loss", lambda batch: scales[-1] * real(batch))

    def flat(tensors):
        return torch.cat([x.detach().flatten() for x in tensors])

    p, m, v, norms = flat(parameters), 0, 0, []
    for step, (scale, rate, texts) in enumerate([(1e3, 0.1, ("x", "a long answer")), (1e-3, 0.01, ("a ring", "no"))], 1):
        scales.append(scale)
        batches = [processor([example]) for example in questions(*texts)]
        answers = sum(len(batch.answer_ids) for batch in batches)
        total = sum(vlm.loss(batch) * len(batch.answer_ids) for batch in batches)
        g = flat(torch.autograd.grad(total / answers, parameters))
        norms.append(g.norm().item())
        g *= min(1.0, 1.0 / norms[-1])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.square()
        p = p - rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)

        optimizer.param_groups[0]["lr"] = rate
        numbers = train.training_step(vlm, batches, answers, parameters, optimizer, torch.float32)
        torch.testing.assert_close(flat(parameters), p, rtol=1e-4, atol=1e-5)
        assert numbers.tolist() == pytest.approx([(total / answers).item(), norms[-1]], rel=1e-3)
    assert norms[0] > 1 > norms[1]


def loop(vlm, monkeypatch, tmp_path, rates):
    """The optimisers' settings at each step of the loop of `train`."""
    settings = []

    def step(vlm, batches, answers, parameters, optimizer, dtype):
        settings.append({"answers": answers} | {name: optimizer.param_groups[0][name] for name in ("lr", "weight_decay")})
        return torch.ones(2)

    monkeypatch.setattr(train, "training_step", step)
    record = state.Record(train.parse_args(["--save-every=100", "--eval-every=0"]), tmp_path)
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    batch = SimpleNamespace(answer_ids=[1] * 3, visual_index=[1] * 5, attention_mask=torch.tensor([[1] * 8, [1] * 6 + [0] * 2]))
    train.train(vlm, parameters, [[batch, batch]] * len(rates), rates, torch.float32, record, None)
    return settings, record


def test_every_step_has_its_own_rate_and_no_weight_decays(vlm, monkeypatch, tmp_path):
    settings, record = loop(vlm, monkeypatch, tmp_path, [0.3, 0.2, 0.1])
    assert [step["lr"] for step in settings] == [0.3, 0.2, 0.1] == [line["lr"] for line in record.log]
    assert {step["weight_decay"] for step in settings} == {0.0} and {step["answers"] for step in settings} == {6}
    assert {(line["tokens"], line["visual_tokens"]) for line in record.log} == {(28, 10)}  # of both batches, without padding


def test_the_numbers_are_read_every_tenth_step_and_each_step_has_its_line(vlm, monkeypatch, tmp_path):
    reads, real = [], train.report.log_steps

    def log_steps(record, device):
        reads.append(len(record.unread))
        return real(record, device)

    monkeypatch.setattr(train.report, "log_steps", log_steps)
    _, record = loop(vlm, monkeypatch, tmp_path, [0.1] * 23)
    assert reads == [1, 10, 10, 2]
    assert [line["step"] for line in record.log] == list(range(23))
    assert record.log == lines_of(tmp_path / "log.jsonl")


def test_the_rate_rises_over_a_twentieth_of_the_steps_then_follows_a_cosine_to_a_tenth():
    rates = [train.learning_rate(step, 200, 1.0) for step in range(200)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1.0 and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[105] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)


# -- what is drawn from the seed


def test_every_epoch_has_every_row_once_and_rows_about_one_image_stay_together():
    examples = [Example([f"{n}.png"] if n else [], "?") for n in (1, 2, 1, 0, 3, 0, 2, 1)]
    first = list(islice(row_order(examples, seed=5), 16))
    for epoch in (first[:8], first[8:]):
        assert sorted(epoch) == list(range(8))
        assert {"0,2,7", "1,6"} <= {",".join(map(str, epoch[i : i + k])) for i in range(8) for k in (2, 3)}
    assert first[:8] != first[8:] and first != list(islice(row_order(examples, seed=6), 16))
    assert rows_of_steps(examples, 5, 4, 4) == [first[:4], first[4:8], first[8:12], first[12:]]


def test_a_the_order_and_the_probe_are_draws_from_the_seed_of_training_rows_alone(checkpoint, tmp_path, monkeypatch):
    seen = {}

    def step_loader(processor, examples, numbers, *how):
        seen.update(examples=examples, numbers=list(numbers))

    def loop(vlm, parameters, loader, rates, dtype, record, measure):
        seen["A"] = [p.detach().clone() for p in parameters if p.dim() == 2]

    def probe_scores(vlm, processor, examples, *how):
        seen["probe"] = (examples, *how)
        return torch.ones(3, 2)

    monkeypatch.setattr(train, "probe_scores", probe_scores)
    monkeypatch.setattr(train, "train", loop)
    monkeypatch.setattr(train.encodings, "step_loader", step_loader)
    report = run(checkpoint, tmp_path, "--seed", "5", "--selection", "gate", "--no-base")
    assert seen["probe"] == (seen["examples"], "gate", 3, 5) and len(seen["examples"]) == 12
    assert all(example.name.startswith("scenes-day train ") for example in seen["examples"])
    assert seen["numbers"] == rows_of_steps(seen["examples"], 5, 4, 4)
    torch.manual_seed(5)
    heads = {int(layer): hs for layer, hs in report["heads"].items()}
    drawn = [layer.A for layer in ImageLoRA(VLM.from_pretrained(checkpoint).config, heads).layers.values()]
    assert all(torch.equal(a, b) for a, b in zip(seen["A"], drawn, strict=True))


def test_the_probe_sees_the_examples_that_the_seed_names_one_a_batch(vlm, processor, monkeypatch):
    examples = [Example([picture(60, 60, i)] if i % 3 else [], f"{i}?", "x") for i in range(9)]
    seen = []

    def head_scores(vlm, batches, criterion, seed):
        seen.append([batch.input_ids for batch in batches])
        return torch.full((3, 2), float(seed))

    monkeypatch.setattr(train.probe, "head_scores", head_scores)
    scores = train.probe_scores(vlm, processor, examples, "rank1", samples=4, seed=2)
    with_image = [e for e in examples if e.images]
    order = torch.randperm(len(with_image), generator=torch.Generator().manual_seed(2)).tolist()[:4]
    expected = [processor([with_image[i]]).input_ids for i in order]
    assert len(seen[0]) == 4 and all(torch.equal(a, b) for a, b in zip(seen[0], expected))
    assert scores.tolist() == [[2.0, 2.0]] * 3  # its A is drawn from the same seed


@pytest.mark.parametrize("selection", ["random", "all", "gate"])
def test_heads_are_chosen_as_asked(checkpoint, tmp_path, selection):
    report = run(checkpoint, tmp_path / selection, "--selection", selection, "--heads=4", "--steps=1", "--seed=7")
    assert sum(len(hs) for hs in report["heads"].values()) == (6 if selection == "all" else 4)
    drawn = train.probe.random_heads(VLM.from_pretrained(checkpoint).config, 4, seed=7)
    assert selection != "random" or report["heads"] == {str(layer): hs for layer, hs in drawn.items()}
    file = tmp_path / selection / "heads.json"
    assert (json.loads(file.read_text())["scores"] is None) == (selection != "gate")
    assert run(checkpoint, tmp_path / "again", "--selection", str(file), "--steps", "1")["heads"] == report["heads"]


def test_flags_reach_the_method(vlm):
    learnt = {"heads": {1: [0]}, "gamma": 0.5}
    methods = {"--seed=1": learnt, "--method=lora --targets=v,o": {"targets": ["v", "o"]}}
    methods["--ablate norm=off path=k"] = learnt | {"norm": False, "path": "k"}
    for flags, own in methods.items():
        args = train.parse_args(["--rank=2", "--alpha=5", "--gamma=0.5", *flags.split()])
        adapter, _ = train.build_method(args, vlm, {1: [0]})
        adapter.detach()
        assert adapter.settings.items() >= ({"rank": 2, "alpha": 5} | own).items()


# -- complete runs


def test_a_run_writes_everything_it_promises(finished):
    out, report = finished
    promised = "method seed data steps trainable_parameters adapter_flops_per_step train_seconds peak_memory_bytes base tuned"
    promised += " text_logit_max_change parse_failures heads versions command commit"
    assert {*promised.split()} <= report.keys()
    for name in ("heads.png", "curve.png", "examples.png"):
        with Image.open(out / name) as image:
            assert len(image.convert("RGB").resize((200, 200)).getcolors(40000)) > 10
    log = lines_of(out / "log.jsonl")
    assert [line["step"] for line in log] == [0, 1, 2, 3] and {"loss", "lr", "ms", "wait_ms"} <= log[0].keys()
    predictions = lines_of(out / "predictions.jsonl")
    assert len(predictions) == 2 * 12 and {"prompt", "text", "parsed", "reference", "score"} <= predictions[0].keys()
    assert report["trainable_parameters"] == sum(t.numel() for t in adapter_of(out).values())
    assert json.loads(read_metadata(out / "adapter.safetensors")["notes"]) == {"min_pixels": 3136, "max_pixels": 401408}
    ((_, heads),) = report["heads"].items()  # a quarter of 6, rounded down
    visual_tokens = sum(line["visual_tokens"] for line in log) / 4
    assert report["adapter_flops_per_step"] == pytest.approx(6 * visual_tokens * (64 * 8 + 8 * len(heads) * 16))


def test_image_lora_does_not_change_text_and_lora_does(finished, checkpoint, tmp_path):
    _, report = finished
    assert report["text_logit_max_change"] == 0.0
    assert report["base"]["text_accuracy"] == report["tuned"]["text_accuracy"]
    lora = run(checkpoint, tmp_path, "--method", "lora")
    assert lora["text_logit_max_change"] > 0 and lora["heads"] is None
    assert lora["trainable_parameters"] == 3 * 8 * (4 * 64 + 2 * 64 + 2 * 32)


def test_a_saved_adapter_is_evaluated_alone(checkpoint, tmp_path):
    report = run(checkpoint, tmp_path / "lora", "--method=lora")
    again = run(checkpoint, tmp_path / "again", "--adapter", str(tmp_path / "lora/adapter.safetensors"))
    assert all(again[name] == report[name] for name in ("base", "tuned", "method", "text_logit_max_change"))
    assert not (tmp_path / "again/log.jsonl").read_text() and not (tmp_path / "again/adapter.safetensors").exists()


def test_full_training_writes_a_checkpoint_that_loads(checkpoint, tmp_path):
    report = run(checkpoint, tmp_path, "--method", "full", "--lr", "1e-3")
    tuned, base = VLM.from_pretrained(tmp_path / "checkpoint"), VLM.from_pretrained(checkpoint)
    assert report["trainable_parameters"] == sum(p.numel() for p in base.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(tuned.parameters(), base.parameters()))
    again = run(tmp_path / "checkpoint", tmp_path / "again", "--method", "none")
    assert again["base"] == report["tuned"] and again["tuned"]["accuracy"] is None and again["steps"] == 0


def test_the_curve_has_the_accuracy_of_the_same_few_rows_at_every_point(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CURVE_ROWS", 4)  # of six held-out rows
    monkeypatch.setattr(train.report, "CURVE_ROWS", 4)
    seen, real = [], train.report.summary

    def summary(rows, *data):
        if not data:  # else it is that of the report
            seen.append([p["source"] for p in rows])
        return real(rows, *data)

    monkeypatch.setattr(train.report, "summary", summary)
    measured = run(checkpoint, tmp_path, "--eval-every", "3")
    assert [step for step, _ in measured["curve"]] == [0, 3, 4] and seen[0] == seen[1] == seen[2] and len(seen[0]) == 4
    without = run(checkpoint, tmp_path / "without", "--eval-every", "0")
    assert without["curve"] == [measured["curve"][0], measured["curve"][2]]  # looking changes nothing
    assert equal(adapter_of(tmp_path), adapter_of(tmp_path / "without"))


def test_a_bad_row_ends_the_run_before_the_model_is_loaded(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(train.encodings, "load_model")
    picture(60, 60).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "sent": "a", "bbox": [0, 0, 9, 9]}, {"image": "a.png", "sent": "b", "bbox": [0, 0, 99, 9]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ("--data", f"jsonl={tmp_path / 'rows.jsonl'}")
    code, line = stopped(capsys, run, checkpoint, tmp_path / "run", *data)
    assert code == 2 and "rows.jsonl:2" in line and not (tmp_path / "run").exists()


def test_rows_of_like_length_share_a_batch_which_saves_padding_and_keeps_the_loss(vlm, processor):
    examples = [Example([], "word " * n, "yes") for n in (2, 60, 3, 55, 4, 58, 1, 62)] + questions("a ring")
    together = step_batches(processor, examples, size=2)
    in_order = [processor(examples[i : i + 2]) for i in range(0, 9, 2)]

    def of(batches, value):
        return sum((batch.attention_mask == value).sum().item() for batch in batches)

    def loss(batches):
        return sum(vlm.loss(batch) * len(batch.answer_ids) for batch in batches)

    assert of(together, 1) == of(in_order, 1) and of(together, 0) < of(in_order, 0) / 10
    torch.testing.assert_close(loss(together), loss(in_order), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flags", [["--cache-vision=0"], ["--cache-vision=0", "--workers=2"], ["--checkpointing"]], ids=str)
def test_what_only_saves_time_or_memory_changes_no_result(finished, checkpoint, tmp_path, flags):
    out, report = finished  # images encoded once and kept, no workers, no checkpointing
    other = run(checkpoint, tmp_path, *flags)
    for name, tensor in adapter_of(out).items():
        assert torch.allclose(tensor, adapter_of(tmp_path)[name], rtol=1e-4, atol=1e-6), name
    assert other["base"] == report["base"]

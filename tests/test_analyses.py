"""Analyses: columns and scenes of a report, heads switched off, probes, attention, chosen heads."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import randomised

from experiments import analyses, loading, selection, suites, tables, trained
from harness import criteria
from imagelora import ImageLoRA
from model import attend
from parts.backbones.layers import weights_kept
from probe import head_scores

HEADS = {0: [1], 2: [0, 1]}

# -- reports


def report_of(by_kind, method="lora", **more):
    """A report with these accuracies, as far as tables and comparisons read it."""
    when, other = ("base", "tuned") if method == "none" else ("tuned", "base")
    mean = sum(by_kind.values()) / len(by_kind)
    return {"method": method, when: {"accuracy": mean, "by_kind": by_kind}, other: {"by_kind": {}}} | more


def test_boxes_and_words_are_those_of_the_runs_own_data():
    mixed = {"scenes-fog grounding": 0.5, "scenes-fog attribute": 0.7, "scenes-day grounding": 0.9, "sums text": 1.0}
    values = {column: tables.accuracy(report_of(mixed), column) for column in (*tables.QUESTIONS, "accuracy")}
    assert list(values.values()) == [0.5, 0.7, 0.9, None, 1.0, None]
    assert tables.accuracy(report_of(mixed, "none"), "boxes") == 0.5
    compared_by = [tables.main_column(report_of({kind: 0.5})) for kind in ("x grounding", "x attribute", "textvqa")]
    assert compared_by == ["boxes", "words", "accuracy"]


def test_the_scores_of_a_comparison_are_those_of_the_tuned_model_in_the_column_by_scene(tmp_path):
    def line(when, source, kind, score, images=("drawn",)):
        data = source.split()[0]
        return {"when": when, "data": data, "kind": kind, "images": images, "source": source, "score": score}

    lines = [
        line("base", "scenes-fog test 7.0", "grounding", 0.0),
        line("tuned", "scenes-fog test 7.0", "grounding", 1.0),
        line("tuned", "scenes-fog test 7.2", "grounding", 0.5),
        line("tuned", "scenes-fog test 7.3", "attribute", 0.2),
        line("tuned", "scenes-day test 7.0", "grounding", 0.3),
        line("tuned", "refcoco val 3", "", 0.9, ["a.jpg"]),
        line("tuned", "sums test 4.0", "text", 0.8, []),
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    report = report_of({"scenes-fog grounding": 0.75}, arguments={"out": str(tmp_path)})
    assert loading.scene_scores(report, "boxes") == {"test 7": [1.0, 0.5]}
    assert loading.scene_scores(report, "boxes by day") == {"test 7": [0.3]}
    assert loading.scene_scores(report, "text") == {"test 4": [0.8]}
    report = report_of({"refcoco": 0.9}, arguments={"out": str(tmp_path)})
    assert loading.scene_scores(report, "accuracy") == {"a.jpg": [0.9]}


# -- heads


def test_a_head_that_is_switched_off_leaves_its_values_frozen(vlm, mixed):
    adapter = randomised(ImageLoRA(vlm.config, HEADS)).attach(vlm)
    whole = vlm.loss(mixed).item()
    risen = trained.rises(adapter, lambda: vlm.loss(mixed).item())
    assert vlm.loss(mixed).item() == whole  # everything is on again
    adapter.detach()
    smaller = {0: [1], 2: [1]}  # without head 0 of layer 2
    without = ImageLoRA(vlm.config, smaller).attach(vlm)
    for layer, heads in smaller.items():
        for name in ("A", "gamma"):
            getattr(without.layers[str(layer)], name).data = getattr(adapter.layers[str(layer)], name).data
        without.layers[str(layer)].B.data = adapter.layers[str(layer)].B.data[[HEADS[layer].index(h) for h in heads]]
    without.layers["2"].norm = adapter.layers["2"].norm
    assert list(risen) == [(0, 1), (2, 0), (2, 1)]
    assert risen[2, 0] == pytest.approx(vlm.loss(mixed).item() - whole, abs=1e-5) and abs(risen[2, 0]) > 1e-3


def test_the_largest_values_make_a_selection():
    values = {(0, 0): 0.1, (0, 1): -0.2, (1, 0): 0.3, (1, 1): 0.2, (2, 0): 0.0}
    assert trained.largest(values, 3) == {0: [0], 1: [0, 1]}


@pytest.fixture
def asked(monkeypatch):
    """What analyses ask for: splits of data, seeds of probes, selections to train. Nothing is loaded or trained."""
    asked = SimpleNamespace(splits=[], probes=[], selections=[], runs=[])

    class Subject:
        vlm = SimpleNamespace(config=SimpleNamespace(layers=6, value_heads=4), loss=lambda batch: torch.zeros(1))

        def batches(self, size, share_images):
            return [None]

        def probe(self, count, seed, criterion="rank1"):
            asked.probes.append((count, seed, criterion))
            return torch.rand(6, 4, generator=torch.Generator().manual_seed(seed))

    def load_subject(setup, data="", split="test", limit=300):
        asked.splits.append(split)
        return Subject()

    def run_selections(chosen, setup, flags=""):
        asked.selections.append(chosen)
        return [report_of({"x grounding": 0.5}, trainable_parameters=1, adapter_flops_per_step=1, text_logit_max_change=0)]

    def run_all(runs, setup, title):
        asked.runs += runs
        return [report_of({"x grounding": i / len(runs)}, "lora" if i else "none") for i in range(len(runs))]

    for module in (trained, selection):
        monkeypatch.setattr(module, "load_subject", load_subject)
        monkeypatch.setattr(module, "run_selections", run_selections)
    monkeypatch.setattr(selection, "run_all", run_all)
    monkeypatch.setattr(selection, "selection_flag", lambda heads, setup: f"--selection {heads}")
    monkeypatch.setattr(trained, "compared", lambda *names: names[1:])
    monkeypatch.setattr(trained, "attached", lambda report, vlm: torch.enable_grad())  # any context
    return asked


SETUP = SimpleNamespace(seeds=(0, 1), rates={"": 0.01})


def test_the_oracle_is_chosen_on_val_never_on_test(asked, monkeypatch):
    monkeypatch.setattr(trained, "rises", lambda adapter, measure: {(layer, 0): layer for layer in range(6)})
    monkeypatch.setattr(trained, "scores_of", lambda report: torch.rand(6, 4))
    monkeypatch.setattr(trained, "FEW", 2)
    trained.faithful({"all heads": [{}, {}]}, SETUP)
    assert asked.splits == ["val"] and asked.selections == [[{4: [0], 5: [0]}] * 2]


def test_the_best_heads_alone_are_chosen_on_val(asked):
    config = SimpleNamespace(layers=2, value_heads=2)
    gains = selection.gains_alone("boxes-fog", config, SETUP)
    assert len(asked.runs) == 1 + 4 * 2 and all("--eval-split val" in flags for flags in asked.runs)
    assert gains == pytest.approx({(0, 0): 1.5 / 9, (0, 1): 3.5 / 9, (1, 0): 5.5 / 9, (1, 1): 7.5 / 9})


def test_probes_are_compared_with_one_of_another_seed(asked):
    trained.stable({"all heads": [{}, {}]}, SETUP)
    references = {(count, seed) for count, seed, _ in asked.probes if seed not in SETUP.seeds}
    assert references == {trained.REFERENCE} and trained.REFERENCE[1] not in suites.EIGHT
    assert set(asked.splits) == {"train"}


def test_a_probe_compared_with_itself_agrees_completely():
    scores = torch.rand(6, 4)
    assert [values for values in trained.agreement([scores], scores).values()] == [[1.0], [pytest.approx(1.0)]]


def test_every_criterion_gets_the_same_budget_and_random_heads_are_drawn_for_each_seed():
    config = SimpleNamespace(layers=6, value_heads=4)
    scores = [{name: torch.rand(6, 4) for name in selection.CRITERIA} for _ in range(3)]
    alone = {(layer, head): layer + head / 10 for layer in range(6) for head in range(4)}
    chosen = selection.selections(scores, alone, 3, config, (0, 1, 2))
    assert all(sum(map(len, heads.values())) == 3 for of_seeds in chosen.values() for heads in of_seeds)
    assert chosen["best alone"] == [{5: [1, 2, 3]}] * 3
    assert len({str(heads) for heads in chosen["random"]}) == 3


# -- attention


def test_attention_is_that_of_the_answers_tokens_to_visual_tokens(vlm, mixed):
    with weights_kept(vlm.model.layers, attend) as kept, torch.no_grad():
        vlm(mixed)
    by_hand = torch.zeros(3, 4)
    for position in mixed.answer_index.tolist():
        row, column = divmod(position, mixed.input_ids.shape[1])
        for layer in range(3):
            by_hand[layer] += kept[layer][row, :, column][:, mixed.visual_mask[row]].sum(dim=-1)
    by_hand /= len(mixed.answer_index)
    shares = criteria.visual_attention(vlm, [mixed])
    torch.testing.assert_close(shares, by_hand)
    mass = head_scores(vlm, [mixed], "attention-mass")
    torch.testing.assert_close(mass[:, 1], by_hand[:, 2:].mean(dim=1))  # two query heads read a value head


# -- tables


def test_savings_are_flops_over_flops_at_the_visual_share(tmp_path, monkeypatch):
    monkeypatch.setattr(analyses, "SHARES", ("short",))
    (tmp_path / "log.jsonl").write_text('{"tokens": 100, "visual_tokens": 20}\n{"tokens": 100, "visual_tokens": 30}\n')
    reports = {"short, LoRA": [{"adapter_flops_per_step": 80, "arguments": {"out": str(tmp_path)}}]}
    reports["short, Image-LoRA"] = [{"adapter_flops_per_step": 2}]
    ((_, table),) = analyses.savings(reports, None)["tables"]
    assert table == {"short": {"visual share": [0.25], "FLOPs over LoRA's": [0.025], "one over the other": [0.1]}}

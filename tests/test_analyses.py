"""Analyses: columns and scenes of a report, heads switched off, probes, attention, chosen heads."""

import json
from types import SimpleNamespace

import torch
from task_folders import write_lines

from experiments import analyses, loading, selection, suites, tables, trained
from harness import ablations
from model import attend
from parts.backbones.layers import weights_kept
from probe import head_scores, random_heads

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

    lines = [line("base", "scenes-fog test 7.0", "grounding", 0.0)]
    lines += [line("tuned", f"scenes-fog test 7.{i}", "grounding", score) for i, score in ((0, 1.0), (2, 0.5))]
    lines += [line("tuned", "scenes-fog test 7.3", "attribute", 0.2), line("tuned", "sums test 4.0", "text", 0.8, [])]
    lines += [line("tuned", "scenes-day test 7.0", "grounding", 0.3), line("tuned", "refcoco val 3", "", 0.9, ["a.jpg"])]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    report = report_of({"scenes-fog grounding": 0.75}, arguments={"out": str(tmp_path)})
    assert loading.scene_scores(report, "boxes") == {"test 7": [1.0, 0.5]}
    assert loading.scene_scores(report, "boxes by day") == {"test 7": [0.3]}
    assert loading.scene_scores(report, "text") == {"test 4": [0.8]}
    report = report_of({"refcoco": 0.9}, arguments={"out": str(tmp_path)})
    assert loading.scene_scores(report, "accuracy") == {"a.jpg": [0.9]}


# -- heads


def test_the_best_heads_alone_are_chosen_on_val_never_on_test(monkeypatch):
    def run_all(runs, setup, title):
        assert all("--eval-split val" in flags for flags in runs)
        return [report_of({"x grounding": i / 8}, "lora" if i else "none") for i in range(len(runs))]

    monkeypatch.setattr(selection, "run_all", run_all)
    monkeypatch.setattr(selection, "selection_flag", lambda heads, setup: f"--selection {heads}")
    setup, config = SimpleNamespace(seeds=(3, 4), rates={"": 0.01}), SimpleNamespace(layers=2, value_heads=2)
    gains = selection.gains_alone("boxes-fog", config, setup)
    chosen = selection.selections({"rank1": []}, gains, 2, config, (3, 4))
    assert chosen["best alone"] == [{1: [0, 1]}] * 2 and chosen["random"] == [random_heads(config, 2, s) for s in (3, 4)]
    assert gains == {(0, 0): 1 / 8, (0, 1): 2 / 8, (1, 0): 3 / 8, (1, 1): 4 / 8}


# -- probes, and costs


def test_an_analysis_probes_the_examples_of_its_split_that_the_seed_names(monkeypatch):
    stubs = dict.fromkeys(("load_processor", "load_model", "encode_images"), lambda *_: torch)
    stubs["load_examples"] = lambda processor, *what: [SimpleNamespace(images=[what, i]) for i in range(7)]
    stubs["head_scores"] = lambda vlm, batches, *how: ([*batches], *how)
    for name, stub in stubs.items():
        monkeypatch.setattr(loading, name, stub)
    subject = loading.load_subject(SimpleNamespace(more=""), "--data sums", split="train", limit=9)
    monkeypatch.setattr(loading.Subject, "batches", lambda self, order: [self.examples[i].images for i in order])
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3)).tolist()
    assert subject.probe(4, 3, "gate") == ([[("sums", None, "train", 9), i] for i in order[:4]], "gate", 3)
    assert trained.REFERENCE[1] not in suites.EIGHT  # what probes are compared with is none of them


def test_a_row_is_compared_with_the_other_and_its_costs_are_those_of_its_reports(monkeypatch, tmp_path):
    write_lines(tmp_path / "log.jsonl", [{"visual_tokens": 30, "tokens": 40}, {"visual_tokens": 20, "tokens": 60}])
    costs, drawn = {"trainable_parameters": 10, "arguments": {"out": tmp_path}}, {}
    base = report_of({"x grounding": 0.1}, trainable_parameters=0, adapter_flops_per_step=None)
    lora, ours = (report_of({"x grounding": n / 10}, adapter_flops_per_step=n, **costs) for n in (8, 2))
    monkeypatch.setattr(analyses, "scene_scores", lambda report, column: {"": [report["tuned"]["accuracy"]]})
    assert analyses.compared({"LoRA": [lora], "ours": [ours]}, "ours", "LoRA")["difference"] < 0
    of_budgets = {("boxes", name, budget): [lora] for name in ("rank1", "random") for budget in (1, 3, 6)}
    monkeypatch.setattr(selection, "scene_scores", lambda report, column: {"a": [0.5]})
    assert selection.pooled(of_budgets, "rank1", ["boxes"]) == [{"a": [0.5, 0.5]}]  # of 1 to 3 heads
    monkeypatch.setattr(analyses, "SHARES", ["half"])
    ((_, table),) = analyses.savings({"half, LoRA": [lora], "half, Image-LoRA": [ours]}, None)["tables"]
    assert table == {"half": {"visual share": [0.5], "FLOPs over LoRA's": [0.25], "one over the other": [0.5]}}
    monkeypatch.setattr(analyses.figures, "chart", lambda *given, **_: drawn.update({given[3]: given[4][0][1]}))
    analyses.cost_curves({"base": [base], "LoRA v / rank 8": [lora]}, SimpleNamespace(out=tmp_path))
    assert drawn == {"parameters": [(10, 80)], "FLOPs a step": [(8, 80)]}


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
    shares = ablations.visual_attention(vlm, [mixed])
    torch.testing.assert_close(shares, by_hand)
    mass = head_scores(vlm, [mixed], "attention-mass")
    torch.testing.assert_close(mass[:, 1], by_hand[:, 2:].mean(dim=1))  # two query heads read a value head

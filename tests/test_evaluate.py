"""Questions -> answers -> predictions -> accuracies; text logits; scores again."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import picture
from short_run import lines_of, run, stopped

from data import Example, Processor, load
from harness import evaluate, report
from imagelora import load_adapter
from model import VLM


def echo(batch, max_new_tokens):
    """A stub of `vlm.generate`: the answer to a question is what is asked, word for word."""
    asked = [(batch.segments[row] == 0) | (batch.segments[row] == segment) for row, segment in batch.examples]
    return [batch.input_ids[row][own].tolist() for (row, _), own in zip(batch.examples, asked)]


def test_every_prediction_is_the_answer_to_its_own_question(processor):
    """Rows are batched by length and share images, so answers come in another order than the questions."""
    shared, other = picture(112, 112), picture(140, 84, 1)
    examples = [Example([], f"Sum {i}? {'long ' * (40 - 7 * i)}", "x", source=f"text {i}") for i in range(4)]
    examples += [Example([shared], f"Where is {i}? {'far ' * (3 * i % 7)}", "x", source=f"image {i}") for i in range(5)]
    examples += [Example([other], "What is last?", "x", source="other")]
    examples = examples[::2] + examples[1::2]
    stub = SimpleNamespace(generate=echo, device=torch.device("cpu"))
    for size in (3, 32):
        for p, example in zip(evaluate.evaluate(stub, processor, examples, "d", 300, size), examples, strict=True):
            asked = [e.prompt for e in examples if e.prompt.strip() in p["text"]]
            assert p["source"] == example.source and asked == [p["prompt"]]


def test_tuned_answers_are_those_of_the_model_with_the_adapter_and_base_answers_those_without(checkpoint, tmp_path):
    run(checkpoint, tmp_path, "--method=lora", "--lr=0.1", "--eval=scenes-day")
    vlm, processor, written = VLM.from_pretrained(checkpoint), Processor.from_pretrained(checkpoint), {}
    for when in ("base", "tuned"):
        if when == "tuned":
            load_adapter(tmp_path / "adapter.safetensors", vlm)
        written[when] = [line["text"] for line in lines_of(tmp_path / "predictions.jsonl") if line["when"] == when]
        for example, text in zip(load("scenes-day", None, "val", 6), written[when], strict=True):
            (ids,) = vlm.generate(processor([example.question()]), 4)
            assert processor.decode(ids) == text
    assert written["base"] != written["tuned"]


def test_the_change_of_text_logits_is_the_largest_of_all_prompts_in_either_direction(vlm, processor):
    same, moved = torch.zeros(1, 2, 3), torch.tensor([[[0.0, 1, 0], [0, 0, -3]]])
    for after in ([same, moved], [moved, same], [-moved, same]):
        assert evaluate.text_change([same, same], after) == 3
    with pytest.raises(ValueError, match="not finite"):
        evaluate.text_change([same], [same / 0])
    for prompt, logits in zip(evaluate.TEXT_PROMPTS, evaluate.text_logits(vlm, processor), strict=True):
        assert torch.equal(logits, vlm(processor([Example([], prompt)])))


def row(data="d", kind="", group="", score=1.0, parsed="x", images=("i",), **more):
    """A prediction as far as `summary` reads it."""
    answer = {"metric": "exact", "score": score, "parsed": parsed, "failed": parsed is None, "text": str(parsed)}
    return {"data": data, "kind": kind, "group": group, "images": images, "videos": 0, "resized": None} | answer | more


def test_the_accuracy_is_that_of_one_data_set_by_its_rows_with_images_and_without_the_prior():
    rows = [row("a", score=1.0), row("b", score=0.0), row("b", "prior", score=1.0), row("c", images=[], score=0.5)]
    rows += [row("b", images=[], videos=1, score=0.5), row("b", images=[], score=1.0)]
    assert [evaluate.summary(rows, data)["accuracy"] for data in ("a", "b", "c", "d", None)] == [1, 0.25, 0.5, None, 0.5]
    assert evaluate.summary(rows, "a")["text_accuracy"] == 0.75  # of all rows without image or video
    assert evaluate.summary(rows[:1])["text_accuracy"] is None
    record, predictions = SimpleNamespace(curve=[(3, 0.6)], step=9), {"base": [row("b"), row("a", score=0.2)], "tuned": rows}
    assert report.curve(record, predictions, "a") == [(0, 0.2), (3, 0.6), (9, 1)]


def test_scores_are_averaged_by_kind_and_by_group_once_where_these_are_the_same():
    rows = [row("screen", "icon", "web"), row("screen", "text", "web", score=0.0), row("plain", "sum")]
    summary = evaluate.summary([*rows, row("screen", "text", "text", score=0.0, parsed=None)])
    assert summary["by_kind"] == {"screen icon": 1, "screen web": 0.5, "screen text": 0, "plain sum": 1}
    assert summary["parse_failures"] == 1


def test_boxes_in_another_scale_are_counted():
    """Qwen's checkpoints, asked in other words, often answer in shares or thousandths of the sides: such boxes score 0."""
    texts = ("[10, 20, 300, 401]", "[0.1, 0.2, 0.5, 1]", "[100, 200, 500, 399]", "[0, 0, 9, 999]", "none")
    rows = [row(metric="iou", text=text, resized=(300, 400)) for text in texts] + [row(text="[0, 0, 1, 1]")]
    assert [evaluate.summary([r])["boxes_in_another_scale"] for r in rows] == [0, 1, 1, 1, 0, 0]


LINE = row("sums", parsed="42", metric="number", text="so 41 + 1 = 42.", reference="42", size=None, when="tuned")


def test_scoring_again_counts_the_scores_that_differ(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(LINE | {"score": score}) for score in (1.0, 0.0)))
    evaluate.main([str(tmp_path / "p.jsonl")])
    printed = capsys.readouterr().out
    assert '"tuned": {\n  "accuracy": 1.0' in printed and "2 answers scored again, 1 scores differ" in printed


BAD = [None, b"\xff\x00", b"7", b"[" * 100_000, b"{}"]  # None: a folder
BAD += [json.dumps(LINE | {name: [1]}).encode() for name in ("when", "group", "metric", "text")]


@pytest.mark.parametrize("content", BAD, ids=lambda content: str(content)[:9])
def test_a_file_that_holds_no_predictions_is_one_line(tmp_path, capsys, content):
    file = tmp_path / "p.jsonl"
    file.mkdir() if content is None else file.write_bytes(content)
    code, line = stopped(capsys, evaluate.main, [str(file)])
    assert code == 2 and f"error: {file}" in line

"""What a run says at its end, and which answers it shows."""

from conftest import picture

from data import Example
from harness import report


def answers(data, scores):
    """A prediction for each score."""
    return [{"data": data, "score": score, "metric": "iou", "parsed": [0, 0, 9, 9]} for score in scores]


def test_examples_show_where_base_and_tuned_differ_a_failure_and_a_row_of_each_other_data_set():
    held_out = {data: [Example([picture(9, 9)], f"{data} {i}", "x") for i in range(20)] for data in ("fog", "day")}
    held_out["sums"] = [Example([], "1 + 1", "2")]
    base = answers("fog", [1] * 10 + [0] * 10) + answers("day", [1] * 20) + answers("sums", [1])
    tuned = answers("fog", [1] * 9 + [0] + [1] * 9 + [0]) + answers("day", [1] * 20) + answers("sums", [1])
    shown = report.telling_rows(held_out, {"base": base, "tuned": tuned}, "fog")
    assert [example.prompt for example, _ in shown] == [*(f"fog {i}" for i in range(9, 20)), "day 0"]
    first, last = report.tile(*shown[0], "fog"), report.tile(*shown[-1], "fog")
    assert first["right"] == {"base": True, "tuned": False} and first["caption"] == "fog 9"
    assert last["caption"] == "day: day 0"


def test_an_accuracy_is_of_what_is_to_be_learnt_or_at_risk_or_cannot_change():
    fog, day, sums = ({"data": name, "images": ["a"] * (name != "sums"), "videos": 0} for name in ("fog", "day", "sums"))
    meanings = [report.meaning_of(row, "fog", "image-lora") for row in (fog, day, sums)]
    assert meanings == ["to learn", "at risk", "cannot change: it has no image"]
    assert report.meaning_of(sums, "fog", "lora") == "at risk"

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
    items = report.telling_items(held_out, {"base": base, "tuned": tuned}, "fog")
    assert [item["caption"] for item in items] == [*(f"fog {i}" for i in range(9, 20)), "day: day 0"]
    assert items[0]["scores"] == {"base": 1, "tuned": 0} and items[0]["tuned"] == [0, 0, 9, 9]
    (only,) = report.telling_items({"fog": held_out["fog"][:1]}, {"base": [], "tuned": tuned[:1]}, "fog")
    assert only["scores"] == {"tuned": 1} and "base" not in only


def test_the_end_names_base_before_tuned(finished, tmp_path, capsys):
    summaries = {"base": {"by_kind": {"fog": 0.25, "day": 0.5}}, "tuned": {"by_kind": {"fog": 0.75}}}
    report.print_end(finished[1] | summaries, "fog", tmp_path)
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"base tuned", "fog 25.0% 75.0%", "day 50.0% not measured"} <= {*printed}

"""Scored rows -> accuracies, by data set, kind and group, and how boxes miss."""

import pytest

from harness.evaluate import summary


def row(data="d", kind="", group="", metric="exact", score=1.0, parsed="x", images=("i",), **more):
    answer = {"metric": metric, "score": score, "parsed": parsed, "failed": parsed is None, "reference": "x"}
    return {"data": data, "kind": kind, "group": group, "size": None, "images": list(images)} | answer | more


def test_a_summary_of_nothing_has_no_means():
    assert summary([]) == {
        "accuracy": None,
        "text_accuracy": None,
        "by_kind": {},
        "parse_failures": 0,
        "boxes_in_another_scale": 0,
        "boxes": None,
    }


def test_the_prior_does_not_count_into_the_accuracy_but_by_kind():
    rows = [row("vilp", "prior", score=1.0), row("vilp", "test", score=0.0), row("vilp", "test", score=0.5)]
    result = summary(rows)
    assert result["accuracy"] == 0.25 and result["by_kind"] == {"vilp prior": 1, "vilp test": 0.25}
    assert summary(rows[:1])["accuracy"] is None


def test_rows_without_image_and_video_make_the_text_accuracy_and_the_others_the_accuracy():
    texts = [row(images=[], score=1.0), row(images=[], score=0.0), row(images=[], score=0.0)]
    rows = [*texts, row(score=0.75), row(images=[], videos=["v"], score=0.25)]
    assert summary(rows)["text_accuracy"] == pytest.approx(1 / 3) and summary(rows)["accuracy"] == 0.5
    assert summary(rows[3:])["text_accuracy"] is None
    assert summary(texts)["accuracy"] == summary(texts)["text_accuracy"] == pytest.approx(1 / 3)  # nothing else there


def test_the_accuracy_can_be_that_of_one_data_set():
    rows = [row("a", score=1.0), row("b", score=0.0), row("b", "prior", score=1.0), row("c", images=[], score=0.5)]
    assert [summary(rows, data)["accuracy"] for data in ("a", "b", "c", "d", None)] == [1, 0, 0.5, None, 0.5]
    assert summary(rows, "a")["by_kind"] == summary(rows)["by_kind"] == {"a": 1, "b": 0, "b prior": 1, "c": 0.5}
    assert summary(rows, "a")["text_accuracy"] == 0.5


def test_scores_are_counted_by_kind_and_by_group_and_once_where_these_are_the_same():
    rows = [
        row("screen", "icon", "web", score=1.0),
        row("screen", "text", "web", score=0.0),
        row("screen", "text", "text", score=0.0, parsed=None),
        row("plain", score=1.0),
    ]
    result = summary(rows)
    assert result["by_kind"] == {"screen icon": 1, "screen web": 0.5, "screen text": 0, "plain": 1}
    assert result["parse_failures"] == 1


def box_row(box, reference=(10, 10, 30, 30), size=(60, 80)):
    return row(metric="iou", parsed=box, reference=reference, size=size, resized=size, text=str(box))


def test_boxes_in_another_scale_are_counted():
    """Qwen's checkpoints, asked in other words, often answer in shares or thousandths of the sides: such boxes score 0."""
    seen = {"resized": (300, 400), "size": (60, 80)}  # the model saw a larger image than the file's
    inside, relative, thousandths, tall = (
        "[10, 20, 300, 401]",
        "[0.1, 0.2, 0.5, 1]",
        "[100, 200, 500, 399]",
        "[0, 0, 9, 999]",
    )
    rows = [
        row(metric="iou", parsed=[0, 0, 9, 9], reference=[0, 0, 9, 9], text=text, **seen)
        for text in (inside, relative, thousandths, tall, "none")
    ]
    assert [summary([r])["boxes_in_another_scale"] for r in rows] == [0, 1, 1, 1, 0]
    assert summary(rows)["boxes_in_another_scale"] == 3
    assert summary([row(text="[0, 0, 1, 1]")])["boxes_in_another_scale"] == 0  # an answer that is no box


def test_boxes_differ_by_the_distance_of_centres_over_the_diagonal_and_by_the_root_of_the_areas():
    result = summary([box_row([13, 14, 33, 34])])["boxes"]  # 3 and 4 pixels away: 5 of a diagonal of 100
    assert result["count"] == 1
    assert result["centre_error"] == pytest.approx({"median": 0.05, "p90": 0.05})
    assert result["size_ratio"] == pytest.approx({"p10": 1, "median": 1, "p90": 1})
    twice = summary([box_row([0, 0, 40, 40]), box_row([10, 10, 30, 30]), box_row([15, 15, 25, 25])])["boxes"]
    assert twice["size_ratio"] == pytest.approx({"p10": 0.6, "median": 1, "p90": 1.8})
    assert twice["centre_error"] == pytest.approx({"median": 0, "p90": 0})


def test_boxes_without_area_unread_boxes_and_other_metrics_are_not_compared():
    swapped, unread = box_row([30, 30, 10, 10]), box_row(None)
    assert summary([unread, row(metric="point", parsed=[1, 2])])["boxes"] is None
    assert summary([swapped, unread])["boxes"] == {
        "count": 0,
        "centre_error": {"median": None, "p90": None},
        "size_ratio": {"p10": None, "median": None, "p90": None},
    }
    assert summary([swapped, unread, box_row([10, 10, 30, 30])])["boxes"]["count"] == 1

"""Task metrics: values by hand or by scipy, coverage of the intervals, and inputs that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from onnxpress.cli.compare import METRICS
from onnxpress.errors import InputProblem
from onnxpress.measure import metrics as mt
from onnxpress.measure.detection import box_iou, match_detections, mean_average_precision

pytestmark = pytest.mark.unit


def measured(
    name: str, original: Any, other: Any, labels: Any = None, answer: str | None = "y", **more: Any
) -> mt.Measured:
    metric = mt.make_metric(name, answer, labels is not None, **more)
    for i, (a, b) in enumerate(zip(original, other, strict=True)):
        metric.add({"y": np.asarray(a)}, {"y": np.asarray(b)}, None if labels is None else labels[i], f"sample {i}")
    return metric.result()


def test_the_command_lists_all_metrics() -> None:
    assert METRICS == mt.METRIC_NAMES


def test_classes_by_label_and_without() -> None:
    good, bad = np.eye(12)[[0, 1, 2, 3]], np.eye(12)[[0, 1, 2, 9]]
    found = measured("top-1", good, bad, [0, 1, 5, 3])
    assert (found.reference, found.value, found.drop, found.samples) == (0.75, 0.5, 0.25, 4)
    assert found.low <= found.drop <= found.high
    alone = measured("top-1", good, bad)
    assert (alone.reference, alone.value) == (1.0, 0.75)
    assert measured("agreement", good, bad, [0, 1, 5, 3]).value == 0.75, "whatever the labels say"
    ranked = np.tile(np.arange(12.0), (2, 1))
    five = measured("top-5", ranked, ranked, [7, 6])
    assert five.value == 0.5, "7 is the fifth best of 0..11, 6 the sixth"


def test_f1_is_the_mean_over_classes() -> None:
    true, found = [0, 0, 0, 1, 2], [0, 0, 1, 1, 1]
    found = measured("f1", np.eye(3)[true], np.eye(3)[found], true)
    assert found.reference == 1.0
    assert found.value == pytest.approx(np.mean([2 * 2 / (3 + 2), 2 * 1 / (1 + 3), 0]))


def test_numbers_against_labels_and_against_the_original() -> None:
    rng = np.random.default_rng(0)
    true, one, two = rng.standard_normal((3, 40))
    for name, by in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        found = measured(name, one[:, None], two[:, None], list(true))
        assert found.value == pytest.approx(by(two, true)[0])
        assert found.reference == pytest.approx(by(one, true)[0])
        assert found.drop == pytest.approx(found.reference - found.value), "more is better"
    error = measured("mse", one[:, None], two[:, None], list(true))
    assert error.value == pytest.approx(((two - true) ** 2).mean())
    assert error.drop == pytest.approx(error.value - error.reference), "less is better"
    assert measured("mae", one[:, None], two[:, None]).value == pytest.approx(np.abs(one - two).mean())
    rows = rng.standard_normal((6, 30))
    assert measured("spearman", rows, rows**3).value == pytest.approx(1.0), "within samples of many numbers"
    assert measured("pearson", np.ones((4, 1)), np.ones((4, 1))).value == 1.0, "constants are equal"
    assert measured("pearson", np.arange(4.0)[:, None], np.ones((4, 1))).value == 0.0


def test_intervals_contain_the_true_drop() -> None:
    """Of 60 draws of samples with a true drop of 0.1, few intervals miss it."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        right = rng.random(150) < 0.1
        one = np.eye(2)[np.zeros(150, int)]
        two = np.eye(2)[right.astype(int)]
        found = measured("top-1", one, two, [0] * 150)
        hits += found.low <= 0.1 <= found.high
    assert hits >= 51


def test_boxes_by_hand() -> None:
    """Two true boxes; one detection matches at every threshold, one at none, one true box is missed: half of the
    recalls at precision 1.
    """
    true = np.array([[0, 0, 10, 10, 1], [20, 20, 30, 30, 1]], float)
    sure = np.array([[0, 0, 10, 10, 0.9, 1], [50, 50, 60, 60, 0.8, 1]])
    assert mean_average_precision([match_detections(sure, true)]) == pytest.approx(51 / 101)
    late = sure[:, [0, 1, 2, 3, 4, 5]].copy()
    late[:, 4] = [0.1, 0.8]
    assert mean_average_precision([match_detections(late, true)]) == pytest.approx(0.5 * 51 / 101), (
        "the wrong one comes first"
    )
    shifted = np.array([[0, 0, 10, 8, 0.9, 1]])
    assert box_iou(shifted[:, :4], true[:1, :4])[0, 0] == pytest.approx(0.8)
    assert mean_average_precision([match_detections(shifted, true[:1])]) == pytest.approx(0.7), (
        "0.50 to 0.80: 7 of 10 overlaps"
    )
    assert mean_average_precision([match_detections(np.zeros((0, 6)), true)]) == 0
    assert mean_average_precision([match_detections(sure, np.zeros((0, 5)))]) == 0
    other = np.array([[0, 0, 10, 10, 0.9, 2]])
    assert mean_average_precision([match_detections(other, true)]) == 0, "of another class"


def test_a_box_is_matched_once() -> None:
    true = np.array([[0, 0, 10, 10, 0]], float)
    twice = np.array([[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 0]])
    assert match_detections(twice, true).matched.sum(axis=1).tolist() == [1] * 10
    assert mean_average_precision([match_detections(twice, true)]) == 1.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_exact_detections_are_perfect(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 50, (count, 2))
    true = np.concatenate([low, low + rng.uniform(1, 20, (count, 2)), rng.integers(0, 3, (count, 1))], axis=1)
    found = np.concatenate([true[:, :4], rng.random((count, 1)), true[:, 4:]], axis=1)
    assert mean_average_precision(
        [match_detections(found, true), match_detections(found[:0], true[:0])]
    ) == pytest.approx(1.0)


def test_map_decodes_boxes_with_a_function() -> None:
    def decode(outputs: dict[str, np.ndarray]) -> np.ndarray:
        return outputs["y"]

    sure = [np.array([[0, 0, 10, 10, 0.9, 1]])] * 3
    lost = [*sure[:2], np.array([[0, 0, 1, 1, 0.9, 1]])]
    label = np.array([[0, 0, 10, 10, 1], [0, 0, 0, 0, -1]])
    found = measured("map", sure, lost, [label] * 3, decode=decode)
    assert found.reference == 1.0
    assert 0.4 < found.value < 0.8
    assert measured("map", sure, lost, decode=decode).reference == 1.0
    with pytest.raises(InputProblem, match="give `decode`"):
        measured("map", sure, lost, [label] * 3)
    with pytest.raises(InputProblem, match="not an array of boxes"):
        measured("map", sure, lost, ["cat"] * 3, decode=decode)
    with pytest.raises(InputProblem, match="the decoder failed"):
        measured("map", sure, lost, [label] * 3, decode=lambda outputs: outputs["absent"])


def test_errors_name_what_does_not_fit() -> None:
    rows = np.eye(3)
    for name, labels, message in (
        ("top-1", ["a", "b", "c"], "class numbers"),
        ("f1", [0.5] * 3, "class numbers"),
        ("top-5", [0, 1, 2], "meaningless"),
        ("mse", [[1.0, 2.0]] * 3, "a label for every number"),
        ("mae", ["a"] * 3, "numbers as labels"),
        ("rouge", None, "no such metric"),
    ):
        with pytest.raises(InputProblem, match=message):
            measured(name, rows, rows, labels)
    with pytest.raises(InputProblem, match="class scores"):
        measured("top-1", rows, rows, [0, 1, 2], answer=None)
    with pytest.raises(InputProblem, match="the metric failed"):
        measured("mine", rows, rows, [0, 1, 2], own=lambda outputs, label: outputs["absent"])
    assert measured("mine", rows, 2 * rows, [0, 1, 2], own=lambda outputs, label: outputs["y"][label]).value == 2.0

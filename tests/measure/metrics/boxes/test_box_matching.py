"""Matched boxes and mean average precision, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.measure.metrics.boxes.box_matching import box_iou, match_detections, mean_average_precision

pytestmark = pytest.mark.unit


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

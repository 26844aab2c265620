"""Task metrics: values by hand or by scipy, coverage of the intervals, and inputs that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from onnxpress.cli.options import DECODERS, METRICS
from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.boxes.box_decoders import DECODER_NAMES
from onnxpress.measure.metrics.catalogue import METRIC_NAMES, OutputReading, make_metric
from onnxpress.measure.metrics.metric import Metric, MetricResult
from onnxpress.measure.metrics.sequences import edit_distance
from onnxpress.measure.metrics.user_metric import PerSampleFunction, WholeSetFunction, takes_whole_set

pytestmark = pytest.mark.unit


def result_of(metric: Metric, original: Any, other: Any, labels: Any = None) -> MetricResult:
    values: list[tuple[Any, Any]] = []
    for i, (a, b) in enumerate(zip(original, other, strict=True)):
        one, two = ({"y": np.asarray(v)} for v in (a, b))
        truth = metric.truth(one, None if labels is None else labels[i], f"sample {i}")
        values.append(tuple(metric.sample_value(v, truth, f"sample {i}") for v in (one, two)))
    return metric.result([v[0] for v in values], [v[1] for v in values])


def measured(
    name: str, original: Any, other: Any, labels: Any = None, output: str | None = "y", **more: Any
) -> MetricResult:
    reading = OutputReading((output,) if output else (), labels is not None, **more)
    return result_of(make_metric(name, reading), original, other, labels)


def test_the_command_lists_all_metrics() -> None:
    assert METRICS == METRIC_NAMES
    assert DECODERS == DECODER_NAMES


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
        measured("top-1", rows, rows, [0, 1, 2], output=None)


def test_users_functions_see_one_sample_or_all() -> None:
    rows = np.eye(3)
    with pytest.raises(InputProblem, match="the metric failed"):
        result_of(PerSampleFunction("mine", lambda outputs, label: outputs["absent"]), rows, rows, [0, 1, 2])
    each = PerSampleFunction("mine", lambda outputs, label: outputs["y"][label])
    assert result_of(each, rows, 2 * rows, [0, 1, 2]).value == 2.0

    def share(outputs: Any, labels: Any) -> float:
        return float((outputs["y"].argmax(1) == labels).mean())

    def shares(outputs: Any, labels: Any) -> Any:
        return outputs["y"].argmax(1) == labels

    assert takes_whole_set(share) and not takes_whole_set(lambda outputs, label: 0)
    for function in (share, shares):
        found = result_of(WholeSetFunction("mine", function), rows, rows[[0, 1, 1]], [0, 1, 2])
        assert (found.reference, found.value) == (1.0, pytest.approx(2 / 3))
        assert found.low <= found.drop <= found.high
    with pytest.raises(InputProblem, match="one for each sample"):
        result_of(WholeSetFunction("mine", lambda outputs, labels: np.ones(2)), rows, rows)


def test_several_labels_a_sample() -> None:
    true = np.array([[1, 0, 1], [0, 0, 1]])
    found = measured(
        "f1", true * 0.9, np.array([[0.9, 0.6, 0.2], [0.1, 0.1, 0.8]]), list(true), several=True, threshold=0.5
    )
    assert found.reference == 1.0
    assert found.value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_area_under_the_curve_is_that_of_ranks() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 50)
    scores = rng.standard_normal(50) + labels
    wins = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    found = measured("auc", scores[:, None], scores[:, None].round(0), list(labels))
    assert found.reference == pytest.approx(np.mean(wins))
    pair = np.stack([-scores, scores], axis=1)
    assert measured("auc", pair, pair, list(labels)).reference == pytest.approx(np.mean(wins))


def test_explained_variance_is_that_of_each_column() -> None:
    rng = np.random.default_rng(0)
    true = rng.standard_normal((40, 3)) * [1, 100, 0.01]
    found = true + rng.standard_normal((40, 3)) * [0.1, 20, 0.005]
    wanted = np.mean(1 - ((found - true) ** 2).sum(0) / ((true - true.mean(0)) ** 2).sum(0))
    result = measured("r2", true, found)
    assert result.reference == 1.0
    assert result.value == pytest.approx(wanted)
    assert result.low <= result.drop <= result.high
    assert measured("r2", true, found, list(true)).value == pytest.approx(wanted)


def test_a_detector_without_scores_loses_most_of_its_explained_variance() -> None:
    """Boxes of 160 drown scores below 1 in a relative error: zeros for all scores were 0.03."""
    rng = np.random.default_rng(0)
    outputs = np.concatenate([rng.uniform(0, 160, (8, 4, 50)), rng.random((8, 1, 50)) ** 4], axis=1)
    blind = outputs * np.array([1, 1, 1, 1, 0])[None, :, None]
    assert measured("r2", outputs, blind).drop > 0.19


def test_sequences_and_connectionist_temporal_classification() -> None:
    path = np.array([[2, 2, 0, 2, 1, 0], [0, 1, 1, 0, 0, 2]])  # 2 2 1, and 1 2
    other = np.array([[2, 2, 0, 2, 1, 1], [0, 1, 1, 0, 0, 0]])  # 2 2 1, and 1
    one, two = np.eye(3)[path], np.eye(3)[other]
    labels = [np.array([2, 2, 1]), np.array([1, 2, -1])]
    exact = measured("exact-sequence", one, two, labels, class_axis=-1, blank=0)
    assert (exact.reference, exact.value) == (1.0, 0.5)
    rate = measured("error-rate", one, two, labels, class_axis=-1, blank=0)
    assert (rate.reference, rate.value, rate.drop) == (0.0, 0.2, 0.2)
    positions = measured("position-agreement", one, two, class_axis=-1)
    assert positions.value == pytest.approx(10 / 12)
    partly = measured("position-agreement", one, two, [np.where(p == 0, -100, p) for p in path], class_axis=-1)
    assert partly.value == pytest.approx(6 / 7)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_edit_distance_is_that_of_the_recursion(one: list[int], two: list[int]) -> None:
    def slow(a: list[int], b: list[int]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    one, two = one[:5], two[:5]
    assert edit_distance(np.array(one, int), np.array(two, int)) == slow(one, two)


def test_perplexity_and_divergence() -> None:
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))
    flat = np.zeros((1, 2, 3))
    found = measured("perplexity", logits, flat, [np.array([0, 1])], class_axis=-1)
    assert found.reference == pytest.approx(np.exp(-np.log([0.5, 0.8]).mean()))
    assert found.value == pytest.approx(3)
    assert found.drop == pytest.approx(3 / found.reference - 1), "relative"
    shares = np.exp(logits[0])
    assert measured("kl", logits, flat, class_axis=-1).drop == pytest.approx(
        (shares * (logits[0] + np.log(3))).sum() / 2
    )


def test_cosine_and_neighbours() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((30, 16))
    turned = vectors @ np.linalg.qr(rng.standard_normal((16, 16)))[0]
    assert measured("cosine", vectors, 3 * vectors).value == pytest.approx(1)
    assert measured("cosine", vectors, turned).value < 0.5
    assert measured("cosine", vectors, 3 * vectors, list(vectors)).value == pytest.approx(1)
    assert measured("retrieval", vectors, turned).value == 1.0, "a rotation keeps the neighbours"
    assert measured("retrieval", vectors, rng.standard_normal((30, 16))).value < 0.7
    classes = np.arange(30) // 15
    parted = np.stack([classes, 1 - classes], 1) + 0.01 * rng.random((30, 2))
    assert measured("retrieval", parted, vectors, list(classes)).reference == 1.0


def test_overlap_of_masks() -> None:
    true = np.array([[[0, 0, 1, 1], [2, 2, 2, 2]]])
    found = np.array([[[0, 1, 1, 1], [2, 2, 2, 0]]])
    one, two = (np.moveaxis(np.eye(3)[m], -1, 1) for m in (true, found))
    result = measured("iou", one, two, list(true), class_axis=0)
    assert result.reference == 1.0
    assert result.value == pytest.approx(np.mean([1 / 3, 2 / 3, 3 / 4]))
    assert measured("dice", one, two, list(true), class_axis=0).value == pytest.approx(np.mean([2 / 4, 4 / 5, 6 / 7]))
    ignored = np.where(true == 0, 255, true)
    assert measured("iou", one, two, list(ignored), class_axis=0).value == pytest.approx(np.mean([0, 1, 3 / 4]))
    mask = measured("iou", np.array([[[0.9, 0.1, 0.8]]]), np.array([[[0.9, 0.9, 0.1]]]), threshold=0.5)
    assert mask.value == pytest.approx(1 / 3), "the background is no class"


def test_pictures() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((3, 3, 24, 24))
    near, far = (true + s * rng.standard_normal(true.shape) for s in (0.01, 0.1))
    found = measured("psnr", near, far, list(true))
    assert found.reference == pytest.approx(40, abs=0.3)
    assert found.value == pytest.approx(20, abs=0.3)
    assert found.default_drop == 0.3
    assert measured("psnr", true, near).drop == pytest.approx(10 * np.log10(1.1), abs=0.03), (
        "as if 30 dB from the truth"
    )
    assert measured("psnr", true, true).drop == 0
    same = measured("ssim", true, near)
    assert same.reference == pytest.approx(1)
    assert 0.9 < same.value < 1
    assert measured("ssim", true, far).value < same.value

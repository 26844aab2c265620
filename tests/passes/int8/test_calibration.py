"""Calibration: output-error-weighted ranges, given ranges, and the calibration file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress import quantize
from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.ranges import Histogram, clip_range
from onnxpress.model import edit, read
from onnxpress.model.files import to_bytes
from onnxpress.model.signature import signature
from onnxpress.passes.int8 import calibration
from onnxpress.passes.int8.qdq.write import histograms_for, quantization_grid
from onnxpress.plan.plan import apply_plan
from tests import nets


def outlying(weight_of_outlier: float) -> Evidence:
    """A network whose input has one channel of a hundred times the range of the others, mostly near zero.

    weight_of_outlier: weight of that channel in the layer that reads it.
    """
    net = nets.image_net()
    model = net.model(net.head(net.relu(net.conv("image", 8))), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, None)
    node = next(n for n in evidence.model.graph if n.op_type == "Conv")
    weight = np.array(read.constant(node.inputs[1]))
    weight[:, 0] *= weight_of_outlier
    edit.set_input(evidence.model, node, 1, weight, "w")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3, 8, 8)).astype(np.float32)
    x[:, 0] = np.where(rng.random((64, 8, 8)) < 1e-3, 100 * x[:, 0], 0.01 * x[:, 0])
    return evidence_for(evidence.model, Dataset.from_arrays({"image": x}, signature(evidence.model)))


def width(evidence: Evidence, rule: calibration.RangeSpec) -> float:
    low, high = calibration.activation_ranges(evidence, rule, ["image"])["image"]
    return high - low


def test_channels_without_weight_are_clipped() -> None:
    """The range of an outlier channel may be clipped if its weight is zero, but not if it has all the weight."""
    ignored, weighted = outlying(0.0), outlying(100.0)
    assert width(ignored, "output-error") < 0.5 * width(ignored, "minmax")
    assert width(weighted, "output-error") >= 0.5 * width(weighted, "minmax")


def test_weighted_is_the_best_of_the_methods_for_the_reader() -> None:
    """Against the variance of the error of the layer's outputs, computed independently."""
    evidence = outlying(1.0)
    node = next(n for n in evidence.model.graph if n.op_type == "Conv")
    weight = np.array(read.constant(node.inputs[1]), np.float64)
    x = evidence.samples().take(32).batches(32)
    values = np.moveaxis(next(iter(x)).inputs["image"], 1, -1).reshape(-1, 3).astype(np.float64)

    def loss(ends: tuple[float, float]) -> float:
        g = quantization_grid(*ends)
        error = (g.quantize(values) - g.zero_point) * float(g.scale) - values
        return float((error.var(axis=0) * (weight**2).sum(axis=(0, 2, 3))).sum())

    spread = histograms_for(evidence)["image"]
    offers = [clip_range(spread, m) for m in ("minmax", "percentile", "mse", "entropy")]
    chosen = calibration.activation_ranges(evidence, "output-error", ["image"])["image"]
    assert chosen in offers
    assert loss(chosen) == pytest.approx(min(map(loss, offers)), rel=0.02)


def test_the_average_lies_within_the_extremes() -> None:
    spread = Histogram()
    for peak in (1.0, 2.0, 9.0):
        spread.add(np.array([-peak, peak / 2], np.float32))
    assert clip_range(spread, "average") == (-4.0, 2.0)
    assert clip_range(spread, "minmax") == (-9.0, 4.5)


@pytest.mark.parametrize("rule", ["average", "output-error", "entropy"])
def test_every_method_quantizes_and_replays(rule: str) -> None:
    model = nets.residual(width=16, blocks=1)
    data = nets.samples(model, 16)
    done = quantize(model, data, ranges=rule)
    assert {"ranges": rule} in done.plan.steps[-1].actions
    assert to_bytes(apply_plan(done.plan, model, data).model) == to_bytes(done.model)


def scales(model: ir.Model, tensor: str) -> np.ndarray:
    node = next(
        n
        for n in model.graph
        if n.op_type == "QuantizeLinear" and n.inputs[0] is not None and n.inputs[0].name == tensor
    )
    return np.asarray(read.constant(node.inputs[1]))


@pytest.mark.slow
def test_a_file_is_written_once_and_read_again(tmp_path: Path) -> None:
    model = nets.residual(width=16)
    data, path = nets.samples(model, 16), tmp_path / "ranges.json"
    first = quantize(model, data, ranges=path)
    body = json.loads(path.read_text())
    other = quantize(model, nets.samples(model, 16, seed=5), ranges=path)
    assert (
        scales(other.model, "image")
        == scales(first.model, "image")
        != scales(quantize(model, nets.samples(model, 16, seed=5)).model, "image")
    )
    again = quantize(model, data, ranges=path)
    np.testing.assert_allclose(nets.outputs(again.model, data), nets.outputs(first.model, data), atol=1e-5)
    body["ranges"]["image"] = [-51.0, 51.0]
    path.write_text(json.dumps(body))
    edited = quantize(model, data, ranges=path)
    assert scales(edited.model, "image") == pytest.approx(102 / 255)
    assert json.loads(path.read_text()) == body, "what is there is not written over"
    assert to_bytes(apply_plan(edited.plan, model, data).model) == to_bytes(edited.model), "the plan holds them"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a calibration file"),
        ('{"schema": "onnxpress ranges 1", "ranges": {"image": [2, 1]}}', "invalid range"),
        ('{"schema": "onnxpress ranges 1", "ranges": {"image": ["a", 1]}}', "invalid range"),
        ('{"schema": "onnxpress ranges 1", "ranges": {"image": 3}}', "invalid range"),
        ('{"schema": "onnxpress ranges 1", "ranges": {"image": [0, NaN]}}', "invalid range"),
        ('{"schema": "onnxpress ranges 1", "ranges": {"stranger": [0, 1]}}', "a tensor that is not in the model"),
    ],
)
def test_an_invalid_file_is_refused_and_not_changed(text: str, expected: str, tmp_path: Path) -> None:
    model, path = nets.residual(width=16), tmp_path / "ranges.json"
    path.write_text(text)
    with pytest.raises(InputProblem, match=expected):
        quantize(model, nets.samples(model, 8), ranges=path)
    assert path.read_text() == text


def test_an_unknown_method_is_refused_first() -> None:
    model = nets.residual(width=16)
    with pytest.raises(InputProblem, match="unknown calibration method"):
        quantize(model, nets.samples(model, 8), ranges="guess")


def test_wide_leaves_headroom_only_within_known_limits() -> None:
    net = nets.image_net()
    bounds = [net.constant(np.float32(v).reshape(()), n) for v, n in ((0, "low"), (6, "high"))]
    moved = net.op("Transpose", ["image"], 3, perm=[0, 1, 3, 2])
    open_end = net.relu(net.conv(moved, 8))
    capped = net.op("Clip", [net.conv(open_end, 8), *bounds], 8)
    share = net.op("Sigmoid", [net.conv(capped, 8)], 8)
    model = net.model(net.head(net.relu(net.conv(share, 8))), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, nets.samples(model, 8))
    seen = histograms_for(evidence)
    found = calibration.activation_ranges(evidence, "headroom", ["image", moved, open_end, capped, share])
    for name in ("image", moved):
        assert found[name] == (seen[name].low, seen[name].high), "pictures are integers already"
    assert found[open_end] == pytest.approx((0.0, 1.4 * seen[open_end].high))
    assert found[capped][0] == 0
    assert found[capped][1] == pytest.approx(min(6.0, 1.4 * seen[capped].high))
    assert found[share][1] == pytest.approx(min(1.0, 1.4 * seen[share].high))
    assert found[share][1] <= 1.0

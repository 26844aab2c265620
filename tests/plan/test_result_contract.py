"""The contract of a result: limits on accuracy and latency, and equal behaviour for all input shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress.measure.score import Score
from onnxpress.model import edit
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.plan import result_contract
from onnxpress.runtime.latency import Ratio
from tests import nets

pytestmark = pytest.mark.unit


def score(drop: float) -> Score:
    return Score("top-1", 0.9 - drop, 0.9, drop, drop - 0.01, drop + 0.01, 500, 0.99, 0.001)


@pytest.mark.parametrize(
    ("drop", "low", "high", "goal", "accepted"),
    [
        (0.005, 1.1, 1.2, "latency", True),
        (0.02, 1.1, 1.2, "latency", False),
        (0.005, 0.98, 1.02, "latency", False),
        (0.005, 0.98, 1.02, "size", True),
        (0.005, 0.9, 0.95, "size", False),
        (float("nan"), 1.1, 1.2, "latency", False),
    ],
)
def test_contract(drop: float, low: float, high: float, goal: str, accepted: bool) -> None:
    verdict = result_contract.judge(score(drop), Ratio("a", "b", (low + high) / 2, low, high), 0.01, goal, [])
    assert verdict.accepted is accepted
    assert bool(verdict.reasons) is not accepted


@pytest.mark.parametrize(("high", "accepted"), [(0.015, True), (0.06, False)])
def test_few_samples_do_not_let_a_candidate_hold_by_luck(high: float, accepted: bool) -> None:
    """The drop that is expected is small, but the samples leave open that it is several times what is allowed."""
    few = replace(score(0.004), high=high, samples=89, expected=True)
    verdict = result_contract.judge(few, Ratio("a", "b", 1.5, 1.4, 1.6), 0.01, "latency", [])
    assert verdict.accepted is accepted
    assert accepted or "89 validation samples cannot tell" in verdict.reasons[0]
    counted = replace(few, expected=False, samples=500)
    assert result_contract.judge(counted, Ratio("a", "b", 1.5, 1.4, 1.6), 0.01, "latency", []).accepted


def test_contract_sees_a_baked_batch() -> None:
    model = nets.residual(width=16)
    other = nets.image_net()
    x = other.conv("image", 16)
    baked = other.model(other.head(x), {"image": [1, 3, 8, 8]}, [1, 10])
    assert result_contract.same_shape_behaviour(model, to_bytes(baked), nets.samples(model, 2))
    assert not result_contract.same_shape_behaviour(model, to_bytes(model), nets.samples(model, 2))


def test_contract_sees_a_baked_length() -> None:
    """A free axis that is not the batch: [N,L,16] with the length written into a Reshape runs at one length only."""
    free = nets.mlp()
    net = nets.Net()
    shape = net.constant(np.array([-1, 5, 16], np.int64), "shape")
    x = net.op("Reshape", ["tokens", shape], 16)
    weight = net.constant(net.rng.standard_normal((16, 8)).astype(np.float32))
    baked = net.model(net.op("MatMul", [x, weight], 8), {"tokens": ["N", "L", 16]}, ["N", "L", 8])
    baked.graph.outputs[0].name = free.graph.outputs[0].name
    data = nets.samples(free, 3, sequence=5)
    problems = result_contract.same_shape_behaviour(free, to_bytes(baked), data)
    assert any(" L " in f" {p} " for p in problems)
    assert not result_contract.same_shape_behaviour(free, to_bytes(free), data)


def test_contract_lets_sizes_that_depend_on_values_differ() -> None:
    """NonZero: the number of columns is the data's, and may change with the numbers; the rank may not."""

    def chooser(limit: float) -> ir.Model:
        net = nets.image_net()
        x = net.op("Greater", ["image", net.constant(np.array(limit, np.float32))], 3)
        proto = ir.to_proto(net.model(net.op("NonZero", [x], 3), nets.IMAGE, [4, "found"]))
        proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
        return ir.from_proto(proto)

    data = nets.samples(chooser(0.0), 3)
    assert not result_contract.same_shape_behaviour(chooser(0.0), to_bytes(chooser(0.1)), data)


def test_contract_sees_values_that_are_not_finite() -> None:
    model = nets.mlp()
    broken = canonical(model)
    node = next(n for n in broken.graph if n.op_type == "Add")
    edit.set_constant(node.inputs[1], np.full(48, np.nan, np.float32))
    data = nets.samples(model, 2)
    assert any("NaN" in p for p in result_contract.same_shape_behaviour(model, broken, data))
    assert not result_contract.same_shape_behaviour(broken, broken, data)

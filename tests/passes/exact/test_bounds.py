"""Bounds of values that hold for every input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxpress.data.synthetic import synthetic
from onnxpress.measure.evidence import evidence_for
from onnxpress.model import edit
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.signature import signature
from onnxpress.passes.exact.bounds import value_bounds
from onnxpress.passes.exact.reduce import REDUCTIONS
from onnxpress.passes.exact.simplify import SIMPLIFY
from onnxpress.runtime.session import open_session, run
from tests import grammar, nets
from tests.passes.exact.helpers import chain, changed

pytestmark = pytest.mark.unit


def test_bounds_follow_from_uint8_inputs() -> None:
    """For uint8 inputs, rows of negative weights never pass their Relu, and rows of positive weights always do."""
    model = chain()
    first = next(n for n in model.graph if n.op_type == "Conv")
    port = model.graph.inputs[0]
    port.dtype = ir.DataType.UINT8
    cast = edit.insert_before(model, first, "Cast", [port], "floats", {"to": 1})
    scaled = edit.insert_before(
        model, first, "Div", [cast, edit.add_constant(model, np.float32(255).reshape(()), "scale")], "scaled"
    )
    first.replace_input_with(0, scaled)

    def signed(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[:16] = -np.abs(weight[:16])
        bias[:16] = -0.1

    model = changed(model, 0, signed)
    evidence = evidence_for(model, synthetic(signature(model), 2))
    applied = SIMPLIFY.apply(evidence, REDUCTIONS)
    done, notes = applied.model, applied.notes
    assert any("16 channels are always zero" in n for n in notes)
    assert any("16 channels without effect" in n for n in notes)
    feed = {"image": np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)}
    one, two = (run(open_session(m), feed)[0] for m in (model, done))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(grammar.networks(), st.booleans())
def test_no_value_exceeds_its_bounds(model: ir.Model, squashed: bool) -> None:
    """squashed: a Sigmoid in front of the first layer bounds all following values."""
    work = canonical(model)
    if squashed:
        first = next(n for n in work.graph if n.op_type == "Conv")
        first.replace_input_with(0, edit.insert_before(work, first, "Sigmoid", [first.inputs[0]], "squashed"))
    evidence = evidence_for(work, nets.samples(model, 4))
    known = value_bounds(evidence.model, evidence.trace)
    names = [
        v.name for n in evidence.model.graph for v in n.outputs if v.name in known and v.name in evidence.trace.shapes
    ]
    assert names or not squashed
    for values in evidence.stream(names) if names else ():
        for name, value in values.items():
            slack = 1e-5 * max(float(np.abs(value).max()), 1.0)
            assert (value >= known[name].low - slack).all(), name
            assert (value <= known[name].high + slack).all(), name
    if squashed:
        assert any(np.isfinite(b.high).all() for b in known.values())


def test_computed_clip_limits_give_no_bounds() -> None:
    """A Clip with computed limits may produce any value."""
    net = nets.Net()
    low, top = net.op("Relu", ["x"], 8), net.op("ReduceMin", ["y"], 1, keepdims=0)
    clipped = net.op("Clip", [low, "", top], 8)
    weight = net.constant(np.ones((8, 4), np.float32))
    model = net.model(
        net.op("MatMul", [net.op("Relu", [clipped], 8), weight], 4), {"x": ["N", 8], "y": ["M", 1]}, ["N", 4]
    )
    evidence = evidence_for(model, None)
    done = SIMPLIFY.apply(evidence, [{"fold": "relu"}, {"bounds": "relu"}])
    feed = {"x": np.ones((2, 8), np.float32), "y": np.full((2, 1), -3, np.float32)}
    one, two = (run(open_session(m), feed)[0] for m in (model, done.model))
    np.testing.assert_array_equal(one, two)

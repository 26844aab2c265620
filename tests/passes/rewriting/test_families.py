"""All families on random networks with slow forms at random places: the same function, and nothing left to rewrite."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxpress.measure.evidence import evidence_for
from onnxpress.passes.rewriting.families import BY_NAME, FAMILIES, apply_families
from tests import nets
from tests.passes.rewriting.elementwise.test_activations import NUMBERS, SPELLINGS


def spelled(net: nets.Net, draw: Any, x: str) -> str:
    """An activation in a random spelling, written into a network."""
    _, body = SPELLINGS[draw(st.sampled_from(sorted(k for k in SPELLINGS if k != "hard sigmoid")))]
    names = {"x": x}
    for statement in body.split():
        target, call = statement.split("=", 1)
        kind, arguments = call.rstrip(")").split("(")
        given_names = [names[a] if a in names else net.constant(NUMBERS[a].ravel()[0].reshape(())) for a in
                       arguments.split(",")]  # fmt: skip
        names[target] = net.op(kind, given_names, net.widths[x])
    return names["y"]


def slow_form(net: nets.Net, draw: Any, x: str) -> str:
    """A form that a family rewrites, at a random choice."""
    width = net.widths[x]
    kinds = ["activation", "prelu", "affine", "parallel", "gate", "mish", "elu", "shortcut", "shuffle", "odd"]
    kind = draw(st.sampled_from(kinds))
    if kind == "activation":
        return spelled(net, draw, x)
    if kind == "prelu":
        return net.op(
            "PRelu", [x, net.constant(np.abs(net.rng.standard_normal((width, 1, 1))).astype(np.float32))], width
        )
    if kind == "affine":
        half = net.constant(net.rng.standard_normal((width, 1, 1)).astype(np.float32))
        return net.op("Sub", [half, net.op("Mul", [x, net.constant(np.array(1.5, np.float32))], width)], width)
    if kind == "parallel":
        return net.add(net.conv(x, width), net.conv(x, width, k=1))
    if kind == "gate":
        pooled = net.op("ReduceMean", [x], width, axes=[2, 3], keepdims=1)
        return net.op("Mul", [x, net.op("HardSigmoid", [net.conv(pooled, width, k=1)], width)], width)
    if kind == "shortcut":
        pads = net.constant(np.array([0, 0, 0, 0, 0, 5, 0, 0]))
        return net.add(net.conv(x, width), net.op("Pad", [net.conv(x, width - 5, k=1), pads], width))
    if kind == "shuffle":
        split, whole = (net.constant(np.array(s)) for s in ([-1, 2, width // 2, 8, 8], [-1, width, 8, 8]))
        swapped = net.op("Transpose", [net.op("Reshape", [x, split], width)], width, perm=[0, 2, 1, 3, 4])
        return net.op("Reshape", [swapped, whole], width)
    if kind == "odd":
        return net.conv(net.relu(net.conv(x, 18)), width, k=1)
    if kind == "mish":
        return net.op("Mul", [x, net.op("Tanh", [net.op("Softplus", [x], width)], width)], width)
    return net.op("Elu", [x], width)


@st.composite
def slow_nets(draw: Any) -> ir.Model:
    net = nets.image_net(draw(st.integers(0, 99)))
    x = net.conv("image", draw(st.sampled_from([8, 16, 24])))
    for _ in range(draw(st.integers(1, 3))):
        x = slow_form(net, draw, x)
        x = net.conv(x, net.widths[x], k=draw(st.sampled_from([1, 3])))
    return net.model(net.head(net.relu(x)), nets.IMAGE, ["N", 10])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(slow_nets())
def test_all_families_keep_the_function(model: ir.Model) -> None:
    evidence = evidence_for(model, nets.samples(model, 4))
    done, found = apply_families(evidence.model, evidence.probe, list(BY_NAME), evidence.trace)
    assert found
    wanted, values = (nets.outputs(m, evidence.samples(), "none") for m in (model, done))
    np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5 * max(float(np.abs(wanted).max()), 1.0))
    assert not apply_families(done, evidence.probe, list(BY_NAME))[1]


def test_names_are_unique_and_summaries_are_lines() -> None:
    assert len(BY_NAME) == len(FAMILIES)
    assert all(f.summary and "\n" not in f.summary and f.rules for f in FAMILIES)


def test_a_family_that_is_not_named_does_nothing() -> None:
    model = nets.residual()
    evidence = evidence_for(model, nets.samples(model, 2))
    assert apply_families(evidence.model, evidence.probe, [])[1] == {}


@pytest.mark.parametrize("name", sorted(nets.NETWORKS))
def test_given_models_stay(name: str) -> None:
    model = nets.NETWORKS[name]()
    evidence = evidence_for(model, nets.samples(model, 2, sequence=24))
    before = ir.to_proto(evidence.model).SerializeToString()
    apply_families(evidence.model, evidence.probe, list(BY_NAME), evidence.trace)
    assert ir.to_proto(evidence.model).SerializeToString() == before

"""Forms for float layouts, taken back where integers stand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.passes.int8.qdq.layout_forms import drop_layout_forms, is_identity_convolution
from onnxpress.passes.int8.quantize import QUANTIZE, QuantizeOptions
from onnxpress.passes.int8.static_int8 import quantizable
from onnxpress.passes.rewriting.families import apply_families
from tests import nets

pytestmark = pytest.mark.unit


def gated(kind: str) -> ir.Model:
    """A residual block with a padded shortcut, or with a gate, rewritten for blocks."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    if kind == "sums":
        small = net.conv(x, 16, k=1)
        wide = net.op("Pad", [small, net.constant(np.array([0, 8, 0, 0, 0, 8, 0, 0]))], 32)
        x = net.relu(net.add(net.conv(x, 32), wide))
    else:
        gate = net.op("HardSigmoid", [net.conv(net.op("GlobalAveragePool", [x], 32), 32, k=1)], 32)
        x = net.conv(net.op("Mul", [x, gate], 32), 32, k=1)
    model = net.model(net.head(net.conv(x, 32)), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, nets.samples(model, 8))
    done, found = apply_families(evidence.model, evidence.probe, [kind], evidence.trace)
    assert found == {kind: 1}
    return done


@pytest.mark.parametrize("kind", ["sums", "gates"])
def test_they_do_not_stand_between_integers(kind: str) -> None:
    model = gated(kind)
    evidence = evidence_for(model, nets.samples(model, 8))
    identities = [n.name for n in evidence.model.graph if is_identity_convolution(n)]
    assert len(identities) == (kind == "sums")
    chosen = quantizable(evidence)
    assert not chosen & set(identities)
    planned = QUANTIZE.plan(evidence, QuantizeOptions())
    done = QUANTIZE.apply(evidence, planned.actions).model
    assert not any(is_identity_convolution(n) for n in done.graph)
    assert "Resize" not in [n.op_type for n in done.graph]
    wanted, found = (nets.outputs(m, evidence.samples()) for m in (model, done))
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.98


def test_between_floats_they_stay() -> None:
    model = gated("sums")
    evidence = evidence_for(model, None)
    assert drop_layout_forms(evidence.model, evidence.trace) == 0

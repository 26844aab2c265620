"""Channels that are constant on the samples are folded on request."""

from __future__ import annotations

import numpy as np

from onnxpress import simplify
from onnxpress.model.files import to_bytes
from onnxpress.model.parameter_count import parameters
from onnxpress.plan.plan import apply_plan
from tests import nets
from tests.passes.exact.helpers import changed, reduced


def test_channels_constant_on_samples_are_folded_on_request_only() -> None:
    """Half of the channels are zero behind the Relu on these samples, but not for every input."""
    model = nets.residual(width=32)

    def low(weight: np.ndarray, bias: np.ndarray) -> None:
        bias[:16] = -1e3

    model = changed(model, 1, low)
    data = nets.samples(model, 8)
    assert not any("without effect" in n for n in reduced(model)[1])
    done = simplify(model, data, calibrated=True)
    assert parameters(done.model) < parameters(simplify(model).model)
    assert any(n.startswith("lossy: 16 channels") for n in done.notes)
    assert any("differ by an nmse of" in n for n in done.notes)
    np.testing.assert_allclose(nets.outputs(model, data), nets.outputs(done.model, data), rtol=1e-5, atol=1e-5)
    again = apply_plan(done.plan, model, data)
    assert to_bytes(again.model) == to_bytes(done.model)
    assert "nothing but exact reductions" in simplify(nets.residual(width=16), data, calibrated=True).notes[-1]


def test_an_observed_constant_is_folded_into_the_bias_of_an_unpadded_reader() -> None:
    net = nets.image_net()
    x = net.op("Sigmoid", [net.conv("image", 32)], 32)
    model = net.model(net.head(net.relu(net.conv(x, 16, k=1))), nets.IMAGE, ["N", 10])

    def saturated(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[:16] *= 1e-3
        bias[:16] = 50

    model = changed(model, 0, saturated)
    data = nets.samples(model, 8)
    done = simplify(model, data, calibrated=True)
    assert parameters(done.model) < parameters(model)
    np.testing.assert_allclose(nets.outputs(model, data), nets.outputs(done.model, data), rtol=1e-5, atol=1e-5)

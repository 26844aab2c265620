"""Convolutions with less spatial work: before the repair they are the convolution with the weight that they stand
for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.model import edit, read
from onnxpress.model.counts import macs
from onnxpress.passes.core.contract import proposals
from onnxpress.passes.structure.kernels import KERNELS, sites
from tests import nets

pytestmark = pytest.mark.unit


def conv_net(kernel: int = 3, **attributes: Any) -> ir.Model:
    net = nets.image_net()
    weight = (net.rng.standard_normal((12, 3, kernel, kernel)) / 5).astype(np.float32)
    x = net.op("Conv", ["image", net.constant(weight)], 12, **attributes)
    return net.model(net.head(net.relu(x)), nets.IMAGE, ["N", 10])


CASES = {
    "plain": {"pads": [1, 1, 1, 1]},
    "strided": {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    "dilated": {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
    "same": {"auto_pad": "SAME_UPPER"},
    "large": {"pads": [2, 2, 2, 2], "kernel": 5},
    "wide-padding": {"pads": [3, 2, 1, 1]},
}


def stood_for(first: ir.Node, node: ir.Node, form: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of the old shape that the new convolutions mean."""
    now = read.constant(node.inputs[1])
    assert now is not None
    if form == "smaller":
        ring = [(0, 0), (0, 0)] + [(1, 1) if size > 1 else (0, 0) for size in shape[2:]]
        return np.pad(now, ring)
    spatial = read.constant(first.inputs[1])
    assert spatial is not None
    return np.einsum("oi,ihw->oihw", now[:, :, 0, 0], spatial[:, 0])


@pytest.mark.parametrize("form", ["smaller", "separable"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_weights_before_the_refit(case: dict[str, Any], form: str) -> None:
    model = conv_net(**case)
    evidence = evidence_for(model, nets.samples(model, 8))
    (site,) = sites(evidence.model)[0]
    actions = [{"node": site.node, "form": form}, {"refit": "none"}]
    done = KERNELS.apply(evidence, actions).model
    convs = [n for n in done.graph if n.op_type == "Conv"]
    assert len(convs) == (1 if form == "smaller" else 2)
    reference = evidence.model.clone()
    node = next(n for n in reference.graph if n.name == site.node)
    edit.set_input(
        reference, node, 1, stood_for(convs[0], convs[-1], form, site.weight.shape).astype(np.float32), "whole"
    )
    data = evidence.samples()
    np.testing.assert_allclose(nets.outputs(done, data), nets.outputs(reference, data), rtol=1e-4, atol=1e-5)
    fewer = [sum(macs(m, evidence_for(m, data).trace).values()) for m in (done, evidence.model)]
    assert fewer[0] < fewer[1]


@pytest.mark.parametrize("form", ["smaller", "separable"])
def test_the_refit_reduces_the_error(form: str) -> None:
    """Inside a network, where neighbours say something of each other (of white noise a core is the best already)."""
    model = nets.residual(width=16)
    evidence = evidence_for(model, nets.samples(model, 64))
    actions = [{"node": s.node, "form": form} for s in sites(evidence.model)[0][1:] if form in s.forms]
    data = nets.samples(model, 24, seed=5)
    wanted = nets.outputs(evidence.model, data)
    error = []
    for mode in ("none", "least-squares"):
        done = KERNELS.apply(evidence, [*actions, {"refit": mode}]).model
        error.append(float(((nets.outputs(done, data) - wanted) ** 2).mean()))
    assert error[1] < 0.9 * error[0]


def test_the_separable_kernel_loses_least() -> None:
    """A weight that is separable loses nothing."""
    rng = np.random.default_rng(0)
    spatial, mixing = rng.standard_normal((3, 3, 3)), rng.standard_normal((12, 3))
    model = conv_net(pads=[1, 1, 1, 1])
    node = next(n for n in model.graph if n.op_type == "Conv")
    edit.set_input(model, node, 1, np.einsum("oi,ihw->oihw", mixing, spatial).astype(np.float32), "w")
    evidence = evidence_for(model, nets.samples(model, 8))
    losses = {o.action["form"]: o.loss for o in proposals(KERNELS, evidence)}
    assert losses["separable"] == pytest.approx(0, abs=1e-6)
    assert losses["smaller"] > 0.1


def test_kernels_that_cannot_shrink_are_refused() -> None:
    for attributes, forms in (
        ({}, ("separable",)),
        ({"auto_pad": "VALID"}, ("separable",)),
        ({"pads": [1, 1, 0, 1]}, ("separable",)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, ("separable",)),
    ):
        model = conv_net(**attributes)
        assert [s.forms for s in sites(evidence_for(model, None).model)[0]] == [forms]
    _, refused = sites(evidence_for(conv_net(kernel=1), None).model)
    assert "one position" in refused[0].reason


def test_a_plan_for_another_model_is_refused() -> None:
    model = conv_net(pads=[1, 1, 1, 1])
    evidence = evidence_for(model, nets.samples(model, 4))
    with pytest.raises(InputProblem, match="does not have"):
        KERNELS.apply(evidence, [{"node": "nobody", "form": "smaller"}])
    with pytest.raises(InputProblem, match="unknown refit"):
        KERNELS.apply(evidence, [{"node": "nobody", "form": "smaller"}, {"refit": "unknown"}])

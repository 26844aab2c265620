"""Gram matrices for rounding: one per layer that is narrow enough, taken once."""

from __future__ import annotations

import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.passes.int8 import damped_grams as module
from onnxpress.passes.int8.damped_grams import damped_grams
from onnxpress.passes.int8.quantization_recipe import QuantizationRecipe
from onnxpress.passes.int8.static_int8 import quantizable, quantize
from tests import nets

pytestmark = pytest.mark.unit


def test_layers_too_wide_for_a_matrix_are_rounded_to_nearest() -> None:
    """3 x 3 x 260 columns: quantizing such a layer output-aware was an error."""
    net = nets.image_net()
    wide = net.relu(net.conv("image", 260, 1))
    model = net.model(net.head(net.relu(net.conv(wide, 8, 3))), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, nets.samples(model, 4))
    convs = [n for n in evidence.model.graph if n.op_type == "Conv"]
    assert [len(gram) for _, gram in damped_grams(evidence, convs)] == [3]
    for exact in (True, False):
        made = quantize(evidence, quantizable(evidence), QuantizationRecipe(rounding="output-aware"), True, exact)
        assert any(n.op_type == "QuantizeLinear" for n in made.model.graph)


def test_matrices_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.residual()
    evidence = evidence_for(model, nets.samples(model, 8))
    convs = [n for n in evidence.model.graph if n.op_type == "Conv"]
    first = dict(damped_grams(evidence, convs))
    monkeypatch.setattr(module, "input_moments", lambda evidence, nodes: iter([]))
    assert dict(damped_grams(evidence, convs)).keys() == first.keys()

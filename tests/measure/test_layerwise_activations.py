"""Values of a model whose layers change: those of a fresh run after every change; each part is run once or twice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

import onnxpress.measure.layerwise_activations as layerwise
from onnxpress.measure.evidence import Evidence, evidence_for, stream
from onnxpress.measure.layerwise_activations import LayerwiseActivations
from onnxpress.measure.linear import linear, set_linear
from onnxpress.passes.int8.quantization_recipe import QuantizationRecipe
from onnxpress.passes.int8.static_int8 import quantizable, quantize
from tests import nets

pytestmark = pytest.mark.unit


def visited(evidence: Evidence, kept_bytes: int) -> int:
    """Visit the layers in order and change each behind its inputs; returns the number of layers."""
    work, samples, rng = evidence.model.clone(), evidence.samples(), np.random.default_rng(0)
    layers = [n for n in work.graph if linear(n) is not None]
    activations = LayerwiseActivations(work, samples, 2, layers, kept_bytes)
    for node in layers:
        layer = linear(node)
        assert layer is not None
        names = [layer.source, layer.output]
        fresh = stream(work, names, samples, 2)
        for found, wanted in zip(activations.values(names), fresh, strict=True):
            for name in names:
                assert np.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-4, equal_nan=True), name
        set_linear(work, node, layer.weight * rng.uniform(0.5, 1.5), layer.bias)
        activations.finalize([node])
    return len(layers)


@pytest.mark.parametrize("kept_bytes", [layerwise.KEPT_BYTES, 2**12, 0])
def test_the_values_are_those_of_a_fresh_run(kept_bytes: int) -> None:
    for build in (nets.mlp, nets.residual, nets.mobile, nets.transformer, nets.with_if, nets.shared_weights):
        model = build()
        assert visited(evidence_for(model, nets.samples(model, 5)), kept_bytes)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(nets.random_nets())
def test_the_values_are_those_of_a_fresh_run_whatever_the_graph(model: ir.Model) -> None:
    visited(evidence_for(model, nets.samples(model, 5)), layerwise.KEPT_BYTES)


def test_each_part_runs_once_or_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    opened = layerwise.open_session

    def counted(model: ir.Model, settings: object) -> object:
        sizes.append(len(model.graph))
        return opened(model, settings)  # type: ignore[arg-type]

    monkeypatch.setattr(layerwise, "open_session", counted)
    model = nets.residual(blocks=12)
    evidence = evidence_for(model, nets.samples(model, 5))
    visited(evidence, layerwise.KEPT_BYTES)
    assert sum(sizes) <= 3 * len(evidence.model.graph)


def test_integers_are_kept_in_front_of_a_dequantize() -> None:
    model = nets.residual()
    evidence = evidence_for(model, nets.samples(model, 8))
    int8 = quantize(evidence, quantizable(evidence), QuantizationRecipe(), False, True).model
    layers = [n for n in int8.graph if n.op_type == "Conv"]
    activations = LayerwiseActivations(int8, evidence.samples(), 4, layers)
    for node in layers:
        list(activations.values([node.outputs[0].name or ""]))
        activations.finalize([node])
    kept = [array for arrays in activations._border.values() for array in arrays]
    assert kept and all(array.dtype == np.uint8 for array in kept)

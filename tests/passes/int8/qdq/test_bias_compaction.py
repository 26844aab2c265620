"""Compact biases of small int8 models: equal numbers, equal kernels, fewer bytes; other models are not changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxpress import simplify
from onnxpress.measure.evidence import evidence_for
from onnxpress.model import edit
from onnxpress.passes.int8.qdq import bias_compaction
from onnxpress.passes.int8.quantization_recipe import QuantizationRecipe
from onnxpress.passes.int8.static_int8 import quantizable, quantize
from tests import nets
from tests.passes.weights.test_bit_packing import operators

pytestmark = pytest.mark.unit


def separable(width: int = 48) -> ir.Model:
    """Depthwise and pointwise layers, as in keyword spotting, whose channels differ in scale."""
    net = nets.image_net()
    x = net.relu(net.conv("image", width))
    for _ in range(2):
        x = net.relu(net.conv(net.relu(net.depthwise(x)), width, 1))
    for tensor in net.tensors:
        if len(tensor.dims) == 4:
            weight = numpy_helper.to_array(tensor) * 10 ** net.rng.uniform(-1, 0.5, (tensor.dims[0], 1, 1, 1))
            tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), tensor.name))
    return net.model(net.head(x), nets.IMAGE, ["N", 10])


def in_int8(model: ir.Model) -> ir.Model:
    evidence = evidence_for(model, nets.samples(model))
    return quantize(evidence, quantizable(evidence), QuantizationRecipe("minmax"), False, True).model


def numbers(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def types(model: ir.Model) -> set[str]:
    return {v.dtype.name for v in model.graph.initializers.values() if v.dtype is not None}


@pytest.mark.parametrize("level", ["none", "all"])
def test_numbers_and_kernels_are_equal_and_the_file_is_smaller(level: str, tmp_path: Path) -> None:
    long = in_int8(separable())
    short = long.clone()
    assert bias_compaction.compact_biases(short) == 5
    assert numbers(short) < 0.88 * numbers(long)
    assert types(short) & {"INT16"} and len([n for n in short.graph if n.op_type == "Mul"]) >= 3
    data = nets.samples(long, 6)
    np.testing.assert_array_equal(nets.outputs(short, data, level), nets.outputs(long, data, level))
    assert operators(short, tmp_path) == operators(long, tmp_path)


def biases(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type == "DequantizeLinear" and (n.name or "").endswith("bias_dq")]


def test_a_bias_of_more_than_16_bits_stays_int32() -> None:
    long = in_int8(separable())
    large = biases(long)[1].inputs[0]
    assert large is not None and large.const_value is not None
    edit.set_constant(large, large.const_value.numpy() + np.int32(40_000))
    short = long.clone()
    bias_compaction.compact_biases(short)
    data = nets.samples(long, 6)
    np.testing.assert_array_equal(nets.outputs(short, data), nets.outputs(long, data))
    kinds = [dq.inputs[0].producer() is None for dq in biases(short) if dq.inputs[0] is not None]
    assert kinds[:4] == [False, True, False, False]


def test_a_scale_that_is_not_the_product_stays() -> None:
    long = in_int8(separable())
    assert len(biases(long)) > 3
    for node in biases(long):
        scale = node.inputs[1]
        assert scale is not None and scale.const_value is not None
        edit.set_constant(scale, scale.const_value.numpy() * np.float32(1.5))
    short = long.clone()
    bias_compaction.compact_biases(short)
    assert not [n for n in short.graph if n.op_type == "Mul"]


def test_models_with_few_scales_are_not_changed() -> None:
    long = in_int8(nets.residual(width=32))
    assert bias_compaction.compact_biases(long) == 0 and types(long) & {"INT32"}


def test_simplify_expands_compact_biases() -> None:
    """So that commands find scales and integers in a file that is given to them."""
    long = in_int8(separable())
    short = long.clone()
    bias_compaction.compact_biases(short)
    assert types(simplify(short).model) == types(long)


def test_what_keeps_its_channels_says_how_to_free_them() -> None:
    short = in_int8(separable())
    bias_compaction.compact_biases(short)
    reasons = [r.reason for r in evidence_for(short, nets.samples(short, 2)).channels.refused]
    assert any("bias" in reason and "simplify first" in reason for reason in reasons)
    assert not any("not one constant" in reason for reason in reasons)

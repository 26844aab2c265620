"""Folding of BatchNormalization, affine operators, Pad and Sum into their neighbours."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress import quantize, simplify
from tests import nets
from tests.passes.exact.helpers import assert_same, reduced

pytestmark = pytest.mark.unit


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def test_batchnorm_folds() -> None:
    model = nets.residual(norm=True)
    done, notes = reduced(model)
    assert "BatchNormalization" not in ops(done)
    assert any("batchnorm" in n for n in notes)
    assert_same(model, done)


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (16, 1, 1), ()])
def test_affine_folds(op: str, shape: tuple[int, ...]) -> None:
    net = nets.image_net()
    constant = net.constant((1.5 + np.random.default_rng(0).random(shape)).astype(np.float32))
    x = net.relu(net.op(op, [net.conv("image", 16), constant], 16))
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    done, _ = reduced(model)
    assert op not in ops(done)
    assert_same(model, done)


def test_affine_with_other_readers_does_not_fold() -> None:
    net = nets.image_net()
    y = net.conv("image", 16)
    x = net.add(net.op("Mul", [y, net.constant(np.float32(2).reshape(()))], 16), y)
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    done, _ = reduced(model)
    assert "Mul" in ops(done)
    assert_same(model, done)


def test_pad_folds_into_convolution() -> None:
    net = nets.image_net()
    pads = net.constant(np.array([0, 0, 1, 2, 0, 0, 3, 0], np.int64), "pads")
    x = net.relu(net.conv(net.op("Pad", ["image", pads], 3), 16))
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    done, _ = reduced(model)
    assert "Pad" not in ops(done)
    assert_same(model, done)


def test_sum_of_two_becomes_add() -> None:
    """Sum of two inputs, as in residual blocks of older exporters, becomes Add; Sum of three stays."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    x = net.relu(net.op("Sum", [net.conv(x, 16), x], 16))
    x = net.op("Sum", [net.conv(x, 16), x, net.conv(x, 16)], 16)
    model = net.model(net.head(net.relu(x)), nets.IMAGE, ["N", 10])
    data = nets.samples(model, 8)
    done = simplify(model).model
    assert [len(n.inputs) for n in done.graph if n.op_type == "Sum"] == [3]
    assert sum(n.op_type == "Add" for n in done.graph) == 1
    np.testing.assert_array_equal(nets.outputs(done, data), nets.outputs(model, data))
    int8 = quantize(model, data).model
    add = next(n for n in int8.graph if n.op_type == "Add")
    assert all(v is not None and v.producer().op_type == "DequantizeLinear" for v in add.inputs), "it runs in integers"

"""Removal of channels that are never read or constant, and of denormal weights."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.model import edit, read
from onnxpress.model.normal_forms.canonical import canonical
from tests import nets
from tests.passes.exact.helpers import assert_same, changed, reduced

pytestmark = pytest.mark.unit


def test_dead_channels_are_removed() -> None:
    def dead(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[16:] = 0
        bias[16:] = -1  # behind the Relu: exactly zero

    model = changed(nets.residual(width=32), 1, dead)
    done, notes = reduced(model)
    assert any("16 channels without effect" in n for n in notes)
    assert_same(model, done)


def test_constant_channel_behind_padding_stays() -> None:
    """A nonzero constant in front of a padded convolution differs at the border, so one such channel must stay. (Equal
    ones are merged; how many of them then go depends on the widths of the CPU's kernels.)"""

    def constant(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[16:] = 0
        bias[16:] = 1

    model = changed(nets.residual(width=32), 1, constant)
    done, _ = reduced(model)
    weight = read.constant([n for n in done.graph if n.op_type == "Conv"][1].inputs[1])
    assert weight is not None and len(weight) >= 17
    assert_same(model, done)


def test_constant_channel_in_front_of_an_unpadded_convolution_is_removed() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    model = net.model(net.head(net.relu(net.conv(x, 16, k=1))), nets.IMAGE, ["N", 10])
    clone = canonical(model)
    node = next(n for n in clone.graph if n.op_type == "Conv")
    weight, bias = np.array(read.constant(node.inputs[1])), np.array(read.constant(node.inputs[2]))
    weight[:16], bias[:16] = 0, 0.7
    edit.set_input(clone, node, 1, weight, "w")
    edit.set_input(clone, node, 2, bias, "b")
    done, notes = reduced(clone)
    assert any("16 channels without effect" in n for n in notes)
    assert_same(clone, done)


def test_dead_channels_are_followed_through_depthwise() -> None:
    net = nets.image_net()
    x = net.relu(net.depthwise(net.relu(net.conv("image", 32))))
    model = net.model(net.head(net.relu(net.conv(x, 16, k=1))), nets.IMAGE, ["N", 10])
    clone = canonical(model)
    node = next(n for n in clone.graph if n.op_type == "Conv")
    weight, bias = np.array(read.constant(node.inputs[1])), np.array(read.constant(node.inputs[2]))
    weight[:16], bias[:16] = 0, -0.5
    edit.set_input(clone, node, 1, weight, "w")
    edit.set_input(clone, node, 2, bias, "b")
    done, notes = reduced(clone)
    assert any("16 channels without effect" in n for n in notes)
    assert_same(clone, done)


def test_never_read_channels_are_removed() -> None:
    model = canonical(nets.residual(width=32, blocks=1))
    node = [n for n in model.graph if n.op_type == "Conv"][2]
    weight = np.array(read.constant(node.inputs[1]))
    weight[:, 8:24] = 0
    edit.set_input(model, node, 1, weight, "w")
    done, notes = reduced(model)
    assert any("16 channels without effect" in n for n in notes)
    assert_same(model, done)


def test_denormals_are_flushed() -> None:
    model = canonical(nets.residual(width=16, blocks=1))
    node = next(n for n in model.graph if n.op_type == "Conv")
    weight = np.array(read.constant(node.inputs[1]))
    weight[0, 0] = 1e-39
    edit.set_input(model, node, 1, weight, "w")
    done, notes = reduced(model)
    assert any("denormal" in n for n in notes)
    assert_same(model, done)


def test_channels_that_a_product_reads_stay() -> None:
    """Packed queries, keys and values: a channel of the values that the projection reads with zeros is also one of the
    queries and keys, which are multiplied without a weight."""
    heads, size, width = 2, 16, 32
    rng = np.random.default_rng(0)
    net = nets.Net()
    net.widths["tokens"] = 16
    packed = net.op(
        "MatMul", ["tokens", net.constant(rng.standard_normal((16, 3 * width)).astype(np.float32))], 3 * width
    )
    shape = net.constant(np.array([0, 0, 3, heads, size], np.int64))
    moved = net.op("Transpose", [net.op("Reshape", [packed, shape], width)], width, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", [moved, net.constant(np.array(i, np.int64))], width, axis=0) for i in range(3))
    scores = net.op("MatMul", [q, net.op("Transpose", [k], width, perm=[0, 1, 3, 2])], width)
    scores = net.op("Softmax", [net.op("Mul", [scores, net.constant(np.float32(0.1))], width)], width, axis=-1)
    mixed = net.op("Transpose", [net.op("MatMul", [scores, v], width)], width, perm=[0, 2, 1, 3])
    flat = net.op("Reshape", [mixed, net.constant(np.array([0, 0, width], np.int64))], width)
    projection = rng.standard_normal((heads, size, 8)).astype(np.float32)
    projection[:, ::2] = 0
    out = net.op("MatMul", [flat, net.constant(projection.reshape(width, 8))], 8)
    model = net.model(out, {"tokens": ["N", "L", 16]}, ["N", "L", 8])
    done, notes = reduced(model)
    assert not any("without effect" in n for n in notes)
    assert_same(model, done)

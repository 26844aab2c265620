"""Exact reductions: the function stays, what is claimed really goes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model import edit, read
from onnxpress.passes.reduce import REDUCE
from onnxpress.passes.simplify import SIMPLIFY
from tests import nets


def reduced(model: ir.Model) -> tuple[ir.Model, list[str]]:
    evidence = evidence_for(model, nets.samples(model, 2))
    done = REDUCE.apply(model, [o.decision for o in REDUCE.options(model, evidence)], evidence)
    return done.model, done.notes


def assert_same(a: ir.Model, b: ir.Model) -> None:
    data = nets.samples(a, 6)
    np.testing.assert_allclose(nets.outputs(a, data), nets.outputs(b, data), rtol=1e-5, atol=1e-5)


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


def test_affine_that_others_read_does_not_fold() -> None:
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


def with_rows(model: ir.Model, change: object) -> ir.Model:
    """A clone in which `change` was let loose on the first residual block's first convolution weight and bias."""
    clone = edit.canonical(model)
    node = [n for n in clone.graph if n.op_type == "Conv"][1]
    weight, bias = np.array(read.constant(node.inputs[1])), np.array(read.constant(node.inputs[2]))
    change(weight, bias)  # type: ignore[operator]
    edit.set_input(clone, node, 1, weight, "w")
    edit.set_input(clone, node, 2, bias, "b")
    return clone


def test_dead_channels_go() -> None:
    def dead(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[16:] = 0
        bias[16:] = -1  # behind the Relu: exactly zero

    model = with_rows(nets.residual(width=32), dead)
    done, notes = reduced(model)
    assert any("16 idle" in n for n in notes)
    assert_same(model, done)


def test_constant_channel_behind_padding_stays() -> None:
    """A constant other than zero in front of a padded convolution differs at the border: removing it would be wrong."""

    def constant(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[16:] = 0
        bias[16:] = 1

    model = with_rows(nets.residual(width=32), constant)
    done, notes = reduced(model)
    assert not any("idle" in n for n in notes)
    assert_same(model, done)


def test_constant_channel_in_front_of_an_unpadded_convolution_goes() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    model = net.model(net.head(net.relu(net.conv(x, 16, k=1))), nets.IMAGE, ["N", 10])
    clone = edit.canonical(model)
    node = next(n for n in clone.graph if n.op_type == "Conv")
    weight, bias = np.array(read.constant(node.inputs[1])), np.array(read.constant(node.inputs[2]))
    weight[:16], bias[:16] = 0, 0.7
    edit.set_input(clone, node, 1, weight, "w")
    edit.set_input(clone, node, 2, bias, "b")
    done, notes = reduced(clone)
    assert any("16 idle" in n for n in notes)
    assert_same(clone, done)


def test_dead_channels_are_followed_through_depthwise() -> None:
    net = nets.image_net()
    x = net.relu(net.depthwise(net.relu(net.conv("image", 32))))
    model = net.model(net.head(net.relu(net.conv(x, 16, k=1))), nets.IMAGE, ["N", 10])
    clone = edit.canonical(model)
    node = next(n for n in clone.graph if n.op_type == "Conv")
    weight, bias = np.array(read.constant(node.inputs[1])), np.array(read.constant(node.inputs[2]))
    weight[:16], bias[:16] = 0, -0.5
    edit.set_input(clone, node, 1, weight, "w")
    edit.set_input(clone, node, 2, bias, "b")
    done, notes = reduced(clone)
    assert any("16 idle" in n for n in notes)
    assert_same(clone, done)


def test_never_read_channels_go() -> None:
    model = edit.canonical(nets.residual(width=32, blocks=1))
    node = [n for n in model.graph if n.op_type == "Conv"][2]
    weight = np.array(read.constant(node.inputs[1]))
    weight[:, 8:24] = 0
    edit.set_input(model, node, 1, weight, "w")
    done, notes = reduced(model)
    assert any("16 idle" in n for n in notes)
    assert_same(model, done)


def test_denormals_are_flushed() -> None:
    model = edit.canonical(nets.residual(width=16, blocks=1))
    node = next(n for n in model.graph if n.op_type == "Conv")
    weight = np.array(read.constant(node.inputs[1]))
    weight[0, 0] = 1e-39
    edit.set_input(model, node, 1, weight, "w")
    done, notes = reduced(model)
    assert any("denormal" in n for n in notes)
    assert_same(model, done)


def test_simplify_says_when_onnxsim_was_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.passes.simplify.onnxsim", lambda data: "crash: killed by signal 11")
    model = nets.residual()
    evidence = evidence_for(model, None)
    done = SIMPLIFY.apply(model, [{"tool": "onnxsim"}], evidence)
    assert "killed by signal 11" in done.notes[0]
    assert_same(model, done.model)


def test_simplify_refuses_a_result_that_answers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxpress.model.files import to_bytes

    monkeypatch.setattr("onnxpress.passes.simplify.onnxsim", lambda data: to_bytes(nets.residual(seed=9)))
    model = nets.residual()
    done = SIMPLIFY.apply(model, [{"tool": "onnxsim"}], evidence_for(model, None))
    assert "changed the answers" in done.notes[0]
    assert_same(model, done.model)

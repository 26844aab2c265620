"""Exact reductions: the function stays, what is claimed really goes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.data.synthetic import synthetic
from onnxpress.measure.evidence import evidence_for
from onnxpress.model import edit, read
from onnxpress.model.files import to_bytes
from onnxpress.model.signature import signature
from onnxpress.optimize.plan import apply_plan
from onnxpress.optimize.single import simplify
from onnxpress.passes.reduce import REDUCE
from onnxpress.passes.simplify import SIMPLIFY
from onnxpress.runtime.session import open_session, run
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


def changed(model: ir.Model, number: int, weight: object) -> ir.Model:
    """A clone whose number-th weighted layer has another weight and bias: weight(weight, bias) changes copies in place."""
    clone = edit.canonical(model)
    node = [n for n in clone.graph if n.op_type in read.WEIGHTED][number]
    arrays = [np.array(read.constant(v)) for v in node.inputs[1:3]]
    weight(*arrays)  # type: ignore[operator]
    for index, array in enumerate(arrays, 1):
        edit.set_input(clone, node, index, array, f"changed{index}")
    return clone


def chain(act: str = "Relu") -> ir.Model:
    net = nets.image_net()
    x = net.op(act, [net.conv("image", 32)], 32)
    return net.model(net.head(net.relu(net.conv(x, 16))), nets.IMAGE, ["N", 10])


def copied(factor: float) -> object:
    def change(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[16:] = factor * weight[:16]
        bias[16:] = factor * bias[:16]

    return change


@pytest.mark.parametrize(
    ("act", "factor", "removed"),
    [
        ("Relu", 1.0, True), ("Relu", 0.3, True), ("LeakyRelu", 7.7, True), ("HardSwish", 1.0, True),
        ("HardSwish", 0.3, False), ("Sigmoid", 2.0, False), ("Relu", -1.0, False),
    ],
)  # fmt: skip
def test_channels_that_repeat_others_go(act: str, factor: float, removed: bool) -> None:
    """Equal ones behind whatever there is; multiples only where factors pass."""
    model = changed(chain(act), 0, copied(factor))
    done, notes = reduced(model)
    assert any("16 channels repeat others" in n for n in notes) == removed
    assert (read.parameters(done) < read.parameters(model)) == removed
    assert_same(model, done)


def test_a_spine_s_channels_must_repeat_in_every_layer_that_makes_them() -> None:
    model = nets.residual(width=32)
    stem = changed(model, 0, copied(1.0))
    assert not any("repeat" in n for n in reduced(stem)[1])
    makers = [i for i, n in enumerate(n for n in stem.graph if n.op_type in read.WEIGHTED)]
    both = stem
    for number in makers[1:]:
        node = [n for n in both.graph if n.op_type in read.WEIGHTED][number]
        weight = read.constant(node.inputs[1])
        if weight is not None and weight.shape[0] == 32:
            both = changed(both, number, copied(1.0))
    done, notes = reduced(both)
    assert any("repeat" in n for n in notes)
    assert_same(both, done)


def test_bytes_into_a_layer_bound_what_comes_out() -> None:
    """A uint8 picture: rows of negative weights can never switch their Relu on, and rows of positive ones never off."""
    model = chain()
    first = next(n for n in model.graph if n.op_type == "Conv")
    port = model.graph.inputs[0]
    port.dtype = ir.DataType.UINT8
    cast = edit.insert_before(model, first, "Cast", [port], "floats", {"to": 1})
    scaled = edit.insert_before(model, first, "Div", [cast, edit.add_constant(model, np.float32(255).reshape(()), "scale")], "scaled")
    first.replace_input_with(0, scaled)

    def signed(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[:16] = -np.abs(weight[:16])
        bias[:16] = -0.1

    model = changed(model, 0, signed)
    evidence = evidence_for(model, synthetic(signature(model), 2))
    applied = REDUCE.apply(model, [o.decision for o in REDUCE.options(model, evidence)], evidence)
    done, notes = applied.model, applied.notes
    assert any("16 channels are always zero" in n for n in notes)
    assert any("16 idle" in n for n in notes)
    feed = {"image": np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)}
    one, two = (run(open_session(m), feed)[0] for m in (model, done))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("middle", "wide", "merged"), [(32, 8, True), (4, 32, False)])
def test_linear_layers_become_one_where_that_is_cheaper(middle: int, wide: int, merged: bool) -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", wide))
    y = net.relu(net.conv(net.conv(x, middle, k=1), wide, k=1))
    model = net.model(net.head(y), nets.IMAGE, ["N", 10])
    done, notes = reduced(model)
    assert any("linear" in n for n in notes) == merged
    assert (len([n for n in done.graph if n.op_type == "Conv"]) == 2) == merged
    assert_same(model, done)


def test_what_is_padded_between_linear_layers_is_zero_and_not_the_bias() -> None:
    net = nets.image_net()
    model = net.model(net.head(net.relu(net.conv(net.conv(net.relu(net.conv("image", 8)), 32, k=1), 8))), nets.IMAGE, ["N", 10])
    done, notes = reduced(model)
    assert not any("linear" in n for n in notes)
    assert_same(model, done)

    def unbiased(weight: np.ndarray, bias: np.ndarray) -> None:
        bias[:] = 0

    plain = changed(model, 1, unbiased)
    done, notes = reduced(plain)
    assert any("linear" in n for n in notes)
    assert_same(plain, done)


def test_what_no_sample_moves_goes_only_when_asked_for() -> None:
    """Behind the Relu the first half is always zero on these samples, though an input could move it."""
    model = nets.residual(width=32)

    def low(weight: np.ndarray, bias: np.ndarray) -> None:
        bias[:16] = -1e3

    model = changed(model, 1, low)
    data = nets.samples(model, 8)
    assert not any("idle" in n for n in reduced(model)[1])
    done = simplify(model, data)
    assert read.parameters(done.model) < read.parameters(simplify(model).model)
    assert any(n.startswith("lossy: 16 channels") for n in done.notes)
    assert any("differ by an nmse of" in n for n in done.notes)
    np.testing.assert_allclose(nets.outputs(model, data), nets.outputs(done.model, data), rtol=1e-5, atol=1e-5)
    again = apply_plan(done.plan, model, data)
    assert to_bytes(again.model) == to_bytes(done.model)
    assert "nothing lossy was done" in simplify(nets.residual(width=16), data).notes[-1]


def test_an_observed_constant_moves_into_the_bias_of_an_unpadded_reader() -> None:
    net = nets.image_net()
    x = net.op("Sigmoid", [net.conv("image", 32)], 32)
    model = net.model(net.head(net.relu(net.conv(x, 16, k=1))), nets.IMAGE, ["N", 10])

    def saturated(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[:16] *= 1e-3
        bias[:16] = 50

    model = changed(model, 0, saturated)
    data = nets.samples(model, 8)
    done = simplify(model, data)
    assert read.parameters(done.model) < read.parameters(model)
    np.testing.assert_allclose(nets.outputs(model, data), nets.outputs(done.model, data), rtol=1e-5, atol=1e-5)

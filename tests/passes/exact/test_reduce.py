"""Exact reductions keep the function and remove what they claim to remove."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxpress import quantize, simplify
from onnxpress.data.synthetic import synthetic
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model import edit, read
from onnxpress.model.files import to_bytes
from onnxpress.model.signature import signature
from onnxpress.passes.exact.bounds import value_bounds
from onnxpress.passes.exact.reduce import REDUCTIONS
from onnxpress.passes.exact.simplify import SIMPLIFY
from onnxpress.plan.plan import apply_plan
from onnxpress.runtime.session import open_session, run
from tests import grammar, nets


def reduced(model: ir.Model) -> tuple[ir.Model, list[str]]:
    evidence = evidence_for(model, nets.samples(model, 2))
    done = SIMPLIFY.apply(evidence, REDUCTIONS)
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


Change = Callable[[np.ndarray, np.ndarray], None]


def changed(model: ir.Model, number: int, change: Change) -> ir.Model:
    """A clone with another weight and bias in weighted layer `number`; `change` modifies copies of them in place."""
    clone = edit.canonical(model)
    node = [n for n in clone.graph if n.op_type in read.WEIGHTED][number]
    arrays = [np.array(read.constant(v)) for v in node.inputs[1:3]]
    change(*arrays)
    for index, array in enumerate(arrays, 1):
        edit.set_input(clone, node, index, array, f"changed{index}")
    return clone


def test_dead_channels_are_removed() -> None:
    def dead(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[16:] = 0
        bias[16:] = -1  # behind the Relu: exactly zero

    model = changed(nets.residual(width=32), 1, dead)
    done, notes = reduced(model)
    assert any("16 channels without effect" in n for n in notes)
    assert_same(model, done)


def test_constant_channel_behind_padding_stays() -> None:
    """A nonzero constant in front of a padded convolution differs at the border, so it must stay."""

    def constant(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[16:] = 0
        bias[16:] = 1

    model = changed(nets.residual(width=32), 1, constant)
    done, notes = reduced(model)
    assert not any("without effect" in n for n in notes)
    assert_same(model, done)


def test_constant_channel_in_front_of_an_unpadded_convolution_is_removed() -> None:
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
    assert any("16 channels without effect" in n for n in notes)
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
    assert any("16 channels without effect" in n for n in notes)
    assert_same(clone, done)


def test_never_read_channels_are_removed() -> None:
    model = edit.canonical(nets.residual(width=32, blocks=1))
    node = [n for n in model.graph if n.op_type == "Conv"][2]
    weight = np.array(read.constant(node.inputs[1]))
    weight[:, 8:24] = 0
    edit.set_input(model, node, 1, weight, "w")
    done, notes = reduced(model)
    assert any("16 channels without effect" in n for n in notes)
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
    monkeypatch.setattr("onnxpress.passes.exact.simplify.onnxsim", lambda data: "crash: killed by signal 11")
    model = nets.residual()
    evidence = evidence_for(model, None)
    done = SIMPLIFY.apply(evidence, [{"tool": "onnxsim"}])
    assert "killed by signal 11" in done.notes[0]
    assert_same(model, done.model)


def test_simplify_refuses_a_result_that_answers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxpress.model.files import to_bytes

    monkeypatch.setattr("onnxpress.passes.exact.simplify.onnxsim", lambda data: to_bytes(nets.residual(seed=9)))
    model = nets.residual()
    done = SIMPLIFY.apply(evidence_for(model, None), [{"tool": "onnxsim"}])
    assert "changed the answers" in done.notes[0]
    assert_same(model, done.model)


def chain(act: str = "Relu") -> ir.Model:
    net = nets.image_net()
    x = net.op(act, [net.conv("image", 32)], 32)
    return net.model(net.head(net.relu(net.conv(x, 16))), nets.IMAGE, ["N", 10])


def copied(factor: float) -> Change:
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
def test_duplicate_channels_are_merged(act: str, factor: float, removed: bool) -> None:
    """Equal channels are merged behind any operator, scaled ones only behind positively homogeneous operators."""
    model = changed(chain(act), 0, copied(factor))
    done, notes = reduced(model)
    assert any("merged 16 duplicate channels" in n for n in notes) == removed
    assert (read.parameters(done) < read.parameters(model)) == removed
    assert_same(model, done)


def test_residual_stream_channels_must_be_equal_in_all_producers() -> None:
    model = nets.residual(width=32)
    stem = changed(model, 0, copied(1.0))
    assert not any("duplicate" in n for n in reduced(stem)[1])
    producers = [i for i, n in enumerate(n for n in stem.graph if n.op_type in read.WEIGHTED)]
    both = stem
    for number in producers[1:]:
        node = [n for n in both.graph if n.op_type in read.WEIGHTED][number]
        weight = read.constant(node.inputs[1])
        if weight is not None and weight.shape[0] == 32:
            both = changed(both, number, copied(1.0))
    done, notes = reduced(both)
    assert any("duplicate" in n for n in notes)
    assert_same(both, done)


def test_bounds_follow_from_uint8_inputs() -> None:
    """For uint8 inputs, rows of negative weights never pass their Relu, and rows of positive weights always do."""
    model = chain()
    first = next(n for n in model.graph if n.op_type == "Conv")
    port = model.graph.inputs[0]
    port.dtype = ir.DataType.UINT8
    cast = edit.insert_before(model, first, "Cast", [port], "floats", {"to": 1})
    scaled = edit.insert_before(
        model, first, "Div", [cast, edit.add_constant(model, np.float32(255).reshape(()), "scale")], "scaled"
    )
    first.replace_input_with(0, scaled)

    def signed(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[:16] = -np.abs(weight[:16])
        bias[:16] = -0.1

    model = changed(model, 0, signed)
    evidence = evidence_for(model, synthetic(signature(model), 2))
    applied = SIMPLIFY.apply(evidence, REDUCTIONS)
    done, notes = applied.model, applied.notes
    assert any("16 channels are always zero" in n for n in notes)
    assert any("16 channels without effect" in n for n in notes)
    feed = {"image": np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)}
    one, two = (run(open_session(m), feed)[0] for m in (model, done))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("middle", "wide", "merged"), [(32, 8, True), (4, 32, False)])
def test_linear_layers_are_merged_where_that_is_cheaper(middle: int, wide: int, merged: bool) -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", wide))
    y = net.relu(net.conv(net.conv(x, middle, k=1), wide, k=1))
    model = net.model(net.head(y), nets.IMAGE, ["N", 10])
    done, notes = reduced(model)
    assert any("linear" in n for n in notes) == merged
    assert (len([n for n in done.graph if n.op_type == "Conv"]) == 2) == merged
    assert_same(model, done)


def test_padding_between_linear_layers_prevents_merging_a_bias() -> None:
    net = nets.image_net()
    model = net.model(
        net.head(net.relu(net.conv(net.conv(net.relu(net.conv("image", 8)), 32, k=1), 8))), nets.IMAGE, ["N", 10]
    )
    done, notes = reduced(model)
    assert not any("linear" in n for n in notes)
    assert_same(model, done)

    def unbiased(weight: np.ndarray, bias: np.ndarray) -> None:
        bias[:] = 0

    plain = changed(model, 1, unbiased)
    done, notes = reduced(plain)
    assert any("linear" in n for n in notes)
    assert_same(plain, done)


def test_channels_constant_on_samples_are_folded_on_request_only() -> None:
    """Half of the channels are zero behind the Relu on these samples, but not for every input."""
    model = nets.residual(width=32)

    def low(weight: np.ndarray, bias: np.ndarray) -> None:
        bias[:16] = -1e3

    model = changed(model, 1, low)
    data = nets.samples(model, 8)
    assert not any("without effect" in n for n in reduced(model)[1])
    done = simplify(model, data, calibrated=True)
    assert read.parameters(done.model) < read.parameters(simplify(model).model)
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
    assert read.parameters(done.model) < read.parameters(model)
    np.testing.assert_allclose(nets.outputs(model, data), nets.outputs(done.model, data), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(grammar.networks(), st.sampled_from([1.0, 1.0, 0.5, 3.0]), st.integers(0, 99))
def test_merging_duplicates_of_random_networks_keeps_the_outputs(model: ir.Model, factor: float, seed: int) -> None:
    """Merging duplicate channels of random networks keeps the outputs.

    Half of the channels of each group are made equal to another channel, or in its producer a multiple of it.
    """
    evidence = evidence_for(model, nets.samples(model, 4))
    work = evidence.model.clone()
    nodes = {n.name: n for n in work.graph}
    for group in evidence.channels.groups:
        for place in group.slices if not group.sliced else ():
            array = read.constant(nodes[place.node].inputs[place.operand])
            if place.role == "in" or array is None or array.dtype != np.float32:
                continue
            rows = np.array(np.moveaxis(array, place.axis, 0))
            for channel in range(group.size // 2, group.size):
                times = factor if place.node == group.producers[0] else 1.0
                rows[place.positions[channel]] = (
                    np.float32(times) * rows[place.positions[seed % max(group.size // 2, 1)]]
                )
            edit.set_input(
                work,
                nodes[place.node],
                place.operand,
                np.moveaxis(rows, 0, place.axis),
                f"{place.node}_{place.operand}_same",
            )
    again = evidence_for(work, evidence.data)
    done = SIMPLIFY.apply(again, [{"merge": "alike"}, {"remove": "idle"}])
    found = nets.outputs(work, evidence.data), nets.outputs(done.model, evidence.data)
    np.testing.assert_allclose(
        *found, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(found[0]).max()))
    )  # sums in another order
    if factor == 1.0 and any(g.internal and not g.sliced and g.size > 1 for g in again.channels.groups):
        assert any("duplicate" in n for n in done.notes) or not _has_plain_group(again)


def _has_plain_group(evidence: Evidence) -> bool:
    """Whether some group is produced and read by plain layers only, whose duplicates must be merged."""
    nodes = {n.name: n for n in evidence.model.graph}
    return any(
        g.size > 1 and not g.sliced and g.readers and all(nodes[p.node].op_type in ("Conv", "Gemm") for p in g.slices)
        for g in evidence.channels.groups
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(grammar.networks(), st.booleans())
def test_no_value_exceeds_its_bounds(model: ir.Model, squashed: bool) -> None:
    """squashed: a Sigmoid in front of the first layer bounds all following values."""
    work = edit.canonical(model)
    if squashed:
        first = next(n for n in work.graph if n.op_type == "Conv")
        first.replace_input_with(0, edit.insert_before(work, first, "Sigmoid", [first.inputs[0]], "squashed"))
    evidence = evidence_for(work, nets.samples(model, 4))
    known = value_bounds(evidence.model, evidence.trace)
    names = [
        v.name for n in evidence.model.graph for v in n.outputs if v.name in known and v.name in evidence.trace.shapes
    ]
    for values in evidence.stream(names) if names else ():
        for name, value in values.items():
            slack = 1e-5 * max(float(np.abs(value).max()), 1.0)
            assert (value >= known[name].low - slack).all(), name
            assert (value <= known[name].high + slack).all(), name
    if squashed:
        assert any(np.isfinite(b.high).all() for b in known.values())


def test_computed_clip_limits_give_no_bounds() -> None:
    """A Clip with computed limits may produce any value."""
    net = nets.Net()
    low, top = net.op("Relu", ["x"], 8), net.op("ReduceMin", ["y"], 1, keepdims=0)
    clipped = net.op("Clip", [low, "", top], 8)
    weight = net.constant(np.ones((8, 4), np.float32))
    model = net.model(
        net.op("MatMul", [net.op("Relu", [clipped], 8), weight], 4), {"x": ["N", 8], "y": ["M", 1]}, ["N", 4]
    )
    evidence = evidence_for(model, None)
    done = SIMPLIFY.apply(evidence, [{"fold": "relu"}, {"bounds": "relu"}])
    feed = {"x": np.ones((2, 8), np.float32), "y": np.full((2, 1), -3, np.float32)}
    one, two = (run(open_session(m), feed)[0] for m in (model, done.model))
    np.testing.assert_array_equal(one, two)


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

"""Integer operators instead of pairs: equal numbers for every supported operator, pairs for the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from onnxpress import quantize
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.model.files import load, to_bytes
from onnxpress.passes.int8.quantization_recipe import RecipeOptions
from onnxpress.passes.int8.quantize import QUANTIZE
from onnxpress.passes.int8.static_int8 import quantizable, quantize_actions
from onnxpress.plan.plan import apply_plan, read_plan
from tests import grammar, nets

PLAIN = RecipeOptions("minmax", False, "nearest")


def both(model: ir.Model, count: int = 8) -> tuple[ir.Model, ir.Model]:
    """The model with pairs, and with integer operators."""
    evidence = evidence_for(model, nets.samples(model, count, sequence=12))
    actions = quantize_actions(quantizable(evidence), evidence, PLAIN)
    pairs, operators = (
        QUANTIZE.apply(evidence, [*actions, {"format": form}] if actions else []).model for form in ("qdq", "qoperator")
    )
    return pairs, operators


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in model.graph)


def of_everything() -> ir.Model:
    """Every operator that has an integer form or moves integers."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    x = net.op("MaxPool", [x], 16, kernel_shape=[2, 2], strides=[2, 2])
    left = net.op("LeakyRelu", [net.conv(x, 16)], 16, alpha=0.1)
    gate = net.op("Sigmoid", [net.conv(x, 16)], 16)
    x = net.op("Mul", [left, gate], 16)
    first, second = net.name("part"), net.name("part")
    sizes = net.constant(np.array([8, 8]), "parts")
    net.nodes.append(nets.helper.make_node("Split", [x, sizes], [first, second], name=net.name("split"), axis=1))
    net.widths.update({first: 8, second: 8})
    x = net.op("Concat", [net.relu(net.conv(first, 8)), net.relu(net.conv(second, 8))], 16, axis=1)
    x = net.add(net.conv(x, 16), x)
    x = net.relu(net.conv(net.op("AveragePool", [x], 16, kernel_shape=[2, 2]), 16))
    return net.model(net.head(x), nets.IMAGE, ["N", 10])


def test_every_supported_operator_is_converted() -> None:
    pairs, operators = both(of_everything())
    found = kinds(operators)
    assert found["DequantizeLinear"] == 0
    assert found["QuantizeLinear"] == 1, "the input's"
    wanted = "QLinearConv QLinearLeakyRelu QLinearSigmoid QLinearMul QLinearConcat QLinearAdd QLinearAveragePool QGemm"
    assert set(wanted.split()) <= set(found)
    assert len(to_bytes(operators)) < len(to_bytes(pairs))
    data = nets.samples(operators, 8)
    np.testing.assert_allclose(nets.outputs(operators, data), nets.outputs(pairs, data), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(grammar.networks())
def test_outputs_are_those_of_the_pairs(model: ir.Model) -> None:
    """For random networks, up to the rounding of fused kernels."""
    pairs, operators = both(model)
    data = nets.samples(model, 4)
    one, other = nets.outputs(operators, data), nets.outputs(pairs, data)
    assert np.abs(one - other).max() <= 0.05 * max(np.abs(other).max(), 1e-6)


@pytest.mark.parametrize("post", [True, False])
def test_products_without_a_pair_behind_have_float_outputs(post: bool) -> None:
    pairs, operators = both(nets.transformer(post=post))
    assert kinds(operators)["MatMulIntegerToFloat"] > 0
    data = nets.samples(pairs, 4, sequence=10)
    np.testing.assert_allclose(nets.outputs(operators, data), nets.outputs(pairs, data), rtol=1e-4, atol=1e-4)


def test_an_activation_that_the_range_does_not_imply_keeps_its_pairs() -> None:
    """A Clip to [0, 6] in front of a Q with a larger range would be lost."""
    net = nets.image_net()
    bounds = [net.constant(np.float32(v).reshape(()), n) for v, n in ((0, "low"), (6, "high"))]
    x = net.op("Clip", [net.conv("image", 16), *bounds], 16)
    model = net.model(net.head(net.relu(net.conv(x, 16))), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, nets.samples(model, 8))
    actions = quantize_actions(quantizable(evidence), evidence, PLAIN)
    name = next(n.outputs[0].name for n in evidence.model.graph if n.op_type == "Clip")
    for high, clips in ((6.0, 0), (20.0, 1)):
        given: list[dict[str, object]] = [d for d in actions if "ranges" not in d]
        given += [{"ranges": {str(name): [0.0, high]}}, {"format": "qoperator"}]
        done = QUANTIZE.apply(evidence, given).model
        assert kinds(done)["Clip"] == clips
        data = nets.samples(model, 4)
        pairs = QUANTIZE.apply(evidence, given[:-1]).model
        np.testing.assert_allclose(nets.outputs(done, data), nets.outputs(pairs, data), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["pool and relu", "shuffle", "resize", "pad", "gather", "slice"])
def test_data_movement_is_on_integers(kind: str) -> None:
    """Data movement that onnxruntime supports on integers; an activation behind a node stays between pairs."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    if kind == "pool and relu":
        x = net.relu(net.op("MaxPool", [net.conv(x, 16)], 16, kernel_shape=[2, 2]))
    elif kind == "shuffle":
        x = net.op("DepthToSpace", [x], 4, blocksize=2)
    elif kind == "resize":
        x = net.op("Resize", [x, "", net.constant(np.array([1, 1, 2, 2], np.float32), "scales")], 16, mode="nearest")
    elif kind == "pad":
        x = net.op("Pad", [x, net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")], 16)
    elif kind == "gather":
        x = net.op("Gather", [x, net.constant(np.array([3, 1, 2, 0]), "picks")], 4, axis=1)
    else:
        numbers = [net.constant(np.array([n]), net.name("cut")) for n in (0, 8, 1)]
        x = net.op("Slice", [x, *numbers], 8)
    pairs, operators = both(net.model(net.head(net.relu(net.conv(x, 16))), nets.IMAGE, ["N", 10]))
    data = nets.samples(operators, 6)
    np.testing.assert_allclose(nets.outputs(operators, data), nets.outputs(pairs, data), rtol=1e-5, atol=1e-5)
    assert kinds(operators)["DequantizeLinear"] <= (1 if kind == "pool and relu" else 0)


def test_the_command_writes_and_replays_it(tmp_path: Path) -> None:
    model = nets.mobile(width=32)
    data, target = nets.samples(model, 8), tmp_path / "q.onnx"
    done = quantize(model, data, format="qoperator", output=target, plan=tmp_path / "plan.json")
    assert kinds(load(target))["QLinearConv"] > 0
    again = apply_plan(read_plan(tmp_path / "plan.json"), model, data).model
    assert to_bytes(again) == to_bytes(done.model)
    nothing = quantize(model, data, format="qoperator", exclude=("Conv", "Gemm"))
    assert kinds(nothing.model)["QLinearConv"] == 0


def test_an_unknown_format_is_refused() -> None:
    model = nets.mobile(width=32)
    evidence = evidence_for(model, nets.samples(model, 4))
    with pytest.raises(InputProblem, match="unknown format"):
        QUANTIZE.apply(evidence, [{"nodes": sorted(quantizable(evidence))}, {"format": "other"}])

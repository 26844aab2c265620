"""Channels brought to like ranges: exact in float, better in integers; what must not be scaled is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Scorer, logits_model
from onnxpress.model import edit, read
from onnxpress.model.files import to_bytes
from onnxpress.passes.int8 import quantization_recipe
from onnxpress.passes.int8.equalize import EQUALIZE, ChannelStatistics, expected_error, plan_equalize, sites
from onnxpress.passes.int8.quantization_recipe import (
    QuantizationRecipe,
    RecipeOptions,
    choose_recipe,
    equalized_evidence,
)
from onnxpress.passes.int8.static_int8 import quantizable, quantize
from tests import nets


def uneven(model: ir.Model, factor: float = 30.0) -> ir.Model:
    """The same function with the channels of every tensor that can be scaled apart by up to this factor."""
    evidence = evidence_for(model, nets.samples(model, 2))
    rng = np.random.default_rng(0)
    by = [
        {"tensor": s.tensor, "by": (factor ** rng.uniform(-1, 1, s.channels)).tolist()}
        for s in sites(evidence.model, evidence.trace)
    ]
    assert by
    return EQUALIZE.apply(evidence, by).model


def grouped() -> ir.Model:
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    x = net.relu(net.conv(x, 32, group=4))
    return net.model(net.head(net.relu(net.depthwise(x))), nets.IMAGE, ["N", 10])


def pre_norm() -> ir.Model:
    return nets.transformer(post=False)


def padded() -> ir.Model:
    """Conv, Relu, a Pad of zeros, a Transpose to channels last, a MatMul."""
    net = nets.image_net()
    x = net.op("MaxPool", [net.relu(net.conv("image", 16))], 16, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Pad", [x, net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")], 16)
    x = net.op("Transpose", [x], 16, perm=[0, 2, 3, 1])
    x = net.op("MatMul", [x, net.constant((net.rng.standard_normal((16, 16)) / 4).astype(np.float32))], 16)
    x = net.op("Transpose", [net.relu(x)], 16, perm=[0, 3, 1, 2])
    return net.model(net.head(net.relu(net.conv(x, 16))), nets.IMAGE, ["N", 10])


NETS: dict[str, Callable[[], ir.Model]] = {
    "mobile": lambda: nets.mobile(width=32),
    "grouped": grouped,
    "norm": pre_norm,
    "padded": padded,
}


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_it_is_exact_and_helps_integers(build: Callable[[], ir.Model]) -> None:
    model = build()
    crooked = uneven(model)
    data = nets.samples(model, 24, sequence=24)
    np.testing.assert_allclose(nets.outputs(crooked, data), nets.outputs(model, data), rtol=1e-3, atol=1e-5)
    evidence = evidence_for(crooked, data)
    by = plan_equalize(evidence)
    done = EQUALIZE.apply(evidence, by).model
    np.testing.assert_allclose(nets.outputs(done, data), nets.outputs(model, data), rtol=1e-3, atol=1e-5)
    assert in_int8(evidence, QuantizationRecipe("minmax", tuple(by))) < 0.5 * in_int8(
        evidence, QuantizationRecipe("minmax")
    )


def in_int8(evidence: Evidence, recipe: QuantizationRecipe) -> float:
    """nmse of everything in int8."""
    done = quantize(evidence, quantizable(evidence), recipe, True, True).model
    return Scorer(evidence.model, evidence.samples()).score(to_bytes(done)).nmse


def test_the_norm_in_front_of_several_readers_takes_the_factors() -> None:
    """SmoothQuant: queries, keys and values read one tensor; what makes it is the normalisation's scale and bias."""
    evidence = evidence_for(pre_norm(), nets.samples(pre_norm(), 4, sequence=8))
    nodes = {n.name: n for n in evidence.model.graph}
    made = {nodes[p.node].op_type for s in sites(evidence.model, evidence.trace) for p in s.made}
    assert "LayerNormalization" in made
    assert max(len(s.read) for s in sites(evidence.model, evidence.trace)) >= 2


def chain(middle: Callable[[nets.Net, str], str]) -> list[str]:
    """Tensors that can be scaled in Conv - something - Conv - Relu - head."""
    net = nets.image_net()
    x = net.conv(middle(net, net.conv("image", 8)), 8)
    evidence = evidence_for(net.model(net.head(net.relu(x)), nets.IMAGE, ["N", 10]), None)
    first = next(n.outputs[0].name for n in evidence.model.graph if n.op_type == "Conv")
    return [s.tensor for s in sites(evidence.model, evidence.trace) if s.tensor == first]


def capped(net: nets.Net, x: str) -> str:
    bounds = [net.constant(np.float32(v).reshape(()), n) for v, n in ((0, "low"), (6, "high"))]
    return net.op("Clip", [x, *bounds], 8)


REFUSED: dict[str, Callable[[nets.Net, str], str]] = {
    "a Clip cuts at fixed heights": capped,
    "a Sigmoid bends": lambda net, x: net.op("Sigmoid", [x], 8),
    "a residual Add has another side": lambda net, x: net.add(net.relu(x), net.conv("image", 8)),
    "channels are summed": lambda net, x: net.op("Mul", [x, net.op("ReduceMean", [x], 1, axes=[1])], 8),
    "a Softmax sees others": lambda net, x: net.op("Softmax", [x], 8, axis=1),
}


@pytest.mark.parametrize("middle", REFUSED.values(), ids=REFUSED)
def test_what_does_not_keep_factors_is_left_alone(middle: Callable[[nets.Net, str], str]) -> None:
    assert not chain(middle)


def test_what_keeps_factors_is_found() -> None:
    assert chain(lambda net, x: net.relu(x))
    assert chain(lambda net, x: net.op("LeakyRelu", [x], 8, alpha=0.1))
    assert chain(lambda net, x: net.op("MaxPool", [x], 8, kernel_shape=[2, 2]))


def test_shared_weights_and_sub_graphs_are_left_alone() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    weight = net.constant((net.rng.standard_normal((16, 16, 1, 1)) / 4).astype(np.float32))
    for _ in range(2):
        x = net.relu(net.op("Conv", [x, weight], 16))
    y = net.relu(net.conv(x, 16))
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Relu", [y], ["inner"])], "branch", [], [out])
    z = net.name("if")
    flag = net.constant(np.array(True), "flag")
    net.nodes.append(helper.make_node("If", [flag], [z], name=z, then_branch=branch, else_branch=branch))
    net.widths[z] = 16
    evidence = evidence_for(net.model(net.head(z), nets.IMAGE, ["N", 10]), None)
    assert not sites(evidence.model, evidence.trace)


def test_dead_channels_stay_as_they_are() -> None:
    model = nets.mobile(width=32)
    evidence = evidence_for(model, None)
    node = next(n for n in evidence.model.graph if n.op_type == "Conv")
    weight = np.array(read.constant(node.inputs[1]))
    weight[::2] = 0
    edit.set_input(evidence.model, node, 1, weight, "w")
    for operand in range(2, len(node.inputs)):
        edit.set_input(evidence.model, node, operand, np.zeros(len(weight), np.float32), "b")
    evidence = evidence_for(evidence.model, nets.samples(model, 8))
    actions = plan_equalize(evidence)
    assert actions
    for action in actions:
        assert np.isfinite(action["by"]).all()
        assert min(action["by"]) > 0


@pytest.mark.parametrize("by", [[1.0], [-1.0] * 64, [float("nan")] * 64])
def test_wrong_factors_are_refused(by: list[float]) -> None:
    evidence = evidence_for(nets.mobile(width=32), None)
    name = sites(evidence.model, evidence.trace)[0].tensor
    with pytest.raises(InputProblem, match="scales channels wrongly"):
        EQUALIZE.apply(evidence, [{"tensor": name, "by": by}])
    with pytest.raises(InputProblem, match="cannot be scaled"):
        EQUALIZE.apply(evidence, [{"tensor": "nowhere", "by": by}])


def test_the_error_expected_is_the_error_measured() -> None:
    """J of one layer beside rounding its input and weights for real, with factors and without."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((4096, 32))) * 10.0 ** rng.uniform(-1, 1, 32)
    w = rng.standard_normal((48, 32)) * 10.0 ** rng.uniform(-0.5, 0.5, 32)
    seen = ChannelStatistics(np.zeros(32), x.max(axis=0), np.square(x).mean(axis=0))

    def really(s: np.ndarray) -> float:
        step, scale = (x / s).max() / 255, np.abs(w * s).max(axis=1, keepdims=True) / 127
        found = (np.rint(x / s / step) * step) @ (np.rint(w * s / scale) * scale).T
        return float(np.square(found - x @ w.T).sum(axis=1).mean())

    for s in (np.ones(32), seen.high, np.sqrt(seen.high)):
        assert expected_error(s, seen, [w[None, :, :, None]]) == pytest.approx(really(s), rel=0.25)


def test_what_did_not_change_is_not_observed_anew() -> None:
    """The spreads of a scaled model are those that a pass over it would give."""
    from onnxpress.passes.int8.qdq.write import histograms_for

    model = uneven(nets.mobile(width=32))
    evidence = evidence_for(model, nets.samples(model, 16))
    recipe = QuantizationRecipe("minmax", tuple(plan_equalize(evidence)))
    quick, slow = (
        equalized_evidence(evidence, recipe),
        evidence_for(equalized_evidence(evidence, recipe).model, evidence.data),
    )
    for name, spread in histograms_for(slow).items():
        assert (histograms_for(quick)[name].low, histograms_for(quick)[name].high) == pytest.approx(
            (spread.low, spread.high), rel=1e-4, abs=1e-6
        )


def test_the_choice_is_made_on_samples_that_fed_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.mobile(width=32)
    evidence = evidence_for(model, nets.samples(model, 16))
    halves = evidence.halves
    assert halves is not None
    seen: list[tuple[int, str]] = []

    def build(fitted: Evidence, recipe: QuantizationRecipe) -> ir.Model:
        seen.append((halves.index(fitted), str(recipe.ranges)))
        return (
            fitted.model
            if recipe.ranges == "mse"
            else quantize(fitted, quantizable(fitted), QuantizationRecipe("minmax"), False, True).model
        )

    assert choose_recipe(evidence, RecipeOptions(equalize=False, rounding="nearest"), build).ranges == "mse"
    assert {half for half, _ in seen} == {0, 1}, "a small model is judged both ways"

    judged: list[str] = []

    class Told(Scorer):
        def __init__(self, original: ir.Model | bytes, data: Dataset, name: str = "") -> None:
            judged.append(data.hash)
            super().__init__(original, data, name)

    monkeypatch.setattr(quantization_recipe, "Scorer", Told)
    seen.clear()
    choose_recipe(evidence, RecipeOptions(equalize=False, rounding="nearest"), build)
    assert judged == [halves[1].samples().hash, halves[0].samples().hash]
    assert [half for half, _ in seen][:2] == [0, 1], "in the same order: each on the other's samples"
    assert choose_recipe(evidence, RecipeOptions("entropy", False, "nearest"), build) == RecipeOptions(
        "entropy", False, "nearest"
    ), "what is asked for is done"


def test_only_tensors_that_gain_get_factors() -> None:
    """One helps, one more on top of it, and one harms more than both help: all together would be worse than none."""
    model = uneven(nets.residual(width=16, blocks=3))
    evidence = evidence_for(model, nets.samples(model, 16))
    first, second, third, *_ = (d["tensor"] for d in plan_equalize(evidence))
    weight = next(n for n in evidence.model.graph if n.op_type == "Gemm").inputs[1]
    assert weight is not None and weight.name is not None

    def build(fitted: Evidence, recipe: QuantizationRecipe) -> ir.Model:
        names = {d["tensor"] for d in recipe.equalized}
        made = fitted.model.clone()
        value = made.graph.initializers[weight.name or ""]
        amount = 4 - (first in names) - 2 * (second in names) + 9 * (third in names)
        edit.set_constant(value, np.asarray(read.constant(value)) * np.float32(1 + 0.01 * amount))
        return made

    found = choose_recipe(evidence, RecipeOptions(rounding="nearest"), build)
    assert found.equalize == (second, first)
    assert [d["tensor"] for d in found.on(evidence).equalized] == [first, second]
    assert choose_recipe(evidence, RecipeOptions(equalize=True, rounding="nearest"), build).equalize is True, (
        "what is asked for is done"
    )


def test_a_last_softmax_is_left_out_of_the_judging() -> None:
    net = nets.image_net()
    head = net.head(net.relu(net.conv("image", 8)))
    model = net.model(net.op("Softmax", [head], 10), nets.IMAGE, ["N", 10])
    data = nets.samples(model, 4)
    cut = logits_model(model)
    assert [n.op_type for n in cut.graph][-1] == "Gemm"
    logits = nets.outputs(cut, data)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        shares / shares.sum(axis=1, keepdims=True), nets.outputs(model, data), rtol=1e-4, atol=1e-6
    )
    plain = nets.mobile(width=32)
    assert [n.op_type for n in logits_model(plain).graph] == [n.op_type for n in plain.graph]

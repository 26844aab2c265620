"""Static int8: placement of pairs, fusion in onnxruntime, saturation, and known pitfalls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

import onnxpress
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model import edit, read
from onnxpress.model.files import load, to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.qdq.write import quantization_grid
from onnxpress.passes.int8.quantization_recipe import QuantizationRecipe
from onnxpress.passes.int8.static_int8 import quantizable, quantize
from onnxpress.passes.int8.weight_quantization import quantize_weight
from onnxpress.plan.plan import apply_plan
from onnxpress.runtime.machine import machine_for
from onnxpress.runtime.session import SessionSettings, open_session
from tests import grammar, nets


def int8(model: ir.Model, exact: bool = True, chosen: frozenset[str] | None = None) -> tuple[Evidence, ir.Model]:
    evidence = evidence_for(model, nets.samples(model, 24))
    nodes = placement.default_nodes(evidence.model, evidence.trace) if chosen is None else chosen
    return evidence, quantize(evidence, nodes, QuantizationRecipe(), True, exact).model


def kernels(model: ir.Model, folder: Path) -> list[str]:
    """Operator types that onnxruntime ran, from its profile."""
    session = open_session(model, SessionSettings(profile=str(folder / "p")))
    feeds = next(iter(nets.samples(model, 1).batches(1))).inputs
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    return [e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def test_every_convolution_runs_in_integers(tmp_path: Path) -> None:
    _, done = int8(nets.residual(width=32))
    ran = kernels(done, tmp_path)
    assert ran.count("QLinearConv") == 5
    assert "Conv" not in ran
    assert "FusedConv" not in ran
    assert "Relu" not in ran, "a Relu whose output had a zero point other than 0 would be left over"
    assert ran.count("QLinearAdd") == 2


def test_pads_run_on_integers(tmp_path: Path) -> None:
    """onnxruntime keeps a Pad between a DQ and a Q in float; written on the codes, it runs on integers."""
    model = nets.padded_shortcut()
    _, done = int8(model)
    ran = kernels(done, tmp_path)
    assert ran.count("QLinearConv") == 4
    assert ran.count("Pad") == 2
    assert ran.count("QuantizeLinear") == 1, "only the input is quantized at run time"
    data = nets.samples(model, 24, seed=3)
    wanted = nets.outputs(model, data)
    for level in ("none", "all"):
        assert ((nets.outputs(done, data, level) - wanted) ** 2).mean() < 0.03 * (wanted**2).mean()


def moving(kind: str) -> ir.Model:
    """Convolutions with a data movement operator between them."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    if kind == "Split":
        whole = net.constant(np.array([12, 4], np.int64))
        net.nodes.append(onnx.helper.make_node("Split", [x, whole], ["kept", "worked"], axis=1, name="split"))
        net.widths |= {"kept": 12, "worked": 4}
        x = net.concat("kept", net.relu(net.conv("worked", 4)), "worked")
    elif kind == "Resize":
        times = net.constant(np.array([1, 1, 2, 2], np.float32))
        x = net.op(
            "Resize",
            [x, "", times],
            16,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        x = net.conv(x, 16, stride=2)
    else:
        x = net.op("Gather", [x, net.constant(np.array([3, 1, 0, 9], np.int64))], 4, axis=1)
    return net.model(net.head(net.relu(net.conv(x, 8))), nets.IMAGE, ["N", 10])


@pytest.mark.parametrize("kind", ["Split", "Resize", "Gather"])
def test_data_movement_is_on_integers(kind: str, tmp_path: Path) -> None:
    model = moving(kind)
    _, done = int8(model)
    ran = kernels(done, tmp_path)
    assert ran.count(kind) == 1
    assert "Conv" not in ran and "FusedConv" not in ran
    assert ran.count("QuantizeLinear") == 1, "only the input is quantized at run time"
    data = nets.samples(model, 24, seed=3)
    wanted = nets.outputs(model, data)
    for level in ("none", "all"):
        assert ((nets.outputs(done, data, level) - wanted) ** 2).mean() < 0.03 * (wanted**2).mean()


def test_interpolation_and_constant_tables_stay_in_float() -> None:
    model = moving("Resize")
    resize = next(n for n in model.graph if n.op_type == "Resize")
    resize.attributes["mode"] = ir.AttrString("mode", "linear")
    evidence = evidence_for(model, nets.samples(model, 4))
    node = next(n for n in evidence.model.graph if n.op_type == "Resize")
    assert "interpolates" in (placement.refusal_reason(node, evidence.trace) or "")
    evidence = evidence_for(moving("Gather"), nets.samples(model, 4))
    gather = next(n for n in evidence.model.graph if n.op_type == "Gather")
    assert placement.refusal_reason(gather, evidence.trace) is None
    edit.set_input(evidence.model, gather, 0, np.zeros((1, 16, 8, 8), np.float32), "table")
    assert "constant" in (placement.refusal_reason(gather, evidence.trace) or "")


def test_a_pad_with_a_nonzero_value_stays_in_float() -> None:
    model = nets.padded_shortcut()
    evidence = evidence_for(model, nets.samples(model, 4))
    pad = next(n for n in evidence.model.graph if n.op_type == "Pad")
    edit.set_input(evidence.model, pad, 2, np.array(1.5, np.float32), "fill")
    assert placement.refusal_reason(pad, evidence.trace) == "pads with something other than zero"


def test_biases_tied_through_identity_do_not_keep_a_convolution_in_float(tmp_path: Path) -> None:
    """Exporters share equal biases through Identity, which keeps convolutions in float in onnxruntime."""
    model = canonical(nets.residual(width=32, blocks=2))
    convs = [n for n in model.graph if n.op_type == "Conv"]
    shared = convs[1].inputs[2]
    for node in convs[2:]:
        out = edit.insert_before(model, node, "Identity", [shared], f"{node.name}_tied")
        node.replace_input_with(2, out)
    _, done = int8(model)
    assert kernels(done, tmp_path).count("QLinearConv") == 5


def test_relu_outputs_have_zero_point_zero() -> None:
    _, done = int8(nets.residual(width=16))
    points = []
    for node in done.graph:
        source = node.inputs[0].producer() if node.op_type == "QuantizeLinear" and node.inputs[0] is not None else None
        if source is not None and source.op_type == "Relu":
            points.append(int(read.constant(node.inputs[2])))
    assert len(points) > 2
    assert not any(points)


def test_a_float_convolution_between_integer_ones_stays_in_float(tmp_path: Path) -> None:
    """onnxruntime quantizes a float Conv between DQ and Q per tensor at load, which the layout must prevent."""
    evidence = evidence_for(nets.residual(width=32, blocks=2), nets.samples(nets.residual(width=32, blocks=2), 8))
    middle = [n.name for n in evidence.model.graph if n.op_type == "Conv"][2]
    chosen = placement.drop_unprofitable(
        evidence.model, placement.default_nodes(evidence.model, evidence.trace) - {middle}
    )
    done = quantize(evidence, chosen, QuantizationRecipe(), False, True).model
    ran = kernels(done, tmp_path)
    assert ran.count("QLinearConv") == 4
    assert sum(name in ("Conv", "FusedConv") for name in ran) == 1


def test_weights_are_smaller_and_no_float_weights_remain() -> None:
    evidence, done = int8(nets.residual(width=32))
    assert not any(
        v.const_value.dtype == ir.DataType.FLOAT and v.const_value.size > 64 for v in done.graph.initializers.values()
    )
    assert evidence.model is not done


def test_already_quantized_model_is_left_alone() -> None:
    _, done = int8(nets.residual(width=16))
    evidence = evidence_for(done, nets.samples(done, 4))
    assert not quantizable(evidence)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_every_range_method_is_close(method: str) -> None:
    model = nets.residual(width=32)
    evidence = evidence_for(model, nets.samples(model, 24))
    done = quantize(
        evidence, placement.default_nodes(evidence.model, evidence.trace), QuantizationRecipe(method), True, True
    ).model
    data = nets.samples(model, 24, seed=3)
    wanted = nets.outputs(model, data)
    assert ((nets.outputs(done, data, "all") - wanted) ** 2).mean() < 0.03 * (wanted**2).mean()


def test_the_range_is_reduced_only_as_far_as_necessary() -> None:
    model = nets.residual(width=16, blocks=1)
    node = [n for n in canonical(model).graph if n.op_type == "Conv"][1]
    weight = np.zeros((16, 16, 3, 3), np.float32)
    weight[0, :2, 1, 1] = 1.0  # two full-scale neighbours: saturate at code 255
    weight[1, 0, 1, 1] = 1.0  # one alone cannot
    weight[2, :2, 1, 1] = 1.0, 0.25
    weight[3, 1:3, 1, 1] = 1.0  # no neighbours: the second is of the next pair
    codes = quantize_weight(node, weight, np.full(16, 255.0))
    assert codes.reduced_range.tolist()[:4] == [True, False, True, False]
    assert [np.abs(row).max() for row in codes.values[:4]] == [64, 127, 102, 127]
    assert not quantize_weight(node, weight, np.full(16, 100.0)).reduced_range.any(), "codes that small never saturate"
    assert not quantize_weight(node, weight, None).reduced_range.any()


def saturating(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """u8 x s8 products like vpmaddubsw: pairs saturate at 16 bits, then 32-bit sums. rows [n, K], weights [M, K]."""
    if rows.shape[1] % 2:
        rows, weights = np.pad(rows, [(0, 0), (0, 1)]), np.pad(weights, [(0, 0), (0, 1)])
    products = rows[:, None, :].astype(np.int64) * weights[None].astype(np.int64)
    pairs = products[..., 0::2] + products[..., 1::2]
    return np.clip(pairs, -32768, 32767).sum(axis=-1)


def test_a_file_for_avx2_computes_without_saturation() -> None:
    """Emulated: with weights written for AVX2, saturating pair sums equal exact ones on the observed codes."""
    rng = np.random.default_rng(0)
    model = nets.residual(width=16, blocks=1)
    node = [n for n in canonical(model).graph if n.op_type == "Conv"][1]
    weight = (rng.standard_normal((16, 16, 3, 3)) ** 3).astype(np.float32)
    rows = rng.integers(0, 256, (200, 144))
    order = np.moveaxis(np.arange(144).reshape(16, 3, 3), 0, -1).ravel()  # taps outermost, as the kernels go
    for peaks, safe in ((np.full(16, 255.0), True), (None, False)):
        codes = quantize_weight(node, weight, peaks).values.reshape(16, -1).astype(np.int64)[:, order]
        same = np.array_equal(saturating(rows, codes), rows @ codes.T)
        assert same is safe


def test_default_and_u8u8_kernels_agree() -> None:
    """session.x64quantprecision=1 (u8 x u8, never saturates) gives the default outputs."""
    model = nets.residual(width=32)
    data = nets.samples(model, 24)
    evidence = evidence_for(model, data, machine_for("avx2"))
    done = quantize(
        evidence,
        placement.default_nodes(evidence.model, evidence.trace),
        QuantizationRecipe(),
        True,
        evidence.machine.int8_exact,
    ).model
    feeds = next(iter(data.batches(24))).inputs
    plain = open_session(done).run(None, feeds)[0]
    precise = open_session(done, SessionSettings(config=(("session.x64quantprecision", "1"),))).run(None, feeds)[0]
    np.testing.assert_allclose(plain, precise, atol=0.02 * np.abs(plain).max())


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 3.0), (-2.0, 0.0), (0.0, 0.0), (-1e-12, 1e-12)])
def test_grid_represents_zero(low: float, high: float) -> None:
    made = quantization_grid(low, high)
    assert made.quantize(np.zeros(1))[0] == made.zero_point
    assert 0 <= made.zero_point <= 255
    assert made.scale > 0


def test_a_small_model_shares_scales_of_similar_channels(tmp_path: Path) -> None:
    """Two scales per channel take as much as 8 weights: channels of similar range share one."""
    even, uneven = nets.residual(width=8), nets.residual(width=8)
    rng = np.random.default_rng(0)
    for model, spread in ((even, 0.0), (uneven, 3.0)):
        for node in [n for n in model.graph if n.op_type in placement.COMPUTE]:
            shape = read.constant(node.inputs[1]).shape
            rows = np.exp(spread * rng.uniform(-1, 1, shape[0])).reshape(-1, *[1] * (len(shape) - 1))
            edit.set_input(model, node, 1, (rng.uniform(-1, 1, shape) * rows).astype(np.float32), "w")
    for model, shared in ((even, True), (uneven, False)):
        _, done = int8(model)
        scales = [
            n.inputs[1].const_value.size
            for n in done.graph
            if n.op_type == "DequantizeLinear" and n.inputs[0].const_value is not None
        ]
        assert (set(scales) == {1}) == shared, scales
        assert "Conv" not in kernels(done, tmp_path)


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(grammar.networks())
def test_random_networks_load_and_keep_their_outputs(model: ir.Model) -> None:
    """Random networks: the result passes the checker, runs, and keeps 15 dB or more."""
    data = nets.samples(model, 32)
    done = onnxpress.quantize(model, data).model
    onnx.checker.check_model(ir.to_proto(done), full_check=True)
    wanted, found = (nets.outputs(m, data, "all").astype(np.float64) for m in (model, done))
    assert ((found - wanted) ** 2).sum() <= 10**-1.5 * (wanted**2).sum()


def old_file(opset: int) -> onnx.ModelProto:
    """A residual chain of older exporters: Clip and Squeeze with attributes, Dropout, a Pad with an attribute."""
    rng = np.random.default_rng(0)
    shapes = [(16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3), (10, 16)]
    weights = {f"w{i}": (rng.standard_normal(s) * 0.2).astype(np.float32) for i, s in enumerate(shapes)}
    weights["b3"] = np.zeros(10, np.float32)
    clip = {"inputs": ["c1"], "min": 0.0, "max": 6.0} if opset < 11 else {"inputs": ["c1", "zero", "six"]}
    pad = {"inputs": ["r0"], "pads": [0, 0, 1, 1, 0, 0, 1, 1]} if opset < 11 else {"inputs": ["r0", "pads"]}
    weights |= (
        {} if opset < 11 else {"zero": np.float32(0), "six": np.float32(6), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    )
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], pads=[1] * 4),
        node("Relu", ["c0"], ["r0"]),
        node("Pad", pad.pop("inputs"), ["p0"], **pad),
        node("Conv", ["p0", "w1"], ["c1"]),
        node("Clip", clip.pop("inputs"), ["r1"], **clip),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        node("Add", ["c2", "r0"], ["s"]),
        node("GlobalAveragePool", ["s"], ["g"]),
        node("Squeeze", ["g"], ["f"], axes=[2, 3]),
        node("Dropout", ["f"], ["d"], **({"ratio": 0.5} if opset < 12 else {})),
        node("Gemm", ["d", "w3", "b3"], ["y"], transB=1),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", ["n", 3, 8, 8]), ("y", ["n", 10]))
    ]
    constants = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    if opset < 9:  # a weight was an input with a default, too
        ends[:1] += [onnx.helper.make_tensor_value_info(c.name, c.data_type, list(c.dims)) for c in constants]
    graph = onnx.helper.make_graph(nodes, "g", ends[:-1], ends[-1:], constants)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=3 if opset < 9 else 6
    )


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_older_operator_sets_are_converted(opset: int, tmp_path: Path) -> None:
    onnx.save(old_file(opset), tmp_path / "old.onnx")
    model = load(tmp_path / "old.onnx")
    data = nets.samples(model, 16)
    done = onnxpress.quantize(model, data).model
    ran = kernels(done, tmp_path)
    assert (ran.count("QLinearConv"), ran.count("Conv"), ran.count("FusedConv")) == (3, 0, 0)
    assert [o.version for o in ir.to_proto(done).opset_import if o.domain == ""] == [13]
    wanted, found = (nets.outputs(m, data, "all") for m in (model, done))
    assert ((found - wanted) ** 2).mean() < 0.01 * (wanted**2).mean()


@pytest.mark.parametrize("opset", [17, 21])
def test_activations_of_16_bits_have_a_small_loss(opset: int) -> None:
    """Pairs of the standard where its operator set has them, else of onnxruntime; equal weights in both."""
    net = nets.Net(opset=opset)
    net.widths["image"] = 3
    x = net.relu(net.conv("image", 16))
    x = net.op("Pad", [x, net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")], 16)
    x = net.relu(net.add(net.conv(net.relu(net.conv(x, 16)), 16), x))
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    data = nets.samples(model, 16)
    options = {"ranges": "minmax", "equalize": "never", "rounding": "nearest"}
    short, wide = (onnxpress.quantize(model, data, activations=bits, **options) for bits in (8, 16))
    loss = [Scorer(model, data).score(to_bytes(done.model)).nmse for done in (short, wide)]
    assert loss[1] < loss[0]
    domains = {n.domain for n in wide.model.graph if n.op_type == "QuantizeLinear"}
    assert domains == ({""} if opset >= 21 else {"com.microsoft"})
    zeros = {
        z.dtype
        for n in wide.model.graph
        if n.op_type == "QuantizeLinear" and (z := read.constant(n.inputs[2])) is not None
    }
    assert zeros == {np.dtype(np.uint16)}
    assert any("16 bits" in note for note in wide.notes)
    again = apply_plan(wide.plan, model, data).model
    assert to_bytes(again) == to_bytes(wide.model)


def test_unsupported_16_bit_requests_are_refused() -> None:
    model = nets.mobile(width=32)
    data = nets.samples(model, 4)
    with pytest.raises(InputProblem, match="one of 8, 16"):
        onnxpress.quantize(model, data, activations=4)
    with pytest.raises(InputProblem, match="16 bits"):
        onnxpress.quantize(model, data, activations=16, format="qoperator")


def test_weights_of_constant_inputs_are_rounded_to_nearest() -> None:
    """A Gram matrix of zeros has no inverse."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 8))
    zero = net.op("Mul", [x, net.constant(np.float32(0).reshape(()))], 8)
    model = net.model(net.head(net.relu(net.add(net.conv(zero, 8), net.conv(x, 8)))), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, nets.samples(model, 8))
    done = quantize(
        evidence, quantizable(evidence), QuantizationRecipe("minmax", rounding="output-aware"), True, True
    ).model
    assert np.isfinite(nets.outputs(done, nets.samples(model, 4))).all()

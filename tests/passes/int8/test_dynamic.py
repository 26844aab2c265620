"""Dynamic int8: fused by onnxruntime, near the original without samples, shared inputs and weights written once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress import dynamic
from onnxpress.measure.evidence import evidence_for
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.int8.dynamic import DYNAMIC, plan_dynamic, why_not
from onnxpress.runtime import vpmaddubsw_saturation
from onnxpress.runtime.machine import machine_for
from onnxpress.runtime.session import open_session, run
from tests import nets
from tests.passes.weights.test_bit_packing import everything, operators

pytestmark = pytest.mark.unit


def made(model: ir.Model, cpu: str = "vnni") -> ir.Model:
    evidence = evidence_for(model, None, machine_for(cpu))
    return DYNAMIC.apply(evidence, plan_dynamic(evidence)).model


def test_near_the_original_and_fused(tmp_path: Path) -> None:
    model = nets.transformer(width=32)
    done = dynamic(model)
    data = nets.samples(model, 8)
    wanted = nets.outputs(model, data)
    assert ((nets.outputs(done.model, data, "all") - wanted) ** 2).mean() < 0.01 * (wanted**2).mean()
    assert done.bytes_after < 0.6 * done.bytes_before
    ran = operators(done.model, tmp_path)
    assert not ran["MatMulInteger"], ran
    assert ran["DynamicQuantizeMatMul"] + ran["MatMulIntegerToFloat"] == 13


def test_both_layouts_of_gemm_and_a_bias() -> None:
    model = everything()
    data = nets.samples(model, 8)
    done = made(model)
    wanted = nets.outputs(model, data)
    assert ((nets.outputs(done, data) - wanted) ** 2).mean() < 0.01 * (wanted**2).mean()
    kinds = Counter(n.op_type for n in done.graph)
    assert kinds["MatMulInteger"] == 3 and not kinds["Gemm"] and not kinds["MatMul"] and kinds["Conv"] == 1


def test_what_several_read_is_quantized_once() -> None:
    net = nets.Net()
    weight = net.constant(np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32))
    other = net.constant(np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32))
    x = net.op("Add", [net.op("MatMul", ["rows", weight], 16), net.op("MatMul", ["rows", other], 16)], 16)
    model = net.model(net.op("MatMul", [x, weight], 16), {"rows": ["N", 16]}, ["N", 16])
    done = made(model)
    assert sum(n.op_type == "DynamicQuantizeLinear" for n in done.graph) == 2
    assert sum(v.const_value.size == 256 for v in done.graph.initializers.values()) == 2


def test_weights_are_as_large_as_products_allow() -> None:
    model = everything()
    for cpu in ("avx2", "vnni"):
        constants = made(model, cpu).graph
        codes = [v.const_value.numpy() for v in constants.initializers.values() if v.const_value.dtype.name == "INT8"]
        matrices = [c for c in codes if c.size > 1]
        assert len(matrices) == 3
        for columns in matrices:
            tops = np.abs(columns.astype(int)).max(axis=0)
            heavy = vpmaddubsw_saturation.pair_load(columns.T, np.full(len(columns), 255)) > 1
            assert not heavy.any() and 64 <= tops.min() < 127 if cpu == "avx2" else heavy.any() and (tops == 127).all()


def test_convolutions_and_computed_weights_are_refused() -> None:
    model = canonical(nets.transformer())
    reasons = {n.op_type: why_not(n) for n in model.graph if why_not(n) is not None and n.op_type == "MatMul"}
    assert "computed" in str(reasons["MatMul"])
    conv = next(n for n in nets.residual().graph if n.op_type == "Conv")
    assert "Conv" in str(why_not(conv))


def test_a_product_behind_masked_rows_stays_in_float() -> None:
    """Softmax of minus infinity alone is NaN, which a Where takes out later: the range of such an input is NaN."""
    helper, kind = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(0)
    weights = {n: (rng.standard_normal((16, 16)) / 4).astype(np.float32) for n in ("w1", "w2")}
    constants = [onnx.numpy_helper.from_array(v, n) for n, v in weights.items()]
    constants += [
        onnx.numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("low", -np.inf), ("zero", 0.0))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Cast", ["mask"], ["m"], to=kind.BOOL),
        helper.make_node("Where", ["m", "a", "low"], ["b"]),
        helper.make_node("Softmax", ["b"], ["c"], axis=-1),
        helper.make_node("MatMul", ["c", "w2"], ["d"], name="second"),
        helper.make_node("Where", ["m", "d", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info("x", kind.FLOAT, ["N", 6, 16])]
    ends.append(helper.make_tensor_value_info("mask", kind.INT64, ["N", 6, 1]))
    graph = helper.make_graph(
        nodes, "g", ends, [helper.make_tensor_value_info("y", kind.FLOAT, ["N", 6, 16])], constants
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    done = dynamic(model)
    assert [n.name for n in done.model.graph if n.op_type == "MatMul"] == ["second"]
    assert any("NaN" in r.reason and r.unit == "second" for r in done.refused)
    feeds = {
        "x": rng.standard_normal((1, 6, 16)).astype(np.float32),
        "mask": np.array([[[1], [1], [0], [1], [0], [0]]]),
    }
    assert np.isfinite(run(open_session(done.model), feeds)[0]).all()

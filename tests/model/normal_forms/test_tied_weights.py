"""Tied matrices: stored once, cut together, and never a larger file."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress import LowRankOptions, PruneOptions, run_pass
from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import evidence_for
from onnxpress.model import read
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.tied_weights import fold_transposes, store_once, tied_pairs, tied_to
from onnxpress.model.parameter_count import parameters
from onnxpress.model.signature import signature
from onnxpress.plan.same_values import different_values

ROWS, WIDTH = 300, 24
WAYS = ("transpose", "gemm", "two initializers")


def language_model(way: str) -> ir.Model:
    """Tokens to scores of tokens; the table is also the last matrix."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    weights = {"table": table, "w1": floats(rng, WIDTH, 48), "w2": floats(rng, 48, WIDTH)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "look_up"),
        helper.make_node("MatMul", ["e", "w1"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], "second"),
        helper.make_node("Add", ["c", "e"], ["d"], "sum"),
    ]
    shape: list[int | str] = ["n", 6, ROWS]
    if way == "gemm":
        nodes += [
            helper.make_node("ReduceMean", ["d"], ["p"], "pooled", axes=[1], keepdims=0),
            helper.make_node("Gemm", ["p", "table"], ["y"], "scores", transB=1),
        ]
        shape = ["n", ROWS]
    elif way == "transpose":
        nodes += [
            helper.make_node("Transpose", ["table"], ["turned"], "turn", perm=[1, 0]),
            helper.make_node("MatMul", ["d", "turned"], ["y"], "scores"),
        ]
    else:
        weights["turned"] = np.ascontiguousarray(table.T)
        nodes.append(helper.make_node("MatMul", ["d", "turned"], ["y"], "scores"))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def floats(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return (rng.standard_normal((rows, columns)) / rows**0.5).astype(np.float32)


def token_samples(model: ir.Model, count: int = 24) -> Dataset:
    return Dataset.from_arrays({"ids": np.random.default_rng(1).integers(0, ROWS, (count, 6))}, signature(model))


def test_a_transposed_table_becomes_a_matrix_and_is_stored_once_again() -> None:
    model = language_model("transpose")
    work = model.clone()
    fold_transposes(work)
    assert tied_to(work)["table"] and len(tied_pairs(work)) == 1
    assert "Transpose" not in [n.op_type for n in work.graph]
    store_once(work)
    assert not tied_pairs(work)
    assert parameters(work) == parameters(model)
    onnx.checker.check_model(ir.to_proto(work))
    assert not different_values(model, work, token_samples(model))


def test_matrices_that_differ_anywhere_are_not_tied() -> None:
    model = language_model("two initializers")
    turned = model.graph.initializers["turned"]
    array = read.constant(turned)
    assert array is not None and tied_pairs(model)
    array = array.copy()
    array[5, 7] += 1
    turned.const_value = ir.tensor(array)
    assert not tied_pairs(model)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "most"),
    [("simplify", 1.0), ("half", 0.55), ("dynamic", 0.65), ("quantize", 0.65), ("weights", 0.65), ("share", 0.4),
     ("sparsify", 1.0), ("equalize", 1.0), ("lowrank", 1.0), ("prune", 0.95)],
)  # fmt: skip
def test_the_file_does_not_grow(name: str, most: float, way: str) -> None:
    """Beside the original with the table stored once."""
    model = language_model(way)
    data = token_samples(model) if name not in ("simplify", "half", "dynamic") else None
    goals = {"prune": PruneOptions(ratio=0.3), "lowrank": LowRankOptions(ratio=0.7)}
    done = run_pass(name, model, data, goals.get(name))
    once = len(to_bytes(language_model("gemm")))
    assert len(to_bytes(done.model)) <= most * once + 600


@pytest.mark.parametrize("way", WAYS)
def test_a_tied_table_is_cut_once(way: str) -> None:
    """Its channels are one group with those of its other reader."""
    model = language_model(way)
    evidence = evidence_for(model, token_samples(model))
    (stream,) = [g for g in evidence.channels.groups if g.size == WIDTH]
    assert {p.node for p in stream.slices} >= {"look_up", "second", "first", "scores"}

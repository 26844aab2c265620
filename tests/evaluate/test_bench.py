"""Combinations of threads and batch sizes, synthetic inputs and the self-check of a measurement."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.evaluate.bench import BenchConditions, BenchOptions, bench
from onnxpress.model.index_bounds import index_bounds
from onnxpress.runtime.latency import Effort
from tests import nets

SHORT = Effort(seconds=0.15, precision=0.2)


def embedding(rows: int) -> ir.Model:
    """ids [N, L] (cast first) index rows of a table, which are summed over L."""
    table = numpy_helper.from_array(np.ones((rows, 4), np.float32), "table")
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["picked"]),
        helper.make_node("ReduceSum", ["picked", "axis"], ["y"], keepdims=0),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, ["N", "L"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "g", [ids], [y], [table, numpy_helper.from_array(np.array([1]), "axis")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_synthetic_ids_stay_within_the_table() -> None:
    model = embedding(7)
    assert index_bounds(model) == {"ids": 7}
    found = bench(
        {"m": model}, effort=SHORT, conditions=BenchConditions(shape={"ids": (2, 33)})
    )  # out of range would not run
    assert (found.batch, found.timings[0].rounds > 3) == (2, True)


@pytest.mark.alone
def test_every_combination_is_a_point() -> None:
    model = nets.residual(width=8, blocks=1)
    found = bench({"m": model}, effort=SHORT, conditions=BenchConditions(threads=(1, 2), batch=(1, 8)))
    assert [(p.threads, p.batch) for p in found.all_points] == [(1, 1), (1, 8), (2, 1), (2, 8)]
    assert (
        found.all_points[1].timings[0].minimum > 1.2 * found.all_points[0].timings[0].minimum
    )  # what noise cannot lower
    assert found.timings == found.all_points[0].timings
    assert all(p.timings[0].cpu > 0 for p in found.all_points)


@pytest.mark.alone
def test_the_self_check_is_separate() -> None:
    model = nets.residual(width=8, blocks=1)
    found = bench(
        {"a": model, "b": nets.residual(width=16, blocks=1)}, effort=SHORT, options=BenchOptions(self_check=True)
    )
    assert [r.name for r in found.ratios] == ["b"]
    assert found.self_check is not None
    assert 0.5 < found.self_check.speedup < 2

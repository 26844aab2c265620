"""Embedding tables in int8: fewer bytes, rows within one step, and float where the error would be too large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress import apply, quantize
from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.quality import QualityOptions
from onnxpress.measure.score import Scorer
from onnxpress.model import read
from onnxpress.model.files import to_bytes
from onnxpress.model.signature import signature
from onnxpress.passes.int8 import embedding_tables
from onnxpress.passes.int8.quantize import QUANTIZE
from tests import nets

ROWS, COLUMNS = 600, 16


def table(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def encoder(words: np.ndarray, tied: bool = False, shown: bool = False) -> ir.Model:
    """Two look-ups in one table and a MatMul. tied: the table is also the last matrix; shown: one is an output."""
    weights = {"words": words, "w": np.random.default_rng(9).standard_normal((COLUMNS, COLUMNS)).astype(np.float32)}
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["first"], "look_up"),
        helper.make_node("Gather", ["words", "other"], ["second"], "look_up_other"),
        helper.make_node("Add", ["first", "second"], ["sum"], "add"),
        helper.make_node("MatMul", ["sum", "w"], ["y"], "project"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, COLUMNS])]
    if tied:
        nodes[-1].output[0] = "hidden"
        nodes += [
            helper.make_node("Transpose", ["words"], ["back"], "turn"),
            helper.make_node("MatMul", ["hidden", "back"], ["y"], "scores"),
        ]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, ROWS])]
    if shown:
        outputs.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, ["n", 5, COLUMNS]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", 5]) for name in ("ids", "other")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in weights.items()])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def samples(model: ir.Model, count: int = 24) -> Dataset:
    draw = np.random.default_rng(1)
    return Dataset.from_arrays({n: draw.integers(0, ROWS, (count, 5)) for n in ("ids", "other")}, signature(model))


def table_types(model: ir.Model) -> list[ir.DataType]:
    return [n.inputs[0].const_value.dtype for n in model.graph if n.op_type == "Gather"]


@pytest.mark.parametrize("shown", [False, True])
def test_a_table_is_stored_in_int8(shown: bool, tmp_path: Path) -> None:
    model = encoder(table(), shown=shown)
    data = samples(model)
    done = quantize(model, data, output=tmp_path / "o.onnx", plan=tmp_path / "plan.json")
    assert "1 embedding tables in int8" in done.notes
    onnx.checker.check_model(onnx.load(tmp_path / "o.onnx"), full_check=True)
    codes = [n.inputs[0].const_value for n in done.model.graph if n.op_type == "Gather"]
    assert [c.dtype for c in codes] == [ir.DataType.INT8] * 2
    assert codes[0] is codes[1], "the table is written once"
    assert done.bytes_after < 0.45 * done.bytes_before
    wanted, found = nets.outputs(model, data), nets.outputs(done.model, data)
    assert ((found - wanted) ** 2).mean() < 1e-3 * (wanted**2).mean()
    again = apply(done.plan, model, data)
    assert to_bytes(again.model) == to_bytes(done.model)


def test_only_selected_rows_are_dequantized() -> None:
    model = encoder(table())
    data = samples(model)
    done = quantize(model, data, include=("Gather",)).model
    assert sum(n.op_type == "DequantizeLinear" for n in done.graph) == 2
    assert all(n.inputs[0].producer().op_type == "Gather" for n in done.graph if n.op_type == "DequantizeLinear")
    step = np.abs(table()).max(axis=0) / 127
    first = nets.outputs(encoder(table(), shown=True), data)
    assert first.shape
    node = next(n for n in done.graph if n.name == "look_up")
    held = read.constant(node.inputs[0])
    assert held is not None
    assert np.abs(held * step - table()).max() <= step.max() / 2 + 1e-6


def test_a_table_that_is_the_last_matrix_follows_the_product() -> None:
    """Look-ups of a tied table are not left in float where the product is not: the file would hold the table twice."""
    model = encoder(table(), tied=True)
    tied = evidence_for(model, samples(model)).model
    assert embedding_tables.quantizable_lookups(tied) == ["look_up", "look_up_other"]
    assert embedding_tables.quantizable_lookups(tied, ["scores"]) == []
    assert ROWS * COLUMNS < len(to_bytes(quantize(model, samples(model)).model)) < 3 * ROWS * COLUMNS


def test_tables_with_outliers_stay_in_float() -> None:
    wild = table()
    wild[3] *= 300
    model = evidence_for(encoder(wild), samples(encoder(wild))).model
    assert ["large numbers" in r.reason for r in embedding_tables.refusals(model)] == [True, True]
    assert embedding_tables.quantizable_lookups(model) == []
    broken = table()
    broken[0, 0] = np.nan
    assert embedding_tables.quantizable_lookups(encoder(broken)) == []


def test_one_excluded_look_up_keeps_the_table_in_float() -> None:
    model = encoder(table())
    done = quantize(model, samples(model), exclude=("look_up_other",))
    assert table_types(done.model) == [ir.DataType.FLOAT] * 2


def test_a_plan_that_names_another_node_is_refused() -> None:
    model = encoder(table())
    evidence = evidence_for(model, samples(model))
    for name in ("add", "absent"):
        with pytest.raises(InputProblem):
            QUANTIZE.apply(evidence, [{"nodes": []}, {"tables": [name]}])


def test_plans_without_tables_stay_valid() -> None:
    model = encoder(table())
    evidence = evidence_for(model, samples(model))
    done = QUANTIZE.apply(evidence, [{"nodes": ["project"]}, {"ranges": "mse"}]).model
    assert table_types(done) == [ir.DataType.FLOAT] * 2


def test_tables_stay_in_float_if_the_allowed_drop_requires_it() -> None:
    """Rows that differ by less than one step are indistinguishable in int8."""
    words = np.tile(table()[:1], (ROWS, 1)) + 1e-4 * table(1)
    model = encoder(words)
    data = samples(model, 64)
    quality = QualityOptions("relative-error")
    scorer = Scorer(model, data, quality=quality)
    hurt = scorer.score(to_bytes(quantize(model, data, include=("Gather",)).model)).drop
    assert hurt > 1e-4
    done = quantize(model, data, max_drop=hurt / 2, metric="relative-error")
    assert table_types(done.model) == [ir.DataType.FLOAT] * 2
    assert scorer.score(to_bytes(done.model)).drop <= hurt / 2
    assert "1 embedding tables in int8" in quantize(model, data, max_drop=0.99).notes


def test_a_table_with_readers_in_a_subgraph_stays_in_float() -> None:
    """Both branches of an If read the table."""
    model = encoder(table())
    proto = ir.to_proto(model)
    (look_up,) = [n for n in proto.graph.node if n.name == "look_up_other"]
    proto.graph.node.remove(look_up)

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("Gather", ["words", "other"], [name], f"inner_{name}")
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    proto.graph.node.insert(
        1, helper.make_node("If", ["which"], ["second"], "choose", then_branch=branch("a"), else_branch=branch("b"))
    )
    proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    assert embedding_tables.quantizable_lookups(ir.from_proto(proto)) == []
    assert embedding_tables.quantizable_lookups(model) == ["look_up", "look_up_other"]

"""Embedding tables as signed 8-bit integers: Gather picks rows of codes, and one DequantizeLinear behind it makes numbers of them.

(A DequantizeLinear in front would turn the whole table to float at every call.)  The scale is one a column, symmetric; a table
whose columns are not kept to 30 dB so, because of a few rows with large numbers, stays in float.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxpress.measure.sqnr import sqnr_db
from onnxpress.model import edit, read
from onnxpress.passes.core.contract import Refusal

_TOP = 127
_LEAST = 16_384  # bytes of a table that is worth a node
_ENOUGH = 30.0  # dB


def why_not(node: ir.Node) -> str | None:
    """None where the node looks rows up in a table that can be kept in int8; "" where it is no look-up in a float table at all; else
    why the table stays."""
    table = read.constant(node.inputs[0]) if read.standard(node) and node.op_type == "Gather" else None
    if table is None or table.dtype != np.float32 or table.ndim != 2 or read.constant(node.inputs[1]) is not None:
        return ""
    if read.int_attribute(node, "axis", 0) != 0 or table.nbytes < _LEAST:
        return ""
    if read.node_opset(node) < 13:
        return "operator set below 13 has no integers with a scale a channel"
    value = node.inputs[0]
    assert value is not None
    others = [u.node for u in value.uses() if not _looks_up(u.node, u.idx) or u.node.graph is not node.graph]
    if others or value.is_graph_output():
        return f"its table is read by {others[0].op_type if others else 'an output'}, too"
    if not np.isfinite(table).all():
        return "its table is not finite"
    if _sqnr(table) < _ENOUGH:
        return f"its table would keep {_sqnr(table):.0f} dB only: a few rows have large numbers"
    return None


def _looks_up(node: ir.Node, operand: int) -> bool:
    return node.op_type == "Gather" and operand == 0 and read.int_attribute(node, "axis", 0) == 0


def tables(model: ir.Model, exclude: Collection[str] = ()) -> list[str]:
    """Look-ups whose tables can be kept in int8, in the order of the graph; a table stays where one of its look-ups is excluded."""
    able = [n for n in model.graph if why_not(n) is None]
    kept = {n.inputs[0] for n in able if n.name in exclude}
    return [n.name or "" for n in able if n.inputs[0] not in kept]


def refusals(model: ir.Model) -> list[Refusal]:
    """Look-ups in float tables that stay, and why."""
    return [Refusal(n.name or "", why) for n in model.graph if (why := why_not(n))]


def write(work: ir.Model, names: Collection[str]) -> int:
    """Write the tables of these look-ups in place; how many tables."""
    done: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in [n for n in work.graph if n.name in names]:
        table = node.inputs[0]
        held = read.constant(table)
        assert table is not None and held is not None
        if table not in done:
            codes, scale = _codes(held)
            stem = table.name or node.name or "table"
            done[table] = edit.add_constant(work, codes, f"{stem}_q"), edit.add_constant(work, scale, f"{stem}_scale")
        codes_value, scale_value = done[table]
        node.replace_input_with(0, codes_value)
        _behind(work, node, scale_value)
    return len(done)


def _behind(work: ir.Model, node: ir.Node, scale: ir.Value) -> None:
    """A DequantizeLinear that takes the node's output over, under its name."""
    output = node.outputs[0]
    readers = list(output.uses())
    back = edit.insert_after(work, node, "DequantizeLinear", [output, scale], f"{node.name}_dq", {"axis": -1})
    for use in readers:
        use.node.replace_input_with(use.idx, back)
    if output.is_graph_output():
        edit.replace_output(work, output, back)
    output.type = ir.TensorType(ir.DataType.INT8)


def _codes(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [rows, columns] and the scale [columns]; a column of zeros has a scale of 1."""
    top = np.abs(table).max(axis=0)
    scale = np.where(top > 0, top / _TOP, 1.0).astype(np.float32)
    return np.clip(np.rint(table / scale), -_TOP, _TOP).astype(np.int8), scale


def _sqnr(table: np.ndarray) -> float:
    """In dB, of the table kept as codes."""
    codes, scale = _codes(table)
    noise = float(np.square(table - codes * scale, dtype=np.float64).sum())
    return sqnr_db(float(np.square(table, dtype=np.float64).sum()), noise)

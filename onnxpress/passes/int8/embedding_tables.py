"""Embedding tables in int8: Gather selects rows of integers, and one DequantizeLinear behind it restores floats.

A DequantizeLinear in front of the Gather would convert the whole table at every call. Scales are symmetric and per
column. Tables that do not keep 30 dB in this form, because a few rows have large numbers, stay in float.

A table that is also the weight of a product (a tied embedding) gets int8 numbers of its own, with a scale per column;
those of the product have one per row. Both together are half of the float table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from onnxpress.measure.sqnr import sqnr
from onnxpress.model import edit, read
from onnxpress.model.normal_forms.tied_weights import tied_to
from onnxpress.passes.core.contract import Refusal
from onnxpress.passes.core.rounding import symmetric_integers

_MAX_CODE = 127
_MIN_BYTES = 16_384  # smaller tables do not save enough
_MIN_SQNR = 30.0  # dB


def refusal_reason(node: ir.Node) -> str | None:
    """Determine why the table of a look-up cannot be stored in int8.

    Args:
        node: any node.

    Returns:
        None if it can; "" if the node is no look-up in a float table worth storing in int8; else the reason.
    """
    table = read.constant(node.inputs[0]) if read.standard(node) and node.op_type == "Gather" else None
    if table is None or table.dtype != np.float32 or table.ndim != 2 or read.constant(node.inputs[1]) is not None:
        return ""
    if read.int_attribute(node, "axis", 0) != 0 or table.nbytes < _MIN_BYTES:
        return ""
    if read.node_opset(node) < 13:
        return "quantization per channel needs operator set 13"
    value = node.inputs[0]
    assert value is not None
    other_readers = [
        u.node
        for u in value.uses()
        if not (_is_lookup(u.node, u.idx) or _is_product(u.node, u.idx)) or u.node.graph is not node.graph
    ]
    if other_readers or value.is_graph_output():
        return f"its table is also read by {other_readers[0].op_type if other_readers else 'a graph output'}"
    if not np.isfinite(table).all():
        return "its table is not finite"
    quality = _table_sqnr(table)
    if quality < _MIN_SQNR:
        return f"int8 would keep only {quality:.0f} dB of its table: a few rows have large numbers"
    return None


def _is_lookup(node: ir.Node, operand: int) -> bool:
    """Whether a node reads a value as the table of a row look-up."""
    return node.op_type == "Gather" and operand == 0 and read.int_attribute(node, "axis", 0) == 0


def _is_product(node: ir.Node, operand: int) -> bool:
    """Whether a node multiplies by a value that it reads as a weight."""
    return node.op_type in ("MatMul", "Gemm") and operand == 1 and read.standard(node)


def products_of_table(node: ir.Node, tied: Mapping[str, str]) -> set[str]:
    """The names of the products whose weight is the table of a look-up, or the same matrix turned.

    Args:
        node: a look-up.
        tied: the initializer that is another one turned, by name (`tied_to`).
    """
    table = node.inputs[0]
    if table is None or node.graph is None:
        return set()
    names = {table.name, tied.get(table.name or "")}
    return {
        n.name or "" for n in node.graph if _is_product(n, 1) and n.inputs[1] is not None and n.inputs[1].name in names
    }


def quantizable_lookups(model: ir.Model, exclude: Collection[str] = ()) -> list[str]:
    """Find the look-ups whose tables can be stored in int8.

    Args:
        model: the model.
        exclude: names of nodes; tables of look-ups among them stay in float for all look-ups that share them, and
            so do tables of which a product among them is the other reader.

    Returns:
        Node names in graph order.
    """
    quantizable = [n for n in model.graph if refusal_reason(n) is None]
    tied = tied_to(model) if exclude and quantizable else {}
    excluded_tables = {
        n.inputs[0] for n in quantizable if n.name in exclude or not products_of_table(n, tied).isdisjoint(exclude)
    }
    return [n.name or "" for n in quantizable if n.inputs[0] not in excluded_tables]


def refusals(model: ir.Model) -> list[Refusal]:
    """The look-ups whose float tables cannot be stored in int8, with the reason."""
    return [Refusal(n.name or "", why) for n in model.graph if (why := refusal_reason(n))]


def quantize_tables(work: ir.Model, names: Collection[str]) -> int:
    """Store the tables of look-ups in int8, in place.

    Args:
        work: the model to change.
        names: names of the look-ups.

    Returns:
        The number of tables.
    """
    written: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in [n for n in work.graph if n.name in names]:
        table = node.inputs[0]
        values = read.constant(table)
        assert table is not None and values is not None
        if table not in written:
            codes, scale = _quantize_columns(values)
            stem = table.name or node.name or "table"
            written[table] = (
                edit.add_constant(work, codes, f"{stem}_q"),
                edit.add_constant(work, scale, f"{stem}_scale"),
            )
        codes_value, scale_value = written[table]
        node.replace_input_with(0, codes_value)
        _insert_dequantize(work, node, scale_value)
    return len(written)


def _insert_dequantize(work: ir.Model, node: ir.Node, scale: ir.Value) -> None:
    """Insert a DequantizeLinear behind a look-up, which takes over its readers and its output name."""
    output = node.outputs[0]
    readers = list(output.uses())
    dequantized = edit.insert_after(work, node, "DequantizeLinear", [output, scale], f"{node.name}_dq", {"axis": -1})
    for use in readers:
        use.node.replace_input_with(use.idx, dequantized)
    if output.is_graph_output():
        edit.replace_output(work, output, dequantized)
    output.type = ir.TensorType(ir.DataType.INT8)


def _quantize_columns(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 values [rows, columns], scale [columns]); the scale of a column of zeros is 1."""
    max_abs = np.abs(table).max(axis=0)
    scale = np.where(max_abs > 0, max_abs / _MAX_CODE, 1.0).astype(np.float32)
    return symmetric_integers(table, scale, _MAX_CODE).astype(np.int8), scale


def _table_sqnr(table: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio of the table in int8, in dB."""
    codes, scale = _quantize_columns(table)
    return sqnr(table, codes * scale)

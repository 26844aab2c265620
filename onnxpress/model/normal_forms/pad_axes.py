"""Pad with an input of axes (operator set 18), in the older form with amounts for all axes.

onnxruntime's optimizer moves quantization through such a Pad as if it had no axes, and then cannot run the file; passes
read the older form, too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxpress.model import edit, read

_PAD_INPUTS = 4  # data, amounts, value, axes


def expand_pad_axes(model: ir.Model) -> None:
    """In place, for constant axes and amounts where the rank is known."""
    nodes = [n for n in model.graph.all_nodes() if n.op_type == "Pad" and len(n.inputs) == _PAD_INPUTS and n.inputs[3]]
    ranks = _ranks(model, nodes) if nodes else {}
    for node in nodes:
        amounts, axes, rank = read.constant(node.inputs[1]), read.constant(node.inputs[3]), ranks.get(id(node))
        if amounts is None or axes is None or rank is None or node.graph is not model.graph:
            continue
        whole = np.zeros((2, rank), np.int64)
        whole[:, axes.astype(np.int64) % rank] = amounts.reshape(2, -1)
        node.replace_input_with(1, edit.add_constant(model, whole.ravel(), f"{node.name or 'Pad'}.pads"))
        node.replace_input_with(3, None)
        node.resize_inputs(_PAD_INPUTS - 1)


def _ranks(model: ir.Model, nodes: list[ir.Node]) -> dict[int, int | None]:
    """The ranks of what is padded, by node; inferred where they are not declared."""
    known = {id(n): _rank(n.inputs[0]) for n in nodes}
    if None not in known.values():
        return known
    copy = model.clone()
    common.ShapeInferencePass(data_prop=False)(copy)
    values = {v.name: v for n in copy.graph.all_nodes() for v in n.outputs}
    return {id(n): known[id(n)] or _rank(values.get(n.inputs[0].name if n.inputs[0] else "")) for n in nodes}


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)

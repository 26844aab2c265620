"""Folding of computed sizes that are known: Reshape to [batch, length, 4, 64] out of Shape, Gather and Concat.

Shape inference with propagated data (of the onnx package) tells which sizes are the same number for every input, and
which equal a named axis of the graph's inputs. A target of numbers, of axes that stay in place, and of at most one
other size is a constant. In the target of an Expand, 1 stands for every axis that stays unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxpress.model import edit, read

Size = int | str | None


def fold_reshape_targets(model: ir.Model) -> int:
    """Replace computed targets of Reshape by constants, and simplify those of Expand, in place.

    Returns:
        The number of changed targets.
    """
    nodes = [
        n
        for n in model.graph
        if n.op_type in ("Reshape", "Expand") and read.standard(n) and read.constant(n.inputs[1]) is None
    ]
    if not nodes:
        return 0
    sizes = infer_sizes(model)
    count = 0
    for node in nodes:
        if node.op_type == "Expand":
            count += _fold_expand_target(model, node, sizes)
            continue
        source, result = (sizes.get(v.name or "") if v is not None else None for v in (node.inputs[0], node.outputs[0]))
        target = _constant_target(source, result, bool(read.int_attribute(node, "allowzero", 0)))
        if target is not None:
            edit.set_input(model, node, 1, np.array(target, np.int64), f"{node.name}_target")
            count += 1
    edit.drop_dead(model)
    return count


def infer_sizes(model: ir.Model) -> dict[str, tuple[Size, ...]]:
    """Infer what is known of each axis for every input.

    Declared shapes of inner values and of outputs are ignored, as they may hold for one input size only.

    Returns:
        By value name, for each axis: a number, the name of a size, or None.
    """
    work = model.clone()
    for number, value in enumerate(work.graph.inputs):
        if value.shape is not None:
            value.shape = ir.Shape([_named_dim(d, f"_{number}_{axis}") for axis, d in enumerate(value.shape.dims)])
    edit.forget_shapes(work)
    for value in work.graph.outputs:
        value.shape = None
    common.ShapeInferencePass(data_prop=True)(work)
    values = [*work.graph.inputs, *(v for n in work.graph for v in n.outputs)]
    return {v.name: tuple(_dim_size(d) for d in v.shape.dims) for v in values if v.name and v.shape is not None}


def _named_dim(size: int | ir.SymbolicDim, name: str) -> int | ir.SymbolicDim:
    """The dimension, with a name if it has neither number nor name."""
    return ir.SymbolicDim(name) if not isinstance(size, int) and size.value is None else size


def _dim_size(size: int | ir.SymbolicDim) -> Size:
    """The number or the name of a dimension."""
    return size if isinstance(size, int) else size.value


def _constant_target(
    source: Sequence[Size] | None, result: Sequence[Size] | None, zero_is_zero: bool
) -> list[int] | None:
    """The target of a Reshape as a constant (0: axis stays, -1: remaining size); None where more is unknown."""
    if source is None or result is None:
        return None
    found: list[int] = []
    for axis, size in enumerate(result):
        stays = isinstance(size, str) and axis < len(source) and source[axis] == size and not zero_is_zero
        found.append(size if isinstance(size, int) else 0 if stays else -1)
    positive = all(size > 0 for size in result if isinstance(size, int))
    return found if found.count(-1) <= 1 and positive else None


def _fold_expand_target(model: ir.Model, node: ir.Node, sizes: Mapping[str, Sequence[Size]]) -> bool:
    """Write 1 for every axis that an Expand keeps, where its target is a Concat of single sizes; whether any was."""
    source, result = (sizes.get(v.name or "") if v is not None else None for v in (node.inputs[0], node.outputs[0]))
    maker = node.inputs[1].producer() if node.inputs[1] is not None else None
    if source is None or result is None or maker is None or maker.op_type != "Concat" or len(source) != len(result):
        return False
    pieces = [read.constant(v) for v in maker.inputs]
    lengths = [sizes.get(v.name or "") if v is not None else None for v in maker.inputs]
    single = all((n if p is None else p.shape) == (1,) for n, p in zip(lengths, pieces, strict=True))
    if len(pieces) != len(result) or not single:
        return False
    stays = [
        a
        for a, piece in enumerate(pieces)
        if piece is not None and piece.item() != 1 and source[a] is not None and source[a] == result[a]
    ]
    if not stays:
        return False
    one = edit.add_constant(model, np.ones(1, np.int64), f"{node.name}_stays")
    parts = [one if a in stays else v for a, v in enumerate(maker.inputs)]
    node.replace_input_with(1, edit.insert_before(model, node, "Concat", parts, f"{node.name}_target", {"axis": 0}))
    return True

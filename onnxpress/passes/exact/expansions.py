"""Expand in front of operators that broadcast anyway: masks of attention, written out for every sample.

    Where(Expand(mask, [N, 1, L, L]), 0, -inf) + scores  ->  Where(mask, 0, -inf) + scores

An Expand is moved behind an operator whose other operands are constants, and goes where the others have the size of the
result without it; both are proved by inferred sizes (`reshape_targets.py`). What is computed from constants alone then
is a constant, and sums with zeros and products with ones go as well, where sizes prove that they broadcast nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.passes.exact.evaluation import evaluate
from onnxpress.passes.exact.reshape_targets import Size, infer_sizes

_BROADCAST = frozenset(
    "Add Sub Mul Div Pow Max Min Sum Where And Or Xor Equal Less LessOrEqual Greater GreaterOrEqual".split()
)
_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
_ROUNDS = 16  # operators that one Expand is moved over
_MOST_ELEMENTS = 2**20  # of a constant that is computed


def drop_expansions(model: ir.Model) -> int:
    """Take Expand nodes away, in place; how many readers read less."""
    count = 0
    for _ in range(_ROUNDS):
        nodes = [n for n in model.graph if n.op_type == "Expand" and read.standard(n)]
        sizes = infer_sizes(model) if nodes else {}
        changed = sum(_shorten(model, node, sizes) for node in nodes)
        if not changed:
            break
        count += changed
        edit.drop_dead(model)
    return count + _drop_neutral(model)


def _drop_neutral(model: ir.Model) -> int:
    """Take sums with zeros and products with ones away, in place; how many."""
    able = [(n, value) for n in model.graph if (value := _beside_neutral(n)) is not None]
    sizes = infer_sizes(model) if able else {}
    able = [(n, v) for n, v in able if (known := _known(v, sizes)) is not None and known == _known(n.outputs[0], sizes)]
    for node, _ in able:
        value = _beside_neutral(node)  # now: it may have stood behind another of them
        assert value is not None
        edit.bypass(model, node, value)
    edit.drop_dead(model)
    return len(able)


def _beside_neutral(node: ir.Node) -> ir.Value | None:
    """The operand of a sum or product beside several zeros or ones."""
    neutral = _NEUTRAL.get(node.op_type)
    if neutral is None or not read.standard(node):
        return None
    for index in (1, 0) if node.op_type in ("Add", "Mul") else (1,):
        array, other = read.constant(node.inputs[index]), node.inputs[1 - index]
        if array is None or array.size < 2 or other is None or read.constant_tensor(other) is not None:
            continue
        if bool(np.all(array == neutral)):
            return other
    return None


def _shorten(model: ir.Model, node: ir.Node, sizes: Mapping[str, Sequence[Size]]) -> int:
    """Change the readers of one Expand; how many were."""
    source, whole = node.inputs[0], node.outputs[0]
    if source is None:
        return 0
    count = 0
    for reader in {id(use.node): use.node for use in whole.uses()}.values():
        if reader.graph is not model.graph or reader.op_type not in _BROADCAST or not read.standard(reader):
            continue
        result = _known(reader.outputs[0], sizes)
        operands = [_known(source if v is whole else v, sizes) for v in reader.inputs]
        if result is not None and _broadcast(operands) == result:
            for index, value in enumerate(reader.inputs):
                if value is whole:
                    reader.replace_input_with(index, source)
            _fold_constant(model, reader)
            count += 1
        elif result is not None and result == _known(whole, sizes) and _others_constant(reader, whole):
            _move_behind(model, node, reader)
            count += 1
    return count


def _others_constant(reader: ir.Node, whole: ir.Value) -> bool:
    return all(v is whole or (v is not None and read.constant_tensor(v) is not None) for v in reader.inputs)


def _move_behind(model: ir.Model, node: ir.Node, reader: ir.Node) -> None:
    """Compute the reader on what is expanded, and expand its result."""
    whole, source, result = node.outputs[0], node.inputs[0], reader.outputs[0]
    inputs = [source if v is whole else v for v in reader.inputs]
    attributes = {name: a.value for name, a in reader.attributes.items()}
    first = edit.insert_before(model, reader, reader.op_type, inputs, f"{reader.name}_once", attributes)
    expanded = edit.insert_before(model, reader, "Expand", [first, node.inputs[1]], f"{reader.name}_expanded")
    maker = first.producer()
    edit.reroute(model, result, expanded)
    if maker is not None:
        _fold_constant(model, maker)


def _known(value: ir.Value | None, sizes: Mapping[str, Sequence[Size]]) -> tuple[int | str, ...] | None:
    """The sizes of a value where all of them are numbers or names."""
    array = read.constant(value)
    found = array.shape if array is not None else sizes.get(value.name or "") if value is not None else None
    known = tuple(s for s in found if s is not None) if found is not None else ()
    return known if found is not None and len(known) == len(found) else None


def _broadcast(operands: Sequence[tuple[int | str, ...] | None]) -> tuple[int | str, ...] | None:
    """The sizes of what operands of these sizes make; None where one is not known, or two may differ."""
    known = [o for o in operands if o is not None]
    if len(known) < len(operands):
        return None
    rank = max(map(len, known), default=0)
    result: list[int | str] = []
    for axis in range(rank):
        found = {o[len(o) - rank + axis] for o in known if len(o) - rank + axis >= 0} - {1}
        if len(found) > 1:
            return None
        result.append(found.pop() if found else 1)
    return tuple(result)


def _fold_constant(model: ir.Model, node: ir.Node) -> None:
    """Put a constant in the place of what is computed from small constants alone."""
    arrays = [read.constant(v) for v in node.inputs]
    if any(a is None for a in arrays) or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return
    given = [a for a in arrays if a is not None]
    if np.broadcast(*given).size > _MOST_ELEMENTS:
        return
    done = evaluate(model, node, {})
    edit.reroute(model, node.outputs[0], edit.add_constant(model, done, f"{node.name}_constant"))

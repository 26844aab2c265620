"""If, Loop, Scan, sequences and optionals.  A sequence is a list, an absent optional is None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator, simple_operator
from onnxpress.train.graph.tensors import Tensor, torch_type


@operator("If", grad_inputs=None)
def _if(context: NodeContext) -> Run:
    yes, no = context.subgraph("then_branch"), context.subgraph("else_branch")
    many = len(context.node.outputs) > 1

    def run(condition: Tensor, *outer: Tensor) -> Any:
        results = (yes if bool(condition) else no)((), outer)
        return results if many else results[0]

    return run


def _stacked(parts: Sequence[Tensor], axis: int, graph: ir.Graph, index: int) -> Tensor:
    """Values of a scan output, stacked; without iterations an empty tensor of the stated type and rank."""
    if parts:
        return torch.stack(list(parts), axis)
    value = graph.outputs[index]
    sizes = [d if isinstance(d, int) else 0 for d in value.shape] if value.shape is not None else []
    sizes.insert(axis if axis >= 0 else axis + len(sizes) + 1, 0)
    return torch.zeros(sizes, dtype=torch_type(value.dtype or ir.DataType.FLOAT))


@operator("Loop", grad_inputs=None)
def _loop(context: NodeContext) -> Run:
    """The body maps (iteration, condition, carried...) to (condition, carried..., scanned...)."""
    body, graph = context.subgraph("body"), context.attribute("body")
    outputs = len(context.node.outputs)

    def run(*values: Tensor) -> Any:
        split = len(values) - len(context.captured)
        given, outer = list(values[:split]), values[split:]
        given += [None] * (2 - len(given))
        limit = int(given[0]) if given[0] is not None else None
        going = bool(given[1]) if given[1] is not None else True
        state, count = given[2:], 0
        scanned: list[list[Tensor]] = [[] for _ in range(outputs - len(state))]
        while going and (limit is None or count < limit):
            results = body([torch.tensor(count), torch.tensor(going), *state], outer)
            going, state = bool(results[0]), results[1 : 1 + len(state)]
            for column, value in zip(scanned, results[1 + len(state) :], strict=True):
                column.append(value)
            count += 1
        whole = [_stacked(c, 0, graph, 1 + len(state) + i) for i, c in enumerate(scanned)]
        return [*state, *whole] if outputs > 1 else [*state, *whole][0]

    return run


@operator("Scan", since=9, grad_inputs=None)
def _scan(context: NodeContext) -> Run:
    """The body maps (state..., elements...) to (state..., results...), along one axis of each scanned input."""
    body, graph = context.subgraph("body"), context.attribute("body")
    count, outputs = context.integer("num_scan_inputs"), len(context.node.outputs)

    def run(*values: Tensor) -> Any:
        split = len(values) - len(context.captured)
        state, outer = list(values[: split - count]), values[split:]
        made = outputs - len(state)
        axes = context.integers("scan_input_axes") or [0] * count
        turns = context.integers("scan_input_directions") or [0] * count
        rows = [
            torch.flip(x, [axis]).unbind(axis) if turn else x.unbind(axis)
            for x, axis, turn in zip(values[split - count : split], axes, turns, strict=True)
        ]
        columns: list[list[Tensor]] = [[] for _ in range(made)]
        for elements in zip(*rows, strict=True):
            results = body([*state, *elements], outer)
            state = results[: len(state)]
            for column, value in zip(columns, results[len(state) :], strict=True):
                column.append(value)
        out_axes = context.integers("scan_output_axes") or [0] * made
        out_turns = context.integers("scan_output_directions") or [0] * made
        whole = [
            _stacked(c[::-1] if turn else c, axis, graph, len(state) + i)
            for i, (c, axis, turn) in enumerate(zip(columns, out_axes, out_turns, strict=True))
        ]
        return [*state, *whole] if outputs > 1 else [*state, *whole][0]

    return run


@operator("Scan", grad_inputs=None)
def _scan_batched(context: NodeContext) -> Run:
    """Version 8: all inputs have a leading batch axis; the first input (sequence lengths) may be absent."""
    inner = NodeContext(context.node, 9, context.versions, context.attributes, {}, context.compile, context.captured)
    inner.attributes = {k: v for k, v in context.attributes.items() if k != "directions"}
    once, outputs = _scan(inner), len(context.node.outputs)

    def run(lengths: Tensor, *values: Tensor) -> Any:
        split = len(values) - len(context.captured)
        given, outer = values[:split], values[split:]
        rows = [once(*(v[i] for v in given), *outer) for i in range(given[0].shape[0])]
        if outputs == 1:
            return torch.stack(rows)
        return [torch.stack(list(column)) for column in zip(*rows, strict=True)]

    return run


@operator("SequenceMap", grad_inputs=None)
def _sequence_map(context: NodeContext) -> Run:
    body, outputs = context.subgraph("body"), len(context.node.outputs)

    def run(*values: Any) -> Any:
        split = len(values) - len(context.captured)
        given, outer = values[:split], values[split:]
        rows = [body([v[i] if isinstance(v, list) else v for v in given], outer) for i in range(len(given[0]))]
        columns = [[row[k] for row in rows] for k in range(outputs)]
        return columns if outputs > 1 else columns[0]

    return run


def _insert(sequence: list[Any], item: Tensor, where: Tensor = None) -> list[Any]:
    place = len(sequence) if where is None else int(where)
    place = place + len(sequence) if place < 0 else place
    return [*sequence[:place], item, *sequence[place:]]


def _erase(sequence: list[Any], where: Tensor = None) -> list[Any]:
    place = (len(sequence) - 1 if where is None else int(where)) % len(sequence)
    return [*sequence[:place], *sequence[place + 1 :]]


simple_operator("SequenceConstruct", lambda *items: list(items))
simple_operator("SequenceEmpty", list, grad_inputs=())
simple_operator("SequenceInsert", _insert, grad_inputs=(0, 1))
simple_operator("SequenceErase", _erase, grad_inputs=(0,))
simple_operator("SequenceAt", lambda sequence, where: sequence[int(where)], grad_inputs=(0,))
simple_operator("SequenceLength", lambda sequence: torch.tensor(len(sequence)), grad_inputs=())
simple_operator("Optional", lambda value=None: value)
simple_operator("OptionalGetElement", lambda value: value)
simple_operator("OptionalHasElement", lambda value=None: torch.tensor(value is not None), grad_inputs=())


@operator("SplitToSequence", grad_inputs=(0,))
def _split_to_sequence(context: NodeContext) -> Run:
    axis, keep = context.integer("axis"), bool(context.integer("keepdims", 1))

    def run(x: Tensor, split: Tensor = None) -> list[Any]:
        if split is None:
            return list(torch.split(x, 1, axis)) if keep else list(x.unbind(axis))
        sizes = split.tolist()
        return list(torch.split(x, sizes, axis))

    return run


@operator("ConcatFromSequence")
def _concat_from_sequence(context: NodeContext) -> Run:
    axis, new = context.integer("axis"), bool(context.integer("new_axis"))
    return lambda sequence: torch.stack(sequence, axis) if new else torch.cat(sequence, axis)

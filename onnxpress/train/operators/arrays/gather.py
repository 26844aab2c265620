"""Indexing: Gather, Scatter, TopK, NonZero, Compress, Unique, ReverseSequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator, simple_operator
from onnxpress.train.graph.tensors import Tensor


def _positive(index: Tensor, size: int) -> Tensor:
    """Negative indices (from the end) as positive ones."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


@operator("Gather", grad_inputs=(0,))
def _gather(context: NodeContext) -> Run:
    """Rows of a matrix are an embedding, whose gradient is fastest in torch."""
    axis, known = context.integer("axis"), context.constants.get(1)
    if known is not None and known.ndim == 0:
        place = int(known)
        return lambda x, index: x.select(axis, place)

    def run(x: Tensor, index: Tensor) -> Tensor:
        where = axis % x.ndim
        flat = _positive(index, x.shape[where])
        if where == 0 and x.ndim == 2 and x.dtype.is_floating_point:
            return torch.nn.functional.embedding(flat, x)
        if index.ndim == 1:
            return x.index_select(where, flat)
        picked = x.index_select(where, flat.reshape(-1))
        return picked.reshape(*x.shape[:where], *index.shape, *x.shape[where + 1 :])

    return run


@operator("GatherElements", grad_inputs=(0,))
def _gather_elements(context: NodeContext) -> Run:
    axis = context.integer("axis")
    return lambda x, index: torch.gather(x, axis, _positive(index, x.shape[axis]))


@operator("GatherND", grad_inputs=(0,))
def _gather_nd(context: NodeContext) -> Run:
    batch = context.integer("batch_dims")

    def run(x: Tensor, index: Tensor) -> Tensor:
        depth, lead = index.shape[-1], index.shape[:batch]
        middle = index.shape[batch:-1]
        flat = x.reshape(-1, *x.shape[batch:])
        places = index.reshape(flat.shape[0], -1, depth)
        rows = torch.arange(flat.shape[0]).unsqueeze(1)
        picked = flat[(rows, *(_positive(places[..., i], flat.shape[i + 1]) for i in range(depth)))]
        return picked.reshape(*lead, *middle, *x.shape[batch + depth :])

    return run


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter(context: NodeContext) -> Run:
    axis, kind = context.integer("axis"), context.text("reduction", "none")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        places = _positive(index, x.shape[axis])
        if kind == "none":
            return x.scatter(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, _REDUCE[kind])

    return run


operator("ScatterElements", "Scatter", grad_inputs=(0, 2))(_scatter)


@operator("ScatterND", grad_inputs=(0, 2))
def _scatter_nd(context: NodeContext) -> Run:
    kind = context.text("reduction", "none")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        depth = index.shape[-1]
        flat = torch.zeros(index.shape[:-1], dtype=torch.int64)
        for i in range(depth):
            flat = flat * x.shape[i] + _positive(index[..., i], x.shape[i])
        rest = x.shape[depth:]
        rows = x.reshape(-1, rest.numel())
        where = flat.reshape(-1, 1).expand(-1, rows.shape[1])
        new = updates.reshape(where.shape)
        if kind == "none":
            return rows.scatter(0, where, new).reshape(x.shape)
        return rows.scatter_reduce(0, where, new, _REDUCE[kind]).reshape(x.shape)

    return run


def _topk(read_count: Callable[[NodeContext], Callable[[Tensor], int]]) -> Callable[[NodeContext], Run]:
    def build(context: NodeContext) -> Run:
        axis, largest = context.integer("axis", -1), bool(context.integer("largest", 1))
        count = read_count(context)

        def run(x: Tensor, k: Tensor = None) -> Any:
            # stable, so that equal values are in the order of their index
            if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
                values, places = torch.sort(x.to(torch.int64), dim=axis, descending=largest, stable=True)
            else:
                values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
            size = count(k)
            return values.narrow(axis, 0, size).to(x.dtype), places.narrow(axis, 0, size)

        return run

    return build


operator("TopK", grad_inputs=(0,))(_topk(lambda context: lambda k: context.integer("k")))
operator("TopK", since=10, grad_inputs=(0,))(_topk(lambda context: lambda k: int(k)))
simple_operator(
    "NonZero", lambda x: torch.nonzero(x.reshape(1) if x.ndim == 0 else x).t()[: max(x.ndim, 0)], grad_inputs=()
)


@operator("Compress", grad_inputs=(0,))
def _compress(context: NodeContext) -> Run:
    axis = context.integer("axis") if context.has_attribute("axis") else None

    def run(x: Tensor, condition: Tensor) -> Tensor:
        flat = x.reshape(-1) if axis is None else x
        return flat.index_select(axis or 0, torch.nonzero(condition).reshape(-1))

    return run


@operator("Unique", grad_inputs=())
def _unique(context: NodeContext) -> Run:
    axis = context.integer("axis") if context.has_attribute("axis") else None
    ordered = bool(context.integer("sorted", 1))

    def run(x: Tensor) -> Any:
        values, inverse, counts = torch.unique(x, True, True, True, dim=axis)
        inverse = inverse.reshape(-1)
        first = torch.full((counts.numel(),), inverse.numel()).scatter_reduce(
            0, inverse, torch.arange(inverse.numel()), "amin"
        )
        if not ordered:
            order = torch.argsort(first)
            values = values.index_select(axis or 0, order)
            first, counts = first[order], counts[order]
            inverse = torch.argsort(order)[inverse]
        results = (values, first, inverse, counts)
        return results if len(context.node.outputs) > 1 else values

    return run


@operator("ReverseSequence", grad_inputs=(0,))
def _reverse_sequence(context: NodeContext) -> Run:
    batch, time = context.integer("batch_axis", 1), context.integer("time_axis", 0)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        rows = x.movedim((batch, time), (0, 1))
        steps = torch.arange(rows.shape[1]).unsqueeze(0)
        ends = lengths.to(torch.int64).unsqueeze(1)
        places = torch.where(steps < ends, ends - 1 - steps, steps)
        return rows[torch.arange(rows.shape[0]).unsqueeze(1), places].movedim((0, 1), (batch, time))

    return run

"""Cells of four nodes and six edges with five operations (NAS-Bench-201, Dong and Yang 2020), in a fixed skeleton.

A node is the sum of the results of its edges from earlier nodes.  Many of the 15,625 assignments compute the same
function (a `none` removes an edge, a `skip` merges nodes, sums commute): `canonical_form` is equal for them, so that
each function is evaluated once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.nas.spaces.io_spec import IoSpec, network_input, network_output
from onnxpress.nas.spaces.network import NetworkBuilder, Value

OPERATIONS = ("none", "skip", "conv1x1", "conv3x3", "avgpool3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # (from, to), node 0 is the cell's input
_NODES = 4

Cell = tuple[str, ...]


def all_cells() -> Iterator[Cell]:
    """All assignments of operations to EDGES."""
    return product(OPERATIONS, repeat=len(EDGES))


def unique_cells() -> list[Cell]:
    """One assignment per canonical form, the first in the order of `all_cells`; without those that do not use the
    input.
    """
    found: dict[str, Cell] = {}
    for cell in all_cells():
        found.setdefault(canonical_form(cell), cell)
    found.pop("", None)
    return list(found.values())


def canonical_form(cell: Cell) -> str:
    """The function of a cell as an expression that is equal for equal functions; "" where the input is not used.

    An operation whose result is used several times is marked, since it has one set of weights, where two equal
    operations have two.
    """
    sums: list[list[_Term]] = [[("x", -1, ())]]
    for node in range(1, _NODES):
        terms: list[_Term] = []
        for edge, ((source, target), operation) in enumerate(zip(EDGES, cell, strict=True)):
            if target != node or operation == "none" or not sums[source]:
                continue
            terms += sums[source] if operation == "skip" else [(operation, edge, tuple(sums[source]))]
        sums.append(terms)
    times: dict[int, int] = {}
    _count_uses(sums[-1], times)
    return _expression(sums[-1], times)


_Term = tuple[str, int, tuple[Any, ...]]  # operation, the edge it stands on, what it is applied to


def _count_uses(terms: Sequence[_Term], times: dict[int, int]) -> None:
    for _, edge, inner in terms:
        times[edge] = times.get(edge, 0) + 1
        _count_uses(inner, times)


def _expression(terms: Sequence[_Term], times: Mapping[int, int]) -> str:
    found = []
    for operation, edge, inner in terms:
        shared = f"#{times[edge]}" if inner and times[edge] > 1 else ""
        found.append(f"{operation}{shared}({_expression(inner, times)})" if inner else operation)
    return "+".join(sorted(found))


def cell_space(trial: Any, io_spec: IoSpec) -> ir.Model:
    """The search space: the cell, its repetitions in each of three stacks, and the width of the first stack."""
    cell = tuple(trial.suggest_categorical(f"edge{a}{b}", list(OPERATIONS)) for a, b in EDGES)
    if not canonical_form(cell):  # the output would not depend on the input: connect them
        cell = tuple("skip" if edge == (0, _NODES - 1) else o for edge, o in zip(EDGES, cell, strict=True))
    depth = trial.suggest_int("depth", 1, 3)
    width = trial.suggest_int(
        "width", io_spec.channel_multiple, 2 * io_spec.channel_multiple, step=io_spec.channel_multiple
    )
    return build_cell_network(cell, io_spec, depth, width)


def build_cell_network(cell: Cell, io_spec: IoSpec, depth: int = 1, width: int = 16) -> ir.Model:
    """Three stacks of cells of one, two and four times the width, with a stride of two between them.

    Raises InputProblem for inputs that are neither images nor spectrograms, and for a cell that does not use its
    input.
    """
    if io_spec.kind not in ("image", "spectrogram"):
        raise InputProblem("cells need images or spectrograms", io_spec.field.name, io_spec.kind, "use another space")
    if not canonical_form(cell):
        raise InputProblem("the output does not depend on the input", " ".join(cell), "", "use another cell")
    net = NetworkBuilder()
    x, _ = network_input(net, io_spec)
    x = net.conv_norm(x, width, 3)
    for stack in range(3):
        if stack:
            x = _downsample(net, x, width * 2**stack)
        for _ in range(depth):
            x = _add_cell(net, x, cell)
    return net.model({io_spec.output: network_output(net, net.dense(net.global_pool(x), io_spec.classes), io_spec)})


def _add_cell(net: NetworkBuilder, x: Value, cell: Sequence[str]) -> Value:
    """Add one cell; edges to unused nodes are left out."""
    nodes: list[Value | None] = [x]
    needed = _needed_nodes(cell)
    for node in range(1, _NODES):
        total: Value | None = None
        for (source, target), operation in zip(EDGES, cell, strict=True):
            if target != node or operation == "none" or node not in needed:
                continue
            start = nodes[source]
            if start is None:
                continue
            brought = _operation(net, start, operation)
            total = brought if total is None else net.add(total, brought)
        nodes.append(total)
    last = nodes[-1]
    assert last is not None
    return last


def _needed_nodes(cell: Sequence[str]) -> set[int]:
    """The nodes on which the last one depends."""
    needed = {_NODES - 1}
    for (source, target), operation in reversed(list(zip(EDGES, cell, strict=True))):
        if target in needed and operation != "none":
            needed.add(source)
    return needed


def _operation(net: NetworkBuilder, x: Value, operation: str) -> Value:
    if operation == "skip":
        return x
    if operation == "avgpool3x3":
        return net.pool(x, 3, 1, "average")
    return net.conv_norm(x, x.shape[0], 1 if operation == "conv1x1" else 3)


def _downsample(net: NetworkBuilder, x: Value, width: int) -> Value:
    """A residual block of stride two."""
    y = net.conv_norm(net.conv_norm(x, width, 3, 2), width, 3, act="")
    short = net.conv_norm(net.pool(x, 3, 2, "average"), width, 1, act="")
    return net.activation(net.add(y, short))

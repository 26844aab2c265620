"""Cut points of a model, and the sections between them, which can be replaced one by one.

A cut point is a value that everything computed from the main input passes through; the main input is the one with the
most such values.  Other inputs (a mask) may enter a section from the side.  A section is the stretch between two cut
points: one group of nodes with multiply-accumulates, and the nodes without any that follow it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxpress.model.counts import macs
from onnxpress.model.graph_index import GraphIndex
from onnxpress.model.trace import Trace


@dataclass(frozen=True)
class Section:
    """The stretch of a model between two cut points.

    source: the input value, a cut point or an input of the model
    output: the output value, a cut point
    nodes:  names of its nodes, which no earlier section needs
    macs:   multiply-accumulates of these nodes
    """

    name: str
    source: str
    output: str
    nodes: frozenset[str]
    macs: int


def sections(model: ir.Model, trace: Trace) -> list[Section]:
    """The sections of a canonical model, in order.

    Their nodes are disjoint and hold all multiply-accumulates on the main path.
    """
    graph_index = GraphIndex(model)
    costs = macs(model, trace)
    source, path = graph_index.main_path()
    found: list[Section] = []
    before: set[str] = set()
    held: frozenset[str] = frozenset()
    work, output = 0, ""
    for cut in (graph_index.only_used_output(i) for i in path):
        if cut is None:
            continue
        needed = {graph_index.nodes[i].name or "" for i in _before(graph_index, graph_index.producer[cut])}
        own = frozenset(needed - before)
        more = sum(costs.get(n, 0) for n in own)
        if more and work:
            found.append(Section(output, source, output, held, work))
            source, held, work = output, frozenset(), 0
        held, work, output = held | own, work + more, cut
        before |= needed
    return [*found, Section(output, source, output, held, work)] if work else found


def _before(graph_index: GraphIndex, index: int) -> set[int]:
    """Positions of a node and of the nodes whose values it depends on."""
    seen: set[int] = set()
    queue = [index]
    while queue:
        at = queue.pop()
        if at not in seen:
            seen.add(at)
            queue += [graph_index.producer[n] for n in graph_index.reads[at] if n in graph_index.producer]
    return seen


def section_holds(nodes: Iterable[str], section: Section) -> bool:
    """Whether a section contains all the nodes."""
    return set(nodes) <= section.nodes

"""Blocks: parts of a graph that can be removed whole, so that their readers read what the block read.

They are found from the graph alone, independent of the architecture:

* branch: from a value to an Add whose other input is this value (residual connection).  Without the branch the Add is
  the value.
* run: from a value to its post-dominator with the same shape and the same kind of operator as producer, with a branch
  in between and more than branches (a normalization after the Add, as in BERT).
* link: the same without a branch, between two values that everything passes through: a stretch of a plain chain (VGG,
  separable convolutions), or a block without residual connection.
* layer: adjacent branches, runs or links that repeat as a group (attention, then feed-forward).

A mask or another side input may enter a block.  Reading only the shape of a value is not a dependence on its contents.
Blocks save multiply-accumulates; parts that save none (a positional encoding, the cubic term of a GELU) are not blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.counts import macs
from onnxpress.model.graph_index import GraphIndex
from onnxpress.model.trace import Trace

BRANCH, RUN, LINK, LAYER = "branch", "run", "link", "layer"
# Idempotent operators: after a branch they change nothing that the branch's own activation does not.
_IDEMPOTENT = frozenset({"Relu", "Clip", "Identity", "Dropout", "Cast"})


@dataclass(frozen=True)
class Block:
    """A removable part of a graph; without it the readers of `output` read `source`.

    name:          of the block, stable for one file
    kind:          "branch", "run", "link" or "layer"
    source, output: names of values
    nodes:         names of the nodes that nothing needs once this block alone is removed
    macs:          multiply-accumulates of these nodes
    weight_bytes:  bytes of the constants that only they read
    skip:          whether a residual connection bypasses the block; else its information is lost
    """

    name: str
    kind: str
    source: str
    output: str
    nodes: frozenset[str]
    macs: int
    weight_bytes: int
    skip: bool


@dataclass(frozen=True)
class _Endpoints:
    """The two ends of a block, before its nodes are known."""

    kind: str
    source: str
    output: str
    skip: bool = True


def find_blocks(model: ir.Model, trace: Trace) -> list[Block]:
    """The blocks of a canonical model in topological order of their outputs, branches first among equals.

    Shapes are compared at the trace only; see `passes.structure.depth` for a second input size.
    """
    graph_index = GraphIndex(model)
    branches = _branches(graph_index, trace)
    runs = _runs(graph_index, trace, branches)
    costs = macs(model, trace)
    pairs = [*branches, *runs, *_links(graph_index, trace, branches)]
    found = {pair: block for pair in pairs if (block := _block(graph_index, pair, costs)) is not None}
    kept = [pair for pair in pairs if pair in found]
    for pair in [p for kind in (BRANCH, RUN, LINK) for p in _layers(graph_index, kind, kept, found)]:
        block = _block(graph_index, pair, costs)
        if block is not None and all((pair.source, pair.output) != (p.source, p.output) for p in kept):
            found[pair] = block
    order = {BRANCH: 0, RUN: 1, LINK: 2, LAYER: 3}
    return sorted(
        _without_duplicates(found.values(), costs),
        key=lambda b: (graph_index.producer[b.output], order[b.kind], graph_index.producer.get(b.source, -1)),
    )


def remove_blocks(model: ir.Model, blocks: Iterable[Block]) -> ir.Model:
    """A clone without the blocks, and without the nodes that nothing needs any more."""
    clone = model.clone()
    values: dict[str, ir.Value] = {v.name: v for v in clone.graph.inputs if v.name}
    values.update({v.name: v for n in clone.graph for v in n.outputs if v.name})
    for output, source in resolve(model, blocks).items():
        edit.reroute(clone, values[output], values[source])
    edit.drop_dead(clone)
    edit.forget_shapes(clone)
    return clone


def resolve(model: ir.Model, blocks: Iterable[Block]) -> dict[str, str]:
    """By block output, the value its readers read once all the blocks are removed.

    Of two blocks with one output the longer counts.
    """
    return _resolved({v.name or "": i for i, n in enumerate(model.graph) for v in n.outputs}, blocks)


def _resolved(producer: Mapping[str, int], blocks: Iterable[Block | _Endpoints]) -> dict[str, str]:
    nearest: dict[str, str] = {}
    for block in blocks:
        known = nearest.get(block.output)
        if known is None or producer.get(block.source, -1) < producer.get(known, -1):
            nearest[block.output] = block.source

    def last(name: str) -> str:
        while name in nearest:
            name = nearest[name]
        return name

    return {output: last(source) for output, source in nearest.items()}


def dead_nodes(model: ir.Model, blocks: Iterable[Block]) -> frozenset[str]:
    """Names of the nodes that nothing needs once the blocks are removed."""
    graph_index = GraphIndex(model)
    return graph_index.dead_without(_resolved(graph_index.producer, blocks))


def _branches(graph_index: GraphIndex, trace: Trace) -> list[_Endpoints]:
    found = []
    for index in sorted(graph_index.all):
        node = graph_index.nodes[index]
        if node.op_type not in ("Add", "Sum") or not read.standard(node) or len(node.inputs) != 2:
            continue
        out = node.outputs[0].name or ""
        names = tuple(v.name or "" if v is not None else "" for v in node.inputs)
        shapes = {trace.shape(n) for n in (*names, out)}
        if len(shapes) != 1 or None in shapes or names[0] == names[1]:
            continue
        for skip, branch in (names, names[::-1]):
            if skip in graph_index.reads[index] and graph_index.depends_on(branch, skip):
                found.append(_Endpoints(BRANCH, skip, out))
    return found


def _role(node: ir.Node) -> tuple[object, ...]:
    """What must agree between the producers of the two ends of a run: operator and shapes of constants."""
    constants = tuple(None if (c := read.constant(v)) is None else c.shape for v in node.inputs)
    return node.domain, node.op_type, constants


def _runs(graph_index: GraphIndex, trace: Trace, branches: Sequence[_Endpoints]) -> list[_Endpoints]:
    parent = graph_index.post_dominators()
    joins = {graph_index.producer[b.output]: graph_index.producer.get(b.source, -1) for b in branches}
    sources = {b.source for b in branches}
    found = []
    for start in sorted(graph_index.all):
        source = graph_index.only_used_output(start)
        if source is None:
            continue
        passed, through, between = {start}, 0, False
        at = parent[start]
        while at < len(graph_index.nodes):
            output = graph_index.only_used_output(at)
            if output is None or (at in joins and joins[at] not in passed):
                break  # a residual connection bypasses the start: it lies inside a branch
            passed.add(at)
            through += at in joins
            between = between or (at not in joins and graph_index.nodes[at].op_type not in _IDEMPOTENT)
            same = trace.shape(source) == trace.shape(output) and _role(graph_index.nodes[start]) == _role(
                graph_index.nodes[at]
            )
            if through and same:
                if between and (source in sources or at in joins):
                    found.append(_Endpoints(RUN, source, output))
                break
            at = parent[at]
    return found


def _links(graph_index: GraphIndex, trace: Trace, branches: Sequence[_Endpoints]) -> list[_Endpoints]:
    """Links: from each value that everything passes through to the nearest later one of equal shape and kind of
    producer.

    There is no link where a branch lies between.
    """
    shared_path = graph_index.shared_path()
    joins = {graph_index.producer[b.output] for b in branches}
    found = []
    for place, start in enumerate(shared_path):
        source, between = graph_index.only_used_output(start), False
        for at in shared_path[place + 1 :]:
            output = graph_index.only_used_output(at)
            if source is None or output is None or at in joins:
                break
            between = between or graph_index.nodes[at].op_type not in _IDEMPOTENT
            same = trace.shape(source) == trace.shape(output) and _role(graph_index.nodes[start]) == _role(
                graph_index.nodes[at]
            )
            if between and same:
                found.append(_Endpoints(LINK, source, output, skip=False))
                break
    return found


def _without_duplicates(blocks: Iterable[Block], costs: Mapping[str, int]) -> list[Block]:
    """The blocks without links that remove the same multiply-accumulates as another block.

    A link from convolution to convolution equals the one from activation to activation.
    """
    seen: set[frozenset[str]] = set()
    kept = []
    for block in sorted(blocks, key=lambda b: b.kind == LINK):
        work = frozenset(n for n in block.nodes if costs.get(n))
        if block.kind != LINK or work not in seen:
            kept.append(block)
        seen.add(work)
    return kept


def _layers(
    graph_index: GraphIndex, kind: str, pairs: Sequence[_Endpoints], known: Mapping[_Endpoints, Block]
) -> list[_Endpoints]:
    """Groups of adjacent blocks that repeat: the shortest period above one of the weighted operators along a chain."""
    following = {p.source: p for p in reversed(pairs) if p.kind == kind}
    ends = {p.output for p in following.values()}
    found = []
    for source, first in following.items():
        if source in ends:
            continue
        chain = [first]
        while chain[-1].output in following:
            chain.append(following[chain[-1].output])
        kinds = [_contents(graph_index, known[p]) for p in chain]
        period = next((p for p in range(1, len(chain) // 2 + 1) if kinds[p:] == kinds[:-p]), 1)
        if period > 1:
            groups = [chain[i : i + period] for i in range(0, len(chain) - period + 1, period)]
            found += [_Endpoints(LAYER, g[0].source, g[-1].output, kind != LINK) for g in groups]
    return found


def _contents(graph_index: GraphIndex, block: Block) -> tuple[object, ...]:
    """Operators with weights, and the shapes of these."""
    nodes = (n for n in graph_index.nodes if n.name in block.nodes and n.op_type in read.WEIGHTED)
    return tuple(_role(n) for n in nodes)


def _block(graph_index: GraphIndex, pair: _Endpoints, costs: Mapping[str, int]) -> Block | None:
    removed = graph_index.dead_without({pair.output: pair.source})
    saved = sum(costs.get(n, 0) for n in removed)
    if not saved:
        return None
    end = graph_index.nodes[graph_index.producer[pair.output]].name or ""
    start = graph_index.producer.get(pair.source)
    begin = pair.source if start is None else graph_index.nodes[start].name or ""
    name = end if pair.kind == BRANCH else f"{begin}..{end}"
    return Block(name, pair.kind, pair.source, pair.output, removed, saved, _weights(graph_index, removed), pair.skip)


def _weights(graph_index: GraphIndex, removed: frozenset[str]) -> int:
    """Bytes of the constants that only these nodes read."""
    total = 0
    for value in graph_index.model.graph.initializers.values():
        users = [u.node for u in value.uses()]
        if users and value.const_value is not None and all(u.name in removed for u in users):
            total += value.const_value.nbytes
    return total

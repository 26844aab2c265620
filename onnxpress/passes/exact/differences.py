"""What two versions of one model differ in, by the names of nodes and initializers."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxpress.model import read


def changed_names(before: ir.Model, after: ir.Model) -> frozenset[str]:
    """Names of nodes and initializers of `before` that `after` does not have, or has with other contents.

    A node is compared by its operator, its attributes and the constants it reads, not by the names of the values it
    reads: a node behind a removed one is not changed by that. One that reads a new node is, where what it read before
    is still there.
    """
    twins = {n.name: n for n in after.graph}
    known = {n.name for n in before.graph}
    nodes = {
        n.name or ""
        for n in before.graph
        if (twin := twins.get(n.name)) is None or not _same_node(n, twin) or _reads_new(n, twin, known, twins)
    }
    others = after.graph.initializers
    weights = {k for k, v in before.graph.initializers.items() if k not in others or not _same_tensor(v, others[k])}
    return frozenset(nodes | weights)


def _same_node(one: ir.Node, other: ir.Node) -> bool:
    return (
        (one.domain, one.op_type) == (other.domain, other.op_type)
        and len(one.inputs) == len(other.inputs)
        and all(_same_tensor(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
        and _attributes(one) == _attributes(other)
    )


def _reads_new(one: ir.Node, other: ir.Node, known: Collection[str | None], kept: Collection[str | None]) -> bool:
    """Whether a node reads a new node in the place of one that is kept.  known: names of all nodes before."""
    pairs = [(a.producer(), b.producer()) for a, b in zip(one.inputs, other.inputs, strict=True) if a and b]
    return any(a is not None and b is not None and a.name in kept and b.name not in known for a, b in pairs)


def _same_tensor(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both are the same constant, or both are computed (or absent)."""
    a, b = read.constant_tensor(one), read.constant_tensor(other)
    if a is None or b is None:
        return a is b and (one is None) == (other is None)
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def _attributes(node: ir.Node) -> dict[str, bytes]:
    return {a.name: ir.to_proto(a).SerializeToString(deterministic=True) for a in node.attributes.values()}

"""Mapping from onnxruntime's kernels to the nodes of the model file.

onnxruntime rewrites a graph before it runs it.  What remains of the file's names: values that survive (a kernel's
outputs are then values of the file), kernels named after a node or value of the file with a suffix of the rewrite, and
operators inserted for the layout, which represent no node of the file.  A kernel implements the nodes between its
inputs and its outputs; a node without a kernel of its own belongs to the kernel into which it is fused as an epilogue
(an activation after a convolution), else to the next kernel downstream (a DequantizeLinear before one).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnxpress.model.read import constant_tensor, node_label

_EPILOGUE = frozenset(
    "Relu LeakyRelu Sigmoid Tanh Clip HardSigmoid HardSwish Gelu Elu Add Mul BatchNormalization QuantizeLinear".split()
)
_LAYOUT = frozenset("ReorderInput ReorderOutput".split())  # conversions between blocked and plain channels
_SUFFIX = re.compile(r"(_nchwc|_nhwc|_token_\d+|_quant|_duplicated|/\w*Fusion/?)+$")

Named = dict[str | None, ir.Node]


@dataclass(frozen=True)
class Kernel:
    """One operator that onnxruntime runs.

    key:      its name, and its index among kernels of this name (from 0)
    outputs:  names of the values it writes; () where only the name is known
    operands: number of values it reads; 0 where only the name is known
    """

    key: tuple[str, int]
    op: str
    outputs: tuple[str, ...] = ()
    operands: int = 0


def optimized_kernels(optimized: onnx.ModelProto) -> list[Kernel]:
    """The kernels of a graph that onnxruntime wrote after its rewrites, in its order, then those of sub-graphs."""
    found: list[Kernel] = []
    counts: dict[str, int] = {}
    waiting = [optimized.graph]
    while waiting:
        graph = waiting.pop(0)
        for node in graph.node:
            waiting += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
            count = counts.get(node.name, 0)
            counts[node.name] = count + 1
            reads = sum(1 for name in node.input if name)
            found.append(Kernel((node.name, count), node.op_type, tuple(n for n in node.output if n), reads))
    return found


def nodes_of_kernels(model: ir.Model, kernels: Sequence[Kernel]) -> dict[tuple[str, int], tuple[str, ...]]:
    """By kernel, the labels of the file's nodes it implements, in the file's order; () where unknown.

    The model's nodes must be named; a node belongs to at most one kernel.
    """
    nodes = list(model.graph.all_nodes())
    producers: Named = {v.name: n for n in nodes for v in n.outputs if v.name}
    names: Named = {n.name: n for n in nodes if n.name}
    anchors = {k.key: _anchors(k, producers, names) for k in kernels}
    taken = {id(n): key for key, found in anchors.items() for n in found}
    for kernel in kernels:
        if anchors[kernel.key] and not any(o in producers for o in kernel.outputs):
            _claim(_epilogue(anchors[kernel.key][-1], kernel, taken), kernel.key, taken)
    for kernel in kernels:
        _claim(_upstream(anchors[kernel.key], kernel.key, taken), kernel.key, taken)
    behind: dict[tuple[str, int], list[str]] = {k.key: [] for k in kernels}
    for node in nodes:
        if id(node) in taken:
            behind[taken[id(node)]].append(node_label(node))
    return {key: tuple(found) for key, found in behind.items()}


def _anchors(kernel: Kernel, producers: Named, names: Named) -> list[ir.Node]:
    """Nodes that certainly belong to the kernel: those that compute its outputs, else the one it is named after."""
    written = [producers[o] for o in kernel.outputs if o in producers]
    if kernel.op in _LAYOUT or _inserted(kernel, written, names):
        return []
    if written:
        return written
    for name in (kernel.key[0], _SUFFIX.sub("", kernel.key[0])):
        found = names.get(name) or producers.get(name)
        if found is not None:
            return [found]
    return []


def _inserted(kernel: Kernel, written: Sequence[ir.Node], names: Named) -> bool:
    """Whether onnxruntime inserted a Transpose or Cast after the node whose value it copies."""
    return (
        kernel.op in ("Transpose", "Cast")
        and kernel.key[0] not in names
        and bool(written)
        and all(n.op_type not in (kernel.op, "QuantizeLinear") for n in written)
    )


def _claim(nodes: Iterable[ir.Node], key: tuple[str, int], taken: dict[int, tuple[str, int]]) -> None:
    for node in nodes:
        taken.setdefault(id(node), key)


def _epilogue(node: ir.Node, kernel: Kernel, taken: Mapping[int, tuple[str, int]]) -> list[ir.Node]:
    """Nodes after the anchor that are fused into its kernel: activations, additions, QuantizeLinear."""
    found: list[ir.Node] = []
    current = node
    while current.op_type != "QuantizeLinear" and len(current.outputs) == 1:
        output = current.outputs[0]
        users = [use.node for use in output.uses()]
        if len(users) != 1 or output.is_graph_output():
            break
        after = users[0]
        if id(after) in taken or after.op_type not in _EPILOGUE:
            break
        others = [v for v in after.inputs if v is not None and v is not output]
        if after.op_type in ("Add", "Mul") and any(constant_tensor(v) is None for v in others) and kernel.operands < 4:
            break  # the addition of another branch is the fourth operand of a convolution
        found.append(after)
        current = after
    return found


def _upstream(anchors: Sequence[ir.Node], key: tuple[str, int], taken: Mapping[int, tuple[str, int]]) -> list[ir.Node]:
    """Nodes before the anchors, up to those of other kernels."""
    found: dict[int, ir.Node] = {}
    waiting = list(anchors)
    while waiting:
        for value in waiting.pop().inputs:
            before = value.producer() if value is not None else None
            if (
                before is None
                or id(before) in found
                or taken.get(id(before), key) != key
                or before.op_type == "Constant"
            ):
                continue
            found[id(before)] = before
            waiting.append(before)
    return list(found.values())

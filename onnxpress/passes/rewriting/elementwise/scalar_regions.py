"""Parts of a graph that compute a function of one number, element by element, and its normal form.

A region has one entry, the anchor, and one exit. Its nodes are elementwise operators whose other operands are single
numbers, and nothing outside reads a value within.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.elementwise import scalar_functions as sf
from onnxpress.passes.rewriting.elementwise.scalar_functions import Form

_MOST = 20  # nodes of a region
_CLIP_WITH_INPUTS = 11  # operator set from which on the bounds of Clip are inputs


@dataclass(frozen=True)
class Region:
    """anchor: the value that is read; exit: the node that computes the result; nodes: all of them; form: of the result
    as a function of the anchor."""

    anchor: ir.Value
    exit: ir.Node
    nodes: tuple[ir.Node, ...]
    form: Form


def regions_ending_at(node: ir.Node, sizes: Trace) -> Iterator[Region]:
    """Regions with a node as their exit, the largest first."""
    cone = _cone(node)
    anchors = {id(v): v for n in cone for v in n.inputs if v is not None and read.constant(v) is None}
    able = []
    for anchor in anchors.values():
        nodes = _between(node, anchor)
        if nodes is not None and _closed(nodes, node):
            able.append((nodes, anchor))
    for nodes, anchor in sorted(able, key=lambda pair: -len(pair[0])):
        form = form_of(node, anchor, sizes)
        if form is not None:
            yield Region(anchor, node, tuple(nodes), form)


def form_of(node: ir.Node, anchor: ir.Value, sizes: Trace) -> Form | None:
    """The output of a node as a function of the anchor; None where it has no known form.

    sizes: shapes of values; numbers with more axes than the anchor would give the result more axes.
    """
    shape = sizes.shape(anchor.name)
    if shape is None:
        return None
    known: dict[int, Form | None] = {id(anchor): sf.IDENTITY}

    def form(value: ir.Value | None) -> Form | None:
        if value is None:
            return None
        if id(value) not in known:
            known[id(value)] = _constant(value, len(shape))
            producer = value.producer()
            if known[id(value)] is None and producer is not None:
                known[id(value)] = _composed(producer, form)
        return known[id(value)]

    return _composed(node, form)


def _composed(node: ir.Node, form: Callable[[ir.Value | None], Form | None]) -> Form | None:
    if not read.standard(node) or len(node.outputs) != 1:
        return None
    rule = _RULES.get(node.op_type)
    if rule is None or not node.inputs:
        return None
    given = [form(v) for v in node.inputs]
    needed = node.inputs[:1] if node.op_type == "Clip" else node.inputs
    if any(f is None for f, _ in zip(given, needed, strict=False)):
        return None
    return rule(node, given)


def _constant(value: ir.Value, rank: int) -> Form | None:
    tensor = read.constant_tensor(value)
    if tensor is None or tensor.size != 1 or len(tensor.shape) > rank:
        return None
    array = tensor.numpy()
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        return None
    return sf.constant_form(float(np.asarray(array, np.float64).ravel()[0]))


Given = list[Form | None]


def _number(form: Form | None) -> float | None:
    if isinstance(form, sf.Polynomial) and form.degree == 0:
        return form.coefficients[0]
    return None


def _chained(combine: Callable[[Form, Form], Form | None]) -> Callable[[ir.Node, Given], Form | None]:
    def rule(node: ir.Node, given: Given) -> Form | None:
        result = given[0]
        for other in given[1:]:
            result = None if result is None or other is None else combine(result, other)
        return result

    return rule


def _on_first(change: Callable[[ir.Node, Form], Form | None]) -> Callable[[ir.Node, Given], Form | None]:
    return lambda node, given: None if given[0] is None else change(node, given[0])


def _clip(node: ir.Node, given: Given) -> Form | None:
    if given[0] is None:
        return None
    if read.node_opset(node) < _CLIP_WITH_INPUTS:
        bounds = [read.float_attribute(node, "min", -np.inf), read.float_attribute(node, "max", np.inf)]
        return sf.limited(given[0], *bounds)
    bounds = [-np.inf, np.inf]
    for place, value in enumerate(node.inputs[1:3]):
        if value is not None:
            number = _number(given[1 + place])
            if number is None:
                return None
            bounds[place] = number
    return sf.limited(given[0], *bounds)


def _slopes(form: Form, negative: float) -> Form | None:
    """x above zero, `negative` times x below."""
    above, below = sf.limited(form, 0.0, np.inf), sf.limited(form, -np.inf, 0.0)
    part = None if below is None else sf.scaled(below, negative)
    return None if above is None or part is None else sf.add(above, part)


def _hard_sigmoid(node: ir.Node, form: Form) -> Form | None:
    steep = sf.scaled(form, read.float_attribute(node, "alpha", 0.2))
    raised = None if steep is None else sf.add(steep, sf.constant_form(read.float_attribute(node, "beta", 0.5)))
    return None if raised is None else sf.limited(raised, 0.0, 1.0)


def _hard_swish(node: ir.Node, form: Form) -> Form | None:
    gate = sf.scaled(form, 1 / 6)
    raised = None if gate is None else sf.add(gate, sf.constant_form(0.5))
    limited = None if raised is None else sf.limited(raised, 0.0, 1.0)
    return None if limited is None else sf.multiply(form, limited)


def _mish(node: ir.Node, form: Form) -> Form | None:
    softplus = sf.apply_curve(sf.SOFTPLUS, form)
    gate = None if softplus is None else sf.apply_curve(sf.TANH, softplus)
    return None if gate is None else sf.multiply(form, gate)


def _prelu(node: ir.Node, given: Given) -> Form | None:
    slope = _number(given[1])
    return None if slope is None or given[0] is None else _slopes(given[0], slope)


def _power(node: ir.Node, given: Given) -> Form | None:
    exponent = _number(given[1])
    return None if exponent is None or given[0] is None else sf.power(given[0], exponent)


def _subtract(first: Form, second: Form) -> Form | None:
    negative = sf.scaled(second, -1.0)
    return None if negative is None else sf.add(first, negative)


def _curve(kind: str) -> Callable[[ir.Node, Given], Form | None]:
    return _on_first(lambda node, form: sf.apply_curve(kind, form))


_RULES: dict[str, Callable[[ir.Node, Given], Form | None]] = {
    "Add": _chained(sf.add),
    "Sum": _chained(sf.add),
    "Sub": _chained(_subtract),
    "Mul": _chained(sf.multiply),
    "Div": _chained(sf.divide),
    "Max": _chained(sf.larger),
    "Min": _chained(sf.smaller),
    "Neg": _on_first(lambda node, form: sf.scaled(form, -1.0)),
    "Reciprocal": _on_first(lambda node, form: sf.divide(sf.constant_form(1.0), form)),
    "Relu": _on_first(lambda node, form: sf.limited(form, 0.0, np.inf)),
    "Abs": _on_first(lambda node, form: _slopes(form, -1.0)),
    "LeakyRelu": _on_first(lambda node, form: _slopes(form, read.float_attribute(node, "alpha", 0.01))),
    "HardSigmoid": _on_first(_hard_sigmoid),
    "HardSwish": _on_first(_hard_swish),
    "Clip": _clip,
    "PRelu": _prelu,
    "Pow": _power,
    "Exp": _curve(sf.EXP),
    "Sigmoid": _curve(sf.SIGMOID),
    "Tanh": _curve(sf.TANH),
    "Erf": _curve(sf.ERF),
    "Softplus": _curve(sf.SOFTPLUS),
    "Mish": _on_first(_mish),
    "Log": _on_first(lambda node, form: sf.logarithm(form)),
}


def _cone(node: ir.Node) -> list[ir.Node]:
    """A node and the elementwise nodes behind it that its value is made of, as many as a region may have."""
    found: dict[int, ir.Node] = {}
    waiting = [node]
    while waiting and len(found) < _MOST:
        current = waiting.pop(0)
        if id(current) in found or current.op_type not in _RULES or not read.standard(current):
            continue
        found[id(current)] = current
        waiting += [p for v in current.inputs if v is not None and (p := v.producer()) is not None]
    return list(found.values())


def _between(node: ir.Node, anchor: ir.Value) -> list[ir.Node] | None:
    """The nodes from an anchor to a node; None where another value that is not constant enters."""
    found: dict[int, ir.Node] = {}
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if id(current) in found:
            continue
        if current.op_type not in _RULES or not read.standard(current) or len(found) >= _MOST:
            return None
        found[id(current)] = current
        for value in current.inputs:
            if value is None or value is anchor or read.constant_tensor(value) is not None:
                continue
            producer = value.producer()
            if producer is None:
                return None
            waiting.append(producer)
    return list(found.values())


def _closed(nodes: list[ir.Node], end: ir.Node) -> bool:
    """Whether nothing outside reads a value within, except the result."""
    inside = {id(n) for n in nodes}
    for node in nodes:
        if node is end:
            continue
        value = node.outputs[0]
        if value.is_graph_output() or any(id(use.node) not in inside for use in value.uses()):
            return False
    return True

"""The only room that changes graphs: a small vocabulary that keeps names, uses and value infos right.

Passes clone a model and then speak these verbs.  Shapes and types of computed values are dropped where an
edit may have made them false; onnxruntime infers them anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxpress.model.read import constant

_OWN_INITIALIZERS = 4  # IR version from which on initializers need not be inputs, too
_WEIGHT = 256  # elements from which on an array of a sub-graph is a weight


def canonical(model: ir.Model) -> ir.Model:
    """A clone in the form passes expect: functions inlined, constants as initializers, weights of sub-graphs among the graph's own,
    no Identity, names unique.

    Inputs that merely repeat an initializer (IR < 4) stop being inputs: an override by the caller is not
    something an optimized file can honour.  Identity removal also unties biases that exporters share through
    Identity nodes (onnxruntime leaves such a Conv in float).
    """
    clone = model.clone()
    if clone.functions:
        common.InlinePass()(clone)
    common.RemoveInitializersFromInputsPass()(clone)
    if clone.ir_version < _OWN_INITIALIZERS:
        clone.ir_version = _OWN_INITIALIZERS
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(clone)
    common.IdentityEliminationPass()(clone)
    _lift_weights(clone)
    name_nodes(clone)
    drop_dead(clone)
    return clone


def _lift_weights(model: ir.Model) -> None:
    """Sub-graphs read the graph's initializers as well as their own: weights need only be looked for in one place."""
    for graph in model.graph.subgraphs():
        for name in list(graph.initializers):
            value = graph.initializers[name]
            tensor = value.const_value
            if tensor is None or tensor.size < _WEIGHT or len(tensor.shape) < 2 or tensor.dtype != ir.DataType.FLOAT:
                continue
            if not value.is_graph_output() and not value.is_graph_input():
                value.replace_all_uses_with(
                    add_constant(model, tensor.numpy(), name)
                )  # tensors are shared with the given model
                del graph.initializers[name]


def name_nodes(model: ir.Model) -> None:
    """Give every node a stable unique name (its first output's where it has none)."""
    taken: set[str] = set()
    for node in model.graph:
        name = node.name or next((v.name for v in node.outputs if v.name), node.op_type) or node.op_type
        unique, count = name, 1
        while unique in taken:
            unique, count = f"{name}_{count}", count + 1
        taken.add(unique)
        node.name = unique


def drop_dead(model: ir.Model) -> None:
    """Remove nodes and initializers that no output needs."""
    common.RemoveUnusedNodesPass()(model)


def forget_shapes(model: ir.Model, keep: Iterable[ir.Value] = ()) -> None:
    """Drop stated shapes of computed values; the graph's own inputs and outputs keep theirs."""
    kept = {id(v) for v in keep} | {id(v) for v in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in kept:
                value.shape = None


def forget_floats(model: ir.Model) -> None:
    """Drop stated types and shapes of computed float32 values, which whoever loads the file infers anew: it gets smaller."""
    kept = {id(v) for v in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in kept and value.dtype == ir.DataType.FLOAT:
                value.type, value.shape = None, None


def unique_name(model: ir.Model, stem: str) -> str:
    """A value name that neither the graph nor a sub-graph uses yet."""
    taken = model.meta.get("onnxpress.names")
    if taken is None:
        taken = {v.name for n in model.graph.all_nodes() for v in n.outputs}
        for graph in (model.graph, *model.graph.subgraphs()):
            taken |= {v.name for v in graph.inputs} | set(graph.initializers)
        model.meta["onnxpress.names"] = taken
    name, count = stem, 1
    while name in taken:
        name, count = f"{stem}_{count}", count + 1
    taken.add(name)
    return name


def add_constant(model: ir.Model, array: np.ndarray, stem: str) -> ir.Value:
    """A new initializer holding the array (zero-rank arrays stay zero-rank)."""
    name = unique_name(model, stem)
    contiguous = np.ascontiguousarray(array).reshape(np.shape(array))
    value = ir.Value(name=name, shape=ir.Shape(contiguous.shape), const_value=ir.tensor(contiguous, name=name))
    value.type = ir.TensorType(ir.DataType.from_numpy(contiguous.dtype))
    model.graph.register_initializer(value)
    return value


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer new numbers (and shape); its type follows the array."""
    contiguous = np.ascontiguousarray(array).reshape(np.shape(array))
    value.const_value = ir.tensor(contiguous, name=value.name)
    value.shape = ir.Shape(contiguous.shape)
    value.type = ir.TensorType(ir.DataType.from_numpy(contiguous.dtype))


def own_constant(model: ir.Model, node: ir.Node, index: int) -> ir.Value:
    """The constant at an input, private to this node: cloned first where other uses share it."""
    value = node.inputs[index]
    array = constant(value)
    if value is None or array is None:
        raise ValueError(f"input {index} of {node.name} is not constant")
    if value.is_initializer() and len(list(value.uses())) == 1 and not value.is_graph_output():
        return value
    copy = add_constant(model, array, f"{value.name}_own")
    node.replace_input_with(index, copy)
    return copy


def set_input(model: ir.Model, node: ir.Node, index: int, array: np.ndarray, stem: str) -> None:
    """Make an input of a node the given constant, without touching other users of what stood there."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    value = node.inputs[index]
    if value is not None and value.is_initializer() and len(list(value.uses())) == 1 and not value.is_graph_output():
        set_constant(value, array)
    else:
        node.replace_input_with(index, add_constant(model, array, stem))


def insert_before(
    model: ir.Model,
    anchor: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    stem: str,
    attributes: Mapping[str, object] | None = None,
    domain: str = "",
) -> ir.Value:
    """A new one-output node in front of the anchor; returns its output."""
    node = _make(model, op, inputs, stem, attributes, domain)
    model.graph.insert_before(anchor, node)
    return node.outputs[0]


def insert_many(
    model: ir.Model, anchor: ir.Node, op: str, inputs: Sequence[ir.Value | None], stem: str, count: int
) -> list[ir.Value]:
    """A new standard node of several outputs in front of the anchor; returns its outputs."""
    node = ir.node(op, list(inputs), num_outputs=count, name=unique_name(model, stem))
    for index, value in enumerate(node.outputs):
        value.name = unique_name(model, f"{stem}_{index}")
    model.graph.insert_before(anchor, node)
    return list(node.outputs)


def insert_after(
    model: ir.Model,
    anchor: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    stem: str,
    attributes: Mapping[str, object] | None = None,
    domain: str = "",
) -> ir.Value:
    """A new one-output node behind the anchor; returns its output."""
    node = _make(model, op, inputs, stem, attributes, domain)
    model.graph.insert_after(anchor, node)
    return node.outputs[0]


def _make(
    model: ir.Model,
    op: str,
    inputs: Sequence[ir.Value | None],
    stem: str,
    attributes: Mapping[str, object] | None,
    domain: str,
) -> ir.Node:
    name = unique_name(model, stem)
    node = ir.node(op, list(inputs), dict(attributes or {}), domain=domain, name=name)  # type: ignore[arg-type]
    node.outputs[0].name = name
    return node


def bypass(model: ir.Model, node: ir.Node, source: ir.Value) -> None:
    """Remove a one-output node: whoever read its output reads the source instead.

    Where the output is a graph output its name is kept by the source, so the signature does not change; if the
    source cannot take the name (it is an input, an initializer or an output itself) the node stays as Identity.
    """
    output = node.outputs[0]
    if output.is_graph_output():
        if source.producer() is None or source.is_graph_output() or source.is_initializer():
            replacement = ir.node("Identity", [source], name=node.name)
            model.graph.insert_before(node, replacement)
            replace_value(model, output, replacement.outputs[0])
            model.graph.remove(node, safe=True)
            return
        replace_value(model, output, source)
    else:
        output.replace_all_uses_with(source)
    model.graph.remove(node, safe=True)


def reroute(model: ir.Model, old: ir.Value, source: ir.Value) -> None:
    """Whoever read `old` reads the source, sub-graphs too; what made `old` stays until `drop_dead`.

    A graph output is handed on by an Identity, so that names inside the graph do not change.
    """
    if old.is_graph_output():
        made = old.producer()
        if made is None:
            raise ValueError(f"{old.name} is not computed")
        relay = ir.node("Identity", [source], name=unique_name(model, f"{made.name}_skipped"))
        model.graph.insert_after(made, relay)
        replace_value(model, old, relay.outputs[0])
        return
    old.replace_all_uses_with(source)


def replace_value(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    """Let `new` be read wherever `old` was; a graph output's name, type and shape go with it."""
    if old.is_graph_output():
        name, kind, shape = old.name, old.type, old.shape
        old.name = unique_name(model, f"{name}_old")
        new.name, new.type, new.shape = name, kind, shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def replace_output(model: ir.Model, value: ir.Value, back: ir.Value) -> None:
    """A graph output becomes `back`, under the old name; what else reads `value` still does."""
    outputs = model.graph.outputs
    position = next(i for i, v in enumerate(outputs) if v is value)
    name, kind, shape = value.name, value.type, value.shape
    value.name = unique_name(model, f"{name}_float")
    back.name, back.type, back.shape = name, kind, shape
    outputs[position] = back


def slice_constant(model: ir.Model, node: ir.Node, index: int, axis: int, keep: np.ndarray) -> None:
    """Keep only the given positions of one axis of a constant input."""
    array = constant(node.inputs[index])
    if array is None:
        raise ValueError(f"input {index} of {node.name} is not constant")
    set_input(model, node, index, np.take(array, keep, axis=axis), f"{node.name}_in{index}")


def set_int(node: ir.Node, name: str, number: int) -> None:
    node.attributes[name] = ir.AttrInt64(name, number)


def set_ints(node: ir.Node, name: str, numbers: Sequence[int]) -> None:
    node.attributes[name] = ir.AttrInt64s(name, list(numbers))


def set_attributes(node: ir.Node, attributes: Mapping[str, Any]) -> None:
    """Give a node these attributes and no others."""
    node.attributes.clear()
    for name, value in attributes.items():
        node.attributes[name] = ir.convenience.convert_attribute(name, value)


def rename_ports(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the graph's inputs and outputs other names, in order; inner values that bear one of them step aside."""
    given = set(model.graph.initializers)
    ports = [v for v in model.graph.inputs if v.name not in given]
    pairs = [*zip(ports, inputs, strict=True), *zip(model.graph.outputs, outputs, strict=True)]
    if all(value.name == name for value, name in pairs):
        return
    wanted, own = {name for _, name in pairs}, {id(value) for value, _ in pairs}
    inner = [v for n in model.graph.all_nodes() for v in n.outputs] + list(model.graph.initializers.values())
    for value in inner:
        if value.name in wanted and id(value) not in own:
            value.name = unique_name(model, f"{value.name}_inner")
    for value, name in pairs:
        value.name = name
    model.meta.pop("onnxpress.names", None)


def set_numbers(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Give stored tensors new numbers by value name, wherever they stand: initializers and Constant nodes of any graph.

    Raises KeyError for a name that no graph of the model stores.
    """
    missing = set(arrays)
    for graph in model.graphs():
        for name in missing & set(graph.initializers):
            set_constant(graph.initializers[name], arrays[name])
            missing = missing - {name}
        for node in graph:
            name = node.outputs[0].name or "" if node.op_type == "Constant" else ""
            if name in missing:
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.asarray(arrays[name]), name=name))
                missing = missing - {name}
    if missing:
        raise KeyError(", ".join(sorted(missing)))

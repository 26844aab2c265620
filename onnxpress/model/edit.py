"""The only module that changes graphs: a small set of edits that keep names, uses and value infos consistent.

Passes clone a model and apply these edits.  Stated shapes and types of computed values are dropped where an edit may
have made them wrong; onnxruntime infers them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxpress.model.read import constant

_MIN_IR_VERSION = 4  # IR version from which on initializers need not be inputs as well
_MIN_WEIGHT_SIZE = 256  # elements from which on a constant of a sub-graph is a weight


def drop_identities(model: ir.Model) -> None:
    """Remove Identity nodes of the graph and its sub-graphs, except those that a graph needs to return a value.

    A graph may not return a value that is its input, an initializer, or computed outside of it, nor the same value
    twice: onnxruntime then loses outputs, or computes something else.
    """
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
                continue
            source, output = node.inputs[0], node.outputs[0]
            if source is None:
                continue
            if not output.is_graph_output():
                source.shape, source.type = source.shape or output.shape, source.type or output.type
                output.replace_all_uses_with(source)
            else:
                maker = source.producer()
                if maker is None or maker.graph is not graph or source.is_graph_output():
                    continue
                name, output.name = output.name, None
                source.name, source.shape, source.type = name, output.shape, output.type or source.type
                output.replace_all_uses_with(source, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def name_nodes(model: ir.Model) -> None:
    """Give every node a stable unique name: its own, else that of its first output."""
    used: set[str] = set()
    for node in model.graph:
        name = node.name or next((v.name for v in node.outputs if v.name), node.op_type) or node.op_type
        unique, count = name, 1
        while unique in used:
            unique, count = f"{name}_{count}", count + 1
        used.add(unique)
        node.name = unique


def drop_dead(model: ir.Model) -> None:
    """Remove nodes and initializers that no output needs."""
    common.RemoveUnusedNodesPass()(model)


def forget_shapes(model: ir.Model, keep: Iterable[ir.Value] = ()) -> None:
    """Drop stated shapes of computed values, except of `keep` and of the graph outputs.

    Of a Resize the name of the first size stays: nothing infers it again, and onnxruntime needs it to see that two
    pictures are of one size.
    """
    kept = {id(v) for v in keep} | {id(v) for v in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in kept:
                value.shape = _named_first(value.shape) if node.op_type == "Resize" else None


def _named_first(shape: ir.Shape | None) -> ir.Shape | None:
    """A shape of which only the first size is known, by its name; None where that is a number or unknown."""
    if shape is None or not len(shape) or not isinstance(first := shape[0], ir.SymbolicDim) or first.value is None:
        return None
    return ir.Shape([first.value, *[None] * (len(shape) - 1)])


def forget_floats(model: ir.Model) -> None:
    """Drop stated types and shapes of computed float32 values, which loading infers again: the file gets smaller."""
    kept = {id(v) for v in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in kept and value.dtype == ir.DataType.FLOAT:
                value.type, value.shape = None, None


def unique_name(model: ir.Model, stem: str) -> str:
    """A value name that neither the graph nor a sub-graph uses yet, starting with the stem."""
    used = model.meta.get("onnxpress.names")
    if used is None:
        used = {v.name for n in model.graph.all_nodes() for v in n.outputs}
        for graph in (model.graph, *model.graph.subgraphs()):
            used |= {v.name for v in graph.inputs} | set(graph.initializers)
        model.meta["onnxpress.names"] = used
    name, count = stem, 1
    while name in used:
        name, count = f"{stem}_{count}", count + 1
    used.add(name)
    return name


def add_constant(model: ir.Model, array: np.ndarray, stem: str) -> ir.Value:
    """A new initializer that holds the array (rank 0 is kept)."""
    name = unique_name(model, stem)
    contiguous = np.ascontiguousarray(array).reshape(np.shape(array))
    value = ir.Value(name=name, shape=ir.Shape(contiguous.shape), const_value=ir.tensor(contiguous, name=name))
    value.type = ir.TensorType(ir.DataType.from_numpy(contiguous.dtype))
    model.graph.register_initializer(value)
    return value


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Replace the data, shape and type of an initializer."""
    contiguous = np.ascontiguousarray(array).reshape(np.shape(array))
    value.const_value = ir.tensor(contiguous, name=value.name)
    value.shape = ir.Shape(contiguous.shape)
    value.type = ir.TensorType(ir.DataType.from_numpy(contiguous.dtype))


def own_constant(model: ir.Model, node: ir.Node, index: int) -> ir.Value:
    """The constant at an input, used by this node only: cloned where other nodes share it."""
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
    """Make an input of a node the given constant, without changing other users of the previous value."""
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
    """Insert a node with one output before the anchor; returns its output."""
    node = _make(model, op, inputs, stem, attributes, domain)
    model.graph.insert_before(anchor, node)
    return node.outputs[0]


def insert_many(
    model: ir.Model, anchor: ir.Node, op: str, inputs: Sequence[ir.Value | None], stem: str, count: int
) -> list[ir.Value]:
    """Insert a standard node with several outputs before the anchor; returns its outputs."""
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
    """Insert a node with one output after the anchor; returns its output."""
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
    """Remove a node with one output: the readers of its output read the source instead.

    Where the output is a graph output, the source takes its name, so that the signature does not change.  If the source
    cannot take the name (it is an input, an initializer or an output itself) the node is replaced by an Identity.
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
    """Make the readers of `old`, sub-graphs included, read the source; the producer of `old` stays until `drop_dead`.

    A graph output is computed by a new Identity, so that names inside the graph do not change.
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
    """Make all readers of `old` read `new`; a graph output's name, type and shape move to `new`."""
    if old.is_graph_output():
        name, kind, shape = old.name, old.type, old.shape
        old.name = unique_name(model, f"{name}_old")
        new.name, new.type, new.shape = name, kind, shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def cast_input(model: ir.Model, value: ir.Value, kind: ir.DataType) -> None:
    """Make an input of another type, under its name: a Cast gives its readers the old one."""
    old = value.dtype
    if old is not None and old != kind:
        value.type = ir.TensorType(kind)
        cast_readers(model, value, old)


def cast_readers(model: ir.Model, value: ir.Value, kind: ir.DataType) -> None:
    """Make the readers of an input read it in another type."""
    readers = [(u.node, u.idx) for u in value.uses()]
    cast = insert_before(model, next(iter(model.graph)), "Cast", [value], f"{value.name}_cast", {"to": kind.value})
    cast.type, cast.shape = ir.TensorType(kind), value.shape
    for node, index in readers:
        node.replace_input_with(index, cast)


def cast_output(model: ir.Model, value: ir.Value, kind: ir.DataType) -> None:
    """Make an output of another type, under its name, by a Cast at its end."""
    maker = value.producer()
    if value.dtype is None or value.dtype == kind or maker is None:
        return
    cast = insert_after(model, maker, "Cast", [value], f"{value.name}_cast", {"to": kind.value})
    replace_output(model, value, cast)
    cast.type = ir.TensorType(kind)


def replace_output(model: ir.Model, value: ir.Value, back: ir.Value) -> None:
    """Make `back` the graph output in place of `value`, under the old name; other readers still read `value`."""
    outputs = model.graph.outputs
    position = next(i for i, v in enumerate(outputs) if v is value)
    name, kind, shape = value.name, value.type, value.shape
    value.name = unique_name(model, f"{name}_float")
    back.name, back.type, back.shape = name, kind, shape
    outputs[position] = back


def slice_constant(model: ir.Model, node: ir.Node, index: int, axis: int, keep: np.ndarray) -> None:
    """Keep only the given positions along one axis of a constant input."""
    array = constant(node.inputs[index])
    if array is None:
        raise ValueError(f"input {index} of {node.name} is not constant")
    set_input(model, node, index, np.take(array, keep, axis=axis), f"{node.name}_in{index}")


def set_int(node: ir.Node, name: str, number: int) -> None:
    node.attributes[name] = ir.AttrInt64(name, number)


def set_tensor(node: ir.Node, name: str, array: np.ndarray) -> None:
    node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))


def set_ints(node: ir.Node, name: str, numbers: Sequence[int]) -> None:
    node.attributes[name] = ir.AttrInt64s(name, list(numbers))


def set_attributes(node: ir.Node, attributes: Mapping[str, Any]) -> None:
    """Give a node exactly these attributes."""
    node.attributes.clear()
    for name, value in attributes.items():
        node.attributes[name] = ir.convenience.convert_attribute(name, value)


def rename_ports(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Rename the graph's inputs and outputs, in order; internal values with one of these names are renamed."""
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
    """Replace the data of stored tensors by value name: initializers and Constant nodes of any graph.

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

"""Models made of parts of a model: single nodes, extracted nodes, other outputs, the part between two values."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxpress.model.edit import drop_dead, unique_name
from onnxpress.model.read import constant, constant_tensor
from onnxpress.model.trace import Trace


def single_node_model(model: ir.Model, node: ir.Node, kind: ir.DataType) -> ir.Model:
    """A model of one node and its constants.

    The first input, of any shape, becomes the graph input, the output the graph output.
    """
    source = node.inputs[0]
    if source is None or len(node.outputs) != 1:
        raise ValueError(f"{node.name} cannot stand alone")
    port = ir.Value(name="input", type=ir.TensorType(kind))
    constants: list[ir.Value] = []
    inputs: list[ir.Value | None] = [port]
    for value in node.inputs[1:]:
        array = constant(value)
        if value is not None and array is None:
            raise ValueError(f"{node.name} has another computed input")
        if value is not None and array is not None:
            tensor = ir.tensor(array, name=value.name)
            constants.append(ir.Value(name=value.name, const_value=tensor, type=ir.TensorType(tensor.dtype)))
            constants[-1].shape = ir.Shape(array.shape)
        inputs.append(None if value is None else constants[-1])
    copy = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), name=node.name)
    copy.outputs[0].name, copy.outputs[0].type = "output", ir.TensorType(kind)
    graph = ir.Graph(
        [port], copy.outputs, nodes=[copy], initializers=constants, opset_imports=dict(model.opset_imports)
    )
    graph.name = "alone"
    return ir.Model(graph, ir_version=model.ir_version)


def extract_nodes(model: ir.Model, nodes: Sequence[ir.Node], trace: Trace) -> ir.Model:
    """A model of some nodes and their constants, in the model's order.

    Values that the nodes read from elsewhere become inputs, the outputs of the last node become outputs.  Shapes come
    from the trace, types from the file (float where it gives none).
    """
    made: dict[int, ir.Value] = {}
    inputs: list[ir.Value] = []
    constants: list[ir.Value] = []

    def taken(value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if id(value) not in made:
            tensor = constant_tensor(value)
            copy = ir.Value(name=value.name, type=ir.TensorType(value.dtype or ir.DataType.FLOAT))
            shape = trace.shape(value.name) if tensor is None else tuple(tensor.shape.numpy())
            copy.shape = None if shape is None else ir.Shape(shape)
            if tensor is not None:
                copy.const_value, copy.type = tensor, ir.TensorType(tensor.dtype)
            (inputs if tensor is None else constants).append(copy)
            made[id(value)] = copy
        return made[id(value)]

    copies = []
    for node in nodes:
        copy = ir.Node(node.domain, node.op_type, [taken(v) for v in node.inputs], list(node.attributes.values()),
                       num_outputs=len(node.outputs), name=node.name)  # fmt: skip
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type = old.name, ir.TensorType(old.dtype or ir.DataType.FLOAT)
            made[id(old)] = new
        copies.append(copy)
    graph = ir.Graph(inputs, [v for v in copies[-1].outputs if v.name], nodes=copies, initializers=constants,
                     opset_imports=dict(model.opset_imports), name="excerpt")  # fmt: skip
    return ir.Model(graph, ir_version=model.ir_version)


def outputs_only(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone whose outputs are exactly the named values, and that computes nothing else."""
    clone = model.clone()
    values = {v.name: v for v in (*clone.graph.inputs, *(v for n in clone.graph for v in n.outputs))}
    return set_outputs(clone, [values[name] for name in names])


def shapes_only(model: ir.Model, names: Sequence[str], floats: Sequence[str]) -> tuple[ir.Model, list[str], list[str]]:
    """A clone that outputs shapes in place of values, so that a run holds few of the values at once.

    names: values, of which the shapes are wanted. floats: those of which the sum is wanted. Returns the model, and the
    names of its outputs: the shapes, then the sums.
    """
    clone = model.clone()
    values = {v.name: v for v in (*clone.graph.inputs, *(v for n in clone.graph for v in n.outputs))}

    def added(op: str, source: ir.Value, stem: str, **attributes: object) -> ir.Value:
        node = ir.node(op, [source], attributes)  # type: ignore[arg-type]
        node.outputs[0].name = node.name = unique_name(clone, stem)
        maker = source.producer()
        clone.graph.append(node) if maker is None else clone.graph.insert_after(maker, node)
        return node.outputs[0]

    shapes = [added("Shape", values[name], f"{name}_shape") for name in names]
    sums = [added("ReduceSum", values[name], f"{name}_sum", keepdims=0) for name in floats]
    set_outputs(clone, [*shapes, *sums])
    return clone, [v.name or "" for v in shapes], [v.name or "" for v in sums]


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The model, changed in place, with more values as outputs."""
    values = {v.name: v for n in model.graph for v in n.outputs}
    model.graph.outputs.extend(values[name] for name in names)
    return model


def set_outputs(model: ir.Model, values: Sequence[ir.Value]) -> ir.Model:
    """Make exactly these values the outputs of the model, in place; returns the model."""
    model.graph.outputs.clear()
    for value in values:
        if value.producer() is None:  # a graph input: an output must be computed
            node = ir.node("Identity", [value], name=f"{value.name}_tap")
            node.outputs[0].name = f"{value.name}_tap"
            model.graph.append(node)
            value = node.outputs[0]
        model.graph.outputs.append(value)
    drop_dead(model)
    return model


def part(model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[str]) -> ir.Model:
    """The part of a model that computes the named values from those that some new inputs give, under the same names.

    Other inputs of the model that this part reads remain inputs.
    """
    clone = model.clone()
    clone.graph.outputs.clear()
    values = {v.name: v for v in (*clone.graph.inputs, *(v for n in clone.graph for v in n.outputs))}
    for port in inputs:
        old = values[port.name]
        old.name = unique_name(clone, f"{port.name}_inner")
        old.replace_all_uses_with(port)
        clone.graph.inputs.append(port)
    set_outputs(clone, [values[name] for name in outputs])
    for value in [v for v in clone.graph.inputs if not v.uses() and not v.is_graph_output()]:
        clone.graph.inputs.remove(value)
    return clone


def between(model: ir.Model, source: str, output: str) -> ir.Model:
    """The part of a model from one value to a later one, with `source` as an input.

    Other inputs of the model that this part reads remain inputs.  Where both values are the same it is an Identity.  A
    source whose type the file does not give is taken as float.
    """
    clone = outputs_only(model, [output])
    values = {v.name: v for n in clone.graph for v in n.outputs}
    given = {v.name for v in clone.graph.inputs}
    if source not in given:
        old = values[source]
        port = ir.Value(name=source, shape=old.shape, type=ir.TensorType(old.dtype or ir.DataType.FLOAT))
        old.name = unique_name(clone, f"{source}_inner")
        if old.is_graph_output():  # nothing lies between
            clone.graph.outputs.clear()
            node = ir.node("Identity", [port], name=unique_name(clone, "nothing"))
            node.outputs[0].type, node.outputs[0].shape = port.type, port.shape
            clone.graph.append(node)
            clone.graph.outputs.append(node.outputs[0])
        old.replace_all_uses_with(port)
        clone.graph.inputs.append(port)
        drop_dead(clone)
    for value in [v for v in clone.graph.inputs if not list(v.uses())]:
        clone.graph.inputs.remove(value)
    return clone

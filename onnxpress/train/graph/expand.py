"""Operators that are not registered, by the function body that the ONNX standard defines.

Some bodies depend on the types of the inputs, so a node is expanded when it first runs, once per set of types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir

from onnxpress.train.graph.registry import Builder, NodeContext, Run, Subgraph
from onnxpress.train.graph.tensors import ONNX, Tensor

Compile = Callable[[ir.Function, Mapping[str, Any]], Subgraph]


def _schema(domain: str, name: str, version: int) -> Any | None:
    try:
        return onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None


def has_body(domain: str, name: str, version: int) -> bool:
    """Whether the standard defines a function body for the operator."""
    schema = _schema(domain, name, version)
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


def builder(compile_body: Compile) -> Builder:
    """A builder that expands a node's function body on first use."""

    def build(context: NodeContext) -> Run:
        blocks: dict[tuple[Any, ...], Subgraph] = {}
        many = len(context.node.outputs) > 1

        def run(*inputs: Tensor) -> Any:
            key = tuple(None if t is None else (ONNX[t.dtype], t.ndim) for t in inputs)
            if key not in blocks:
                schema = _schema(context.node.domain, context.node.op_type, context.version)
                blocks[key] = compile_body(_function(context, schema, key), _attributes(context, schema))
            results = blocks[key](inputs, ())
            return results if many else results[0]

        return run

    return build


def _attributes(context: NodeContext, schema: Any) -> dict[str, Any]:
    """The node's attributes, and the defaults of those it does not set."""
    bound = {
        name: ir.serde.deserialize_attribute(a.default_value)
        for name, a in schema.attributes.items()
        if a.default_value.name
    }
    return {**bound, **context.attributes}


def _function(context: NodeContext, schema: Any, key: tuple[Any, ...]) -> ir.Function:
    """The function body of a node.  key: (element type, rank) of each input."""
    if schema.has_function:
        return ir.serde.deserialize_function(schema.function_body)
    node = onnx.NodeProto(op_type=context.node.op_type, domain=context.node.domain)
    node.attribute.extend(ir.serde.serialize_attribute(a) for a in context.attributes.values())
    node.input.extend("" if k is None else f"i{n}" for n, k in enumerate(key))
    node.output.extend(f"o{n}" if v.name else "" for n, v in enumerate(context.node.outputs))
    types = []
    for kind in key:
        proto = onnx.TypeProto()
        if kind is not None:
            proto.tensor_type.elem_type = int(kind[0])
            for _ in range(kind[1]):
                proto.tensor_type.shape.dim.add()
        types.append(proto.SerializeToString())
    text = node.SerializeToString()
    for version in (
        context.version,
        schema.since_version,
    ):  # the body of the newest version, else that of the first
        proto = onnx.FunctionProto.FromString(
            schema.get_context_dependent_function_with_opset_version(version, text, types)
        )
        if proto.node:
            return ir.serde.deserialize_function(proto)
    raise context.problem("the standard has no function body for inputs of these types")

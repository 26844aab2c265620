"""Operators without an entry of their own, by the function body that the ONNX standard gives them.

Some bodies depend on the types of the inputs, so a node is expanded when its first inputs arrive, once for each set of
types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir

from onnxpress.train.graph.registry import Block, Builder, Run, Site
from onnxpress.train.graph.tensors import ONNX, Tensor

Compile = Callable[[ir.Function, Mapping[str, Any]], Block]


def _schema(domain: str, name: str, version: int) -> Any | None:
    try:
        return onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None


def has_body(domain: str, name: str, version: int) -> bool:
    schema = _schema(domain, name, version)
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


def builder(compile_body: Compile) -> Builder:
    """A builder that expands a node's function body on first use."""

    def build(site: Site) -> Run:
        blocks: dict[tuple[Any, ...], Block] = {}
        many = len(site.node.outputs) > 1

        def run(*inputs: Tensor) -> Any:
            key = tuple(None if t is None else (ONNX[t.dtype], t.ndim) for t in inputs)
            if key not in blocks:
                schema = _schema(site.node.domain, site.node.op_type, site.version)
                blocks[key] = compile_body(_function(site, schema, key), _attributes(site, schema))
            results = blocks[key](inputs, ())
            return results if many else results[0]

        return run

    return build


def _attributes(site: Site, schema: Any) -> dict[str, Any]:
    """The node's attributes, and the defaults of those it does not set."""
    bound = {
        name: ir.serde.deserialize_attribute(a.default_value)
        for name, a in schema.attributes.items()
        if a.default_value.name
    }
    return {**bound, **site.attributes}


def _function(site: Site, schema: Any, key: tuple[Any, ...]) -> ir.Function:
    if schema.has_function:
        return ir.serde.deserialize_function(schema.function_body)
    node = onnx.NodeProto(op_type=site.node.op_type, domain=site.node.domain)
    node.attribute.extend(ir.serde.serialize_attribute(a) for a in site.attributes.values())
    node.input.extend("" if k is None else f"i{n}" for n, k in enumerate(key))
    node.output.extend(f"o{n}" if v.name else "" for n, v in enumerate(site.node.outputs))
    types = []
    for kind in key:
        proto = onnx.TypeProto()
        if kind is not None:
            proto.tensor_type.elem_type = int(kind[0])
            for _ in range(kind[1]):
                proto.tensor_type.shape.dim.add()
        types.append(proto.SerializeToString())
    text = node.SerializeToString()
    for version in (site.version, schema.since_version):  # the body that the newest set calls its own, else the first
        proto = onnx.FunctionProto.FromString(
            schema.get_context_dependent_function_with_opset_version(version, text, types)
        )
        if proto.node:
            return ir.serde.deserialize_function(proto)
    raise site.problem("the standard has no function body for inputs of these types")

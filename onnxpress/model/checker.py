"""The ONNX checker, for files that hold operators of onnxruntime under the standard domain, too."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx

_UNKNOWN_OPERATOR = "No Op registered for"  # in the checker's message
_ELSEWHERE = "ai.onnx.runtime"  # a domain that the checker does not know


def check_graph(model: onnx.ModelProto | bytes | Path) -> None:
    """The ONNX checker. Raises onnx.checker.ValidationError.

    Operators of onnxruntime that stand in the standard domain are unknown to the checker: SimplifiedLayerNormalization
    and others in files of its generative models, LayerNormalization before operator set 17 in files that its optimizer
    saved. The rest of the graph is checked without them.
    """
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
        return
    except onnx.checker.ValidationError as error:
        if _UNKNOWN_OPERATOR not in str(error):
            raise
    if isinstance(model, Path):
        proto = onnx.load(model, load_external_data=False)
    else:
        proto = onnx.load_from_string(model) if isinstance(model, bytes) else copy.deepcopy(model)
    versions = {o.domain: o.version for o in proto.opset_import}
    opset = versions.get("", versions.get("ai.onnx", onnx.defs.onnx_opset_version()))
    unknown = 0
    for graph in graphs_of(proto.graph):
        for node in graph.node:
            if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, opset):
                node.domain, unknown = _ELSEWHERE, unknown + 1
    proto.opset_import.append(onnx.helper.make_opsetid(_ELSEWHERE, 1))
    if not unknown:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
    if not any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        onnx.checker.check_model(proto)


def graphs_of(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and all its sub-graphs."""
    found, queue = [], [graph]
    while queue:
        current = queue.pop()
        found.append(current)
        for node in current.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    queue.append(attribute.g)
                queue.extend(attribute.graphs)
    return found

"""The walk that sends labels through a graph: one rule an operator, and caution where there is none."""

from __future__ import annotations

import onnx_ir as ir

from onnxpress.model import label_compute, label_move, read
from onnxpress.model.labels import Flow, opaque
from onnxpress.model.trace import Trace

_RULES = {**label_compute.RULES, **label_move.RULES}


def propagate(model: ir.Model, trace: Trace) -> Flow:
    """Walk the main graph once, in topological order.  The model must be canonical and its nodes named."""
    flow = Flow(trace)
    for value in model.graph.inputs:
        flow.of[value.name or ""] = flow.blank(value)
    for node in model.graph:
        rule = _RULES.get(node.op_type) if read.standard(node) and not read.has_subgraph(node) else None
        if any(trace.shape(v.name) is None for v in node.outputs if v.name):
            rule = None
        if rule is None:
            reason = f"{node.op_type} ({node.name}) is not known to keep channels apart"
            opaque(flow, node, reason)
        else:
            rule(flow, node)
        for name in sorted(read.captured(node)) if read.has_subgraph(node) else ():
            flow.freeze(flow.of.get(name), f"read inside the sub-graph of {node.op_type} ({node.name})")
    for value in model.graph.outputs:
        flow.freeze(flow.read(value), f"graph output {value.name}")
    return flow

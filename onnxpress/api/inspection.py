"""inspect: what a file holds, what each lever could do to it, and why not where it could not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.model import read
from onnxpress.model.counts import macs
from onnxpress.model.files import load, model_hash
from onnxpress.model.signature import Signature, signature
from onnxpress.passes.int8 import qdq


@dataclass(frozen=True)
class NodeFacts:
    """One weighted node.  int8 and prune: "" where the lever can act, else why not."""

    name: str
    op: str
    macs: int
    parameters: int
    int8: str
    prune: str


@dataclass(frozen=True)
class Inspection:
    """macs are those of one sample; groups: (name, channels, kind)."""

    file: str
    bytes: int
    sha256: str
    opset: int
    producer: str
    signature: Signature
    operators: dict[str, int]
    parameters: int
    macs: int
    nodes: tuple[NodeFacts, ...]
    groups: tuple[tuple[str, int, str], ...]
    runs: str


def inspect(model: str | Path | ir.Model) -> Inspection:
    """Facts of a model without samples.  runs: "" if onnxruntime runs it on a synthetic input, else why not."""
    opened = model if isinstance(model, ir.Model) else load(model)
    name = "" if isinstance(model, ir.Model) else str(model)
    size = Path(name).stat().st_size if name else 0
    evidence = evidence_for(opened, None)
    base = evidence.model
    common = (
        name,
        size,
        model_hash(opened),
        read.opset(opened),
        f"{opened.producer_name or '?'} {opened.producer_version or ''}".strip(),
        signature(opened),
        dict(Counter(n.op_type for n in opened.graph).most_common()),
        read.parameters(base),
    )
    try:
        trace, channels = evidence.trace, evidence.channels
    except InputProblem as error:
        return Inspection(*common, 0, (), (), error.line())
    costs = macs(base, trace)
    refused = {r.node: r.reason for r in channels.refused}
    free = {maker for g in channels.groups for maker in g.producers}
    nodes = []
    for node in base.graph:
        if node.op_type not in read.WEIGHTED:
            continue
        weight = read.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        own = "" if node.name in free else refused.get(node.name or "", "follows the channels of its input")
        nodes.append(
            NodeFacts(
                node.name or "",
                node.op_type,
                costs.get(node.name or "", 0),
                0 if weight is None else weight.size,
                qdq.refusal_reason(node, trace) or "",
                own,
            )
        )
    groups = tuple(
        (g.name, g.size, "internal" if g.internal else "bottleneck" if g.bottleneck else "residual stream")
        for g in channels.groups
    )
    return Inspection(*common, sum(costs.values()), tuple(nodes), groups, "")

"""Bias correction: the mean error that rounding leaves on an output channel goes back through the bias."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import Evidence, stream
from onnxpress.model import edit, read
from onnxpress.model.counts import macs
from onnxpress.passes.int8 import qdq

_SAMPLES, _MORE = 32, 128
_SMALL = (
    5e7  # multiply-accumulates a sample up to which more samples cost little: a mean of more is nearer to that of all
)


def correct_bias(evidence: Evidence, work: ir.Model, plan: qdq.Layout) -> int:
    """E[y_float] - E[y_int8] of each output channel goes into the bias, in topological order.

    The integer prefix is the one already corrected, so later layers see what they will see.  How many were corrected.
    """
    small = sum(macs(evidence.model, evidence.trace).values()) <= _SMALL
    data = evidence.samples().take(_MORE if small else _SAMPLES)
    order = [
        n
        for n in list(work.graph)
        if n.name in plan.nodes and n.op_type in qdq.COMPUTE and len(n.inputs) > 2 and n.inputs[2] is not None
    ]
    if not order:
        return 0
    # By node, not by value: an integer node at the graph's output leaves its value's name to the DQ behind it.
    float_names = {n.name: n.outputs[0].name or "" for n in evidence.model.graph if n.outputs}
    wished = _channel_means(evidence.model, [(float_names[n.name], n.op_type) for n in order], data, evidence)
    for node in order:
        name = node.outputs[0].name or ""
        found = _channel_means(work, [(name, node.op_type)], data, evidence)[name]
        shift = wished[float_names[node.name]] - found
        dq = node.inputs[2].producer() if node.inputs[2] is not None else None
        if dq is None or dq.inputs[0] is None or not np.isfinite(shift).all():
            continue
        whole, scale = read.constant(dq.inputs[0]), read.constant(dq.inputs[1])
        if whole is None or scale is None or len(shift) != len(whole):
            continue
        moved = np.rint(whole.astype(np.float64) + shift / scale)
        edit.set_constant(dq.inputs[0], np.clip(moved, -(2.0**31 - 1024), 2.0**31 - 1024).astype(np.int32))
    return len(order)


def _channel_means(
    model: ir.Model, outputs: Sequence[tuple[str, str]], data: Dataset, evidence: Evidence
) -> dict[str, np.ndarray]:
    names = [name for name, _ in outputs]
    sums: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(names, 0)
    for values in stream(model, names, data, evidence.batch_for(names)):
        for name, op in outputs:
            y = values[name]
            moved = np.moveaxis(y, 1, -1) if op == "Conv" else y
            rows = moved.reshape(-1, moved.shape[-1])
            sums[name] = sums.get(name, 0) + rows.sum(axis=0, dtype=np.float64)
            counts[name] += len(rows)
    return {name: sums[name] / max(counts[name], 1) for name in names}

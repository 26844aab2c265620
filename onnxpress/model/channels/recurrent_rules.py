"""Label rules of LSTM, GRU and RNN: hidden unit j is one channel of every gate, in both directions.

Shapes as in the ONNX operator specification: W [directions, gates H, input], R [directions, gates H, H], B [directions,
2 gates H], P [directions, 3 H]; the hidden state is on the last axis of every output.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.channels.labels import Flow, freeze_inputs, labels_along, varying_axes

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_LENGTHS, _STATES, _PEEPHOLE = 4, (5, 6), 7  # input positions


def _recurrent(flow: Flow, node: ir.Node) -> None:
    labels, name = flow.read(node.inputs[0]), node.name or ""
    weights = [read.constant(v) for v in node.inputs[1:3]]
    given = dict(enumerate(node.inputs))
    rest = {i: v for i, v in given.items() if i > 2 and i != _LENGTHS and v is not None}
    if labels is None or any(w is None for w in weights):
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) with computed weights")
    over, recurrent = weights
    assert over is not None and recurrent is not None
    if any(a != 2 for a in varying_axes(labels)):
        flow.freeze(labels, f"{node.op_type} ({node.name}) mixes channels with other axes")
        labels = np.zeros((1, 1, 1), np.int64)
    gates, hidden = GATES[node.op_type], recurrent.shape[2]
    units = flow.new_labels(hidden)
    flow.slice(node, 1, 2, "in", labels_along(labels, 2, over.shape[2]))
    flow.slice(node, 1, 1, "out", np.tile(units, gates))
    flow.slice(node, 2, 1, "along", np.tile(units, gates))
    flow.slice(node, 2, 2, "in", units)
    for index, value in rest.items():
        array = read.constant(value)
        if array is not None:
            flow.slice(node, index, array.ndim - 1, "along", np.tile(units, array.shape[-1] // hidden))
        elif index in _STATES and (state := flow.read(value)) is not None:  # a state computed by another layer
            flow.tie(labels_along(state, state.ndim - 1, hidden), units)
        else:
            flow.freeze(units, f"{node.op_type} ({node.name}) reads a state without channels")
    flow.counts.append((name, "hidden_size", units))
    for value in node.outputs:
        flow.write(value, units.reshape((1,) * (flow.rank(value) - 1) + (-1,)))
    return None


RULES = dict.fromkeys(GATES, _recurrent)

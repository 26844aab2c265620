"""How strongly an error of one node's output reaches the outputs of the model.

Losses of layers are predicted locally: the share of a layer's output power that a change loses. The output gain makes
such numbers comparable over the model. It is measured by a perturbation: the output of one node at a time is multiplied
by 1 + s * r, where r is a fixed random sign for each channel, so that its relative squared error is s^2, and the
relative squared error of the model's outputs is divided by s^2. All nodes are perturbed in one session, by an
additional input. To first order the effects of independent errors add up (see Dong et al. 2019, HAWQ, for the
second-order view).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.errors import Problem
from onnxpress.measure.evidence import Evidence, EvidenceKey
from onnxpress.measure.model_inputs import synthetic_samples
from onnxpress.model import edit, read
from onnxpress.runtime.session import all_cores, open_session, run

_PERTURBED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"))
_CHANNELS_SECOND = frozenset(("Conv", "ConvTranspose"))
_SIZE = 0.05  # relative error of the perturbation
_SAMPLES = 4
_MAX_NODES = 256  # nodes that are perturbed; the others get the median
_INPUT = "onnxpress_perturbation"
_GAINS: EvidenceKey[dict[str, float]] = EvidenceKey("output gains")


def output_gains(evidence: Evidence) -> dict[str, float]:
    """Relative squared error of the outputs for a unit of relative squared error of a node's output, by node name.

    Nodes with weights and matrix products are listed; measured once on a few samples (synthetic ones without data).
    Where the perturbed model does not run all gains are 1.
    """
    return evidence.derive(_GAINS, lambda: _measure(evidence))


def predicted_loss(evidence: Evidence, node: str, local: float) -> float:
    """Predicted relative squared error of the model's outputs for the local one of a node's output.

    A node that is not listed gets the median gain.
    """
    gains = output_gains(evidence)
    usual = float(np.median(list(gains.values()))) if gains else 1.0
    return float(gains.get(node, usual) * local)


def summed_predicted_loss(evidence: Evidence, nodes: Iterable[str], local: float) -> float:
    """The same for several nodes whose outputs all have the local error."""
    found = [predicted_loss(evidence, n, local) for n in nodes]
    return float(np.sum(found)) if found else predicted_loss(evidence, "", local)


def _measure(evidence: Evidence) -> dict[str, float]:
    work = evidence.model.clone()
    shapes = evidence.trace.shapes
    nodes = [n for n in work.graph if n.op_type in _PERTURBED and read.standard(n) and _is_float(n.outputs[0], shapes)]
    if not nodes:
        return {}
    every = max(1, -(-len(nodes) // _MAX_NODES))
    nodes = nodes[::every]
    names = [n.name or "" for n in nodes]
    perturbation = ir.Value(name=_INPUT, shape=ir.Shape([len(nodes)]), type=ir.TensorType(ir.DataType.FLOAT))
    work.graph.inputs.append(perturbation)
    rng = np.random.default_rng(0)
    for number, node in enumerate(nodes):
        _perturb(work, node, number, perturbation, shapes, rng)
    try:
        session = open_session(work, all_cores())
        source = evidence.data if evidence.data is not None else synthetic_samples(evidence.model, 1, evidence.seed)
        batches = list(source.take(_SAMPLES).batches(_SAMPLES if evidence.batchable else 1))
        sizes = np.zeros(len(nodes), np.float32)
        exact = [run(session, {**b.inputs, _INPUT: sizes}) for b in batches]
        found = {}
        for number, name in enumerate(names):
            sizes = np.zeros(len(nodes), np.float32)
            sizes[number] = _SIZE
            other = [run(session, {**b.inputs, _INPUT: sizes}) for b in batches]
            found[name] = _relative_error(exact, other) / _SIZE**2
    except Problem:
        return dict.fromkeys(names, 1.0)
    return found


def _is_float(value: ir.Value, shapes: Any) -> bool:
    shape = shapes.get(value.name)
    return shape is not None and len(shape) >= 2 and value.dtype in (None, ir.DataType.FLOAT)


def _perturb(
    model: ir.Model, node: ir.Node, number: int, perturbation: ir.Value, shapes: Any, rng: np.random.Generator
) -> None:
    """Multiply a node's output by 1 + s * r, s being one element of the perturbation."""
    value = node.outputs[0]
    shape = shapes[value.name]
    axis = 1 if node.op_type in _CHANNELS_SECOND else len(shape) - 1
    signs = rng.choice(np.array([-1, 1], np.float32), shape[axis]).reshape((-1,) + (1,) * (len(shape) - 1 - axis))
    stem = f"{node.name}_gain"
    place = edit.add_constant(model, np.array(number, np.int64), f"{stem}_place")
    pattern = edit.add_constant(model, signs, f"{stem}_signs")
    one = edit.add_constant(model, np.ones((), np.float32), f"{stem}_one")
    size = edit.insert_after(model, node, "Gather", [perturbation, place], f"{stem}_size")
    change = edit.insert_after(model, _maker(size), "Mul", [pattern, size], f"{stem}_change")
    factor = edit.insert_after(model, _maker(change), "Add", [change, one], f"{stem}_factor")
    changed = edit.insert_after(model, _maker(factor), "Mul", [one, factor], f"{stem}_out")
    edit.replace_value(model, value, changed)
    _maker(changed).replace_input_with(0, value)


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _relative_error(exact: list[list[np.ndarray]], other: list[list[np.ndarray]]) -> float:
    """Squared error by variance, of the output that is changed most."""
    worst = 0.0
    for position in range(len(exact[0])):
        a = [np.nan_to_num(o[position].astype(np.float64)) for o in exact if o[position].dtype.kind == "f"]
        b = [np.nan_to_num(o[position].astype(np.float64)) for o in other if o[position].dtype.kind == "f"]
        if not a or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
            continue
        flat, changed = np.concatenate([x.ravel() for x in a]), np.concatenate([x.ravel() for x in b])
        power = float(((flat - flat.mean()) ** 2).sum())
        if power > 0:
            worst = max(worst, float(((flat - changed) ** 2).sum()) / power)
    return worst

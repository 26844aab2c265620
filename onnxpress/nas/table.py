"""What a candidate will take, told from its units: each timed alone once, and kept, so that few networks need a clock of their own.

A unit is a layer with what onnxruntime fuses into it (normalization, activation), or any other operator.  Alone it takes longer than
among others, whose layout it could share, and a run has costs of its own: what the sums mean is fitted (non-negative least
squares on relative errors) to the candidates that were timed as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy.optimize import nnls

from onnxpress.errors import Problem
from onnxpress.model import edit, read
from onnxpress.model.structure import structural_hash
from onnxpress.model.trace import Trace
from onnxpress.nas.costs import declared
from onnxpress.runtime.latency import quick_seconds
from onnxpress.runtime.session import trace

_FUSED = {"BatchNormalization", "Relu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "LeakyRelu"}
_LEAST = 12  # candidates timed as a whole, before sums are believed
_KINDS = 4  # what a run costs anyway, dense layers, depthwise ones, everything else

Arrays = Mapping[str, np.ndarray]


@dataclass
class Table:
    """Of one machine.  units: seconds of each, by structure and sizes; seen: sums by kind, and seconds, of whole candidates."""

    units: dict[str, float] = field(default_factory=dict)
    seen: list[tuple[np.ndarray, float]] = field(default_factory=list)

    def sums(self, model: ir.Model, sample: Arrays) -> np.ndarray:
        """Seconds of the units, added up by kind; sample: inputs of one sample.  Times what is not in the table yet."""
        sizes = declared(model, sample) or trace(model, sample)
        total = np.zeros(_KINDS)
        total[0] = 1e-5
        for nodes in units(model):
            part = edit.excerpt(model, nodes, sizes)
            shapes = [sizes.shape(v.name) for v in part.graph.inputs]
            key = f"{structural_hash(part, named=False)} {shapes}"
            if key not in self.units:
                self.units[key] = _timed(part, sizes)
            total[_kind(nodes[0])] += self.units[key]
        return total

    def learn(self, sums: np.ndarray, seconds: float) -> None:
        """What a candidate of such sums took as a whole."""
        self.seen.append((sums, seconds))

    def predict(self, sums: np.ndarray) -> tuple[float, float]:
        """Seconds of a run, and by which share of them this may be wrong (twice the deviation on candidates left out of
        the fit in turn); nothing is known before enough were seen."""
        if len(self.seen) < _LEAST:
            return 0.0, np.inf
        rows = np.array([s / t for s, t in self.seen])
        weights = nnls(rows, np.ones(len(rows)))[0]
        errors = [1 - rows[i] @ nnls(np.delete(rows, i, 0), np.ones(len(rows) - 1))[0] for i in range(len(rows))[-4 * _LEAST :]]
        return float(weights @ sums), 2 * float(np.sqrt(np.mean(np.square(errors))))


def units(model: ir.Model) -> Iterator[list[ir.Node]]:
    """The nodes of each unit, in the model's order."""
    taken: set[int] = set()
    for node in model.graph:
        if id(node) in taken:
            continue
        nodes = [node]
        if read.standard(node) and node.op_type in read.WEIGHTED:
            while (follower := _only_reader(nodes[-1])) is not None and follower.op_type in _FUSED:
                nodes.append(follower)
        taken.update(map(id, nodes))
        yield nodes


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    alone = len(uses) == 1 and len(node.outputs) == 1 and uses[0].idx == 0 and not node.outputs[0].is_graph_output()
    return uses[0].node if alone and read.standard(uses[0].node) else None


def _kind(node: ir.Node) -> int:
    if not read.standard(node) or node.op_type not in read.WEIGHTED:
        return 3
    return 2 if read.is_depthwise(node) else 1


def _timed(part: ir.Model, sizes: Trace) -> float:
    """Seconds of a unit; nothing where it cannot stand alone (what only computes shapes costs nearly nothing)."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in part.graph.inputs:
        shape: Sequence[int] = sizes.shape(value.name) or ()
        dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        known = sizes.values.get(value.name or "")
        if known is not None:
            feeds[value.name or ""] = known
        elif dtype.kind == "f":
            feeds[value.name or ""] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[value.name or ""] = np.zeros(shape, dtype)
    try:
        return quick_seconds(part, feeds)
    except Problem:
        return 0.0

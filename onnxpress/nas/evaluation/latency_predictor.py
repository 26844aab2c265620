"""Prediction of a candidate's latency from its units, each timed alone once, so that few networks need to be measured.

A unit alone takes longer than within a network (see `measure.unit_latency`), and a run has a fixed cost: the weights
of the sums are fitted (non-negative least squares on relative errors) to the candidates that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy.optimize import nnls

from onnxpress.measure.unit_latency import UnitLatencies, fused_units
from onnxpress.model import read
from onnxpress.nas.evaluation.costs import declared_shapes
from onnxpress.runtime.session import trace

_MIN_OBSERVATIONS = 12  # timed candidates, before latency is predicted
_RECENT = 48  # observations whose errors give the uncertainty
_KINDS = 4  # fixed cost, dense layers, depthwise layers, other operators
_RUN_SECONDS = 1e-5  # scale of the fixed cost of a run


@dataclass
class LatencyPredictor:
    """Latency predictor of one machine.

    times: of the units.
    observations: sums by kind of unit, and seconds, of measured candidates.
    """

    times: UnitLatencies = field(default_factory=UnitLatencies)
    observations: list[tuple[np.ndarray, float]] = field(default_factory=list)

    def sums(self, model: ir.Model, sample: Mapping[str, np.ndarray]) -> np.ndarray:
        """Seconds of the units, summed by kind; unknown units are timed.  sample: inputs of one sample."""
        sizes = declared_shapes(model, sample) or trace(model, sample)
        total = np.zeros(_KINDS)
        total[0] = _RUN_SECONDS
        for nodes in fused_units(model):
            total[_kind(nodes[0])] += self.times.seconds(model, nodes, sizes)
        self.times.keep()
        return total

    def add(self, sums: np.ndarray, seconds: float) -> None:
        """Add a measured candidate."""
        self.observations.append((sums, seconds))

    def predict(self, sums: np.ndarray) -> tuple[float, float]:
        """Predicted seconds of a run, and their relative uncertainty (twice the standard error of leave-one-out
        predictions).

        The uncertainty is infinite before enough candidates were measured.
        """
        if len(self.observations) < _MIN_OBSERVATIONS:
            return 0.0, np.inf
        rows = np.array([s / t for s, t in self.observations])
        weights = nnls(rows, np.ones(len(rows)))[0]
        errors = [
            1 - rows[i] @ nnls(np.delete(rows, i, 0), np.ones(len(rows) - 1))[0] for i in range(len(rows))[-_RECENT:]
        ]
        return float(weights @ sums), 2 * float(np.sqrt(np.mean(np.square(errors))))


def _kind(node: ir.Node) -> int:
    if not read.standard(node) or node.op_type not in read.WEIGHTED:
        return 3
    return 2 if read.is_depthwise(node) else 1

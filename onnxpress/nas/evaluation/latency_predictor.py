"""What a candidate will take, told from its units: each timed alone once, and kept, so that few networks need a clock of their own.

Alone a unit takes longer than among others (see `runtime.units`), and a run has costs of its own: what the sums mean is fitted
(non-negative least squares on relative errors) to the candidates that were timed as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy.optimize import nnls

from onnxpress.model import read
from onnxpress.nas.evaluation.costs import declared_shapes
from onnxpress.runtime.session import trace
from onnxpress.runtime.unit_latency import UnitTimes, units

_MIN_OBSERVATIONS = 12  # candidates timed as a whole, before sums are believed
_RECENT = 48  # of them, whose errors tell the uncertainty
_KINDS = 4  # what a run costs anyway, dense layers, depthwise ones, everything else
_RUN_SECONDS = 1e-5  # seconds, the scale of what a run costs anyway


@dataclass
class LatencyPredictor:
    """Of one machine.  observations: sums by kind, and seconds, of whole candidates."""

    times: UnitTimes = field(default_factory=UnitTimes)
    observations: list[tuple[np.ndarray, float]] = field(default_factory=list)

    def sums(self, model: ir.Model, sample: Mapping[str, np.ndarray]) -> np.ndarray:
        """Seconds of the units, added up by kind; sample: inputs of one sample.  Times what is not in the table yet."""
        sizes = declared_shapes(model, sample) or trace(model, sample)
        total = np.zeros(_KINDS)
        total[0] = _RUN_SECONDS
        for nodes in units(model):
            total[_kind(nodes[0])] += self.times.seconds(model, nodes, sizes)
        return total

    def add(self, sums: np.ndarray, seconds: float) -> None:
        """What a candidate of such sums took as a whole."""
        self.observations.append((sums, seconds))

    def predict(self, sums: np.ndarray) -> tuple[float, float]:
        """Seconds of a run, and by which share of them this may be wrong (twice the deviation on candidates left out of
        the fit in turn); nothing is known before enough were observations."""
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

"""On how many samples losses are measured that are only compared with each other."""

from __future__ import annotations

import numpy as np

from onnxpress.measure.evidence import Evidence
from onnxpress.model.counts import macs

_FEWEST, _MOST = 16, 96
_MACS = 4e9  # multiply-accumulates of one pass over them


def loss_samples(evidence: Evidence) -> int:
    """Number of the calibration samples: fewer for a large model, which has many units to compare as well."""
    each = sum(macs(evidence.model, evidence.trace).values())
    return int(np.clip(_MACS / max(each, 1), _FEWEST, _MOST))

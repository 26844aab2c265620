"""How many calibration samples candidates are made from, in the time that there is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.plan.candidate_store import CandidateStore
from onnxpress.plan.plan import CALIBRATION
from onnxpress.runtime.session import open_session, run

_PASS_SHARE = 0.005  # of the time budget, for one pass over the samples
_LEAST = 32
_KEY = "calibration samples"  # among the facts of a run


def samples_within(model: ir.Model, data: Dataset, time_budget: float, store: CandidateStore) -> int:
    """CALIBRATION samples, or fewer where one pass over those would take much of the time budget (in seconds).

    The number is kept with the run: plans hold it, and a resumed run may find the machine slower.
    """
    known = store.get_meta(_KEY)
    if known is None:
        known = CALIBRATION
        if math.isfinite(time_budget):
            seconds = seconds_of_one(model, next(iter(data.batches(1))).inputs)
            known = int(min(max(_PASS_SHARE * time_budget / seconds, _LEAST), CALIBRATION))
        store.set_meta(_KEY, known)
    return int(known)


def seconds_of_one(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> float:
    """Seconds of the model on one sample, roughly."""
    session = open_session(model)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run(session, feeds)
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)

"""How many samples a search uses in the time that there is: to make candidates, to select them, and to validate."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset, Splits
from onnxpress.plan.candidate_store import CandidateStore
from onnxpress.plan.plan import CALIBRATION
from onnxpress.runtime.session import open_session, run

_PASS_SHARE = 0.005  # of the time budget, for one pass over the samples
_SELECTION_SHARE, _VALIDATION_SHARE = 0.04, 0.1  # of the time budget, for scoring one model on these samples
_LEAST, _LEAST_JUDGED = 32, 64
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


def splits_within(original: ir.Model, splits: Splits, time_budget: float) -> tuple[Splits, float, list[str]]:
    """The parts, with fewer samples to judge on where scoring one model would take much of the time budget.

    Numbers are powers of two, so that they hardly depend on how busy the machine is.

    Returns:
        The parts, the seconds of scoring one model on the validation samples, and what to say.
    """
    seconds = seconds_of_one(original, next(iter(splits.select.batches(1))).inputs)
    notes: list[str] = []

    def judged(data: Dataset, share: float, name: str) -> Dataset:
        count = max(2 ** round(math.log2(max(share * time_budget / seconds, 1.0))), _LEAST_JUDGED)
        if splits.crossed or count >= len(data):
            return data
        notes.append(f"{count} of {len(data)} {name} samples: one pass over all takes {seconds * len(data):.0f} s")
        return data.select([int(i) for i in np.linspace(0, len(data) - 1, count)])

    select = judged(splits.select, _SELECTION_SHARE, "selection")
    validate = judged(splits.validate, _VALIDATION_SHARE, "validation")
    return replace(splits, select=select, validate=validate), seconds * len(validate), notes


def seconds_of_one(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> float:
    """Seconds of the model on one sample, roughly."""
    session = open_session(model)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run(session, feeds)
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)

"""Numerical differences of two models: outputs, and intermediate values that both have under one name.

Passes keep the names of the values they do not replace, so the differences of the common values, in the original's
order, show where the models start to differ.  Values whose shapes differ (those of a pruned layer) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.sqnr import sqnr_db
from onnxpress.runtime.session import SessionSettings, tap

_TINY = 1e-30
_MAX_BYTES = 64 * 2**20  # bytes of intermediate values of one sample held at once


@dataclass(frozen=True)
class TensorDifference:
    """The difference of one value over all samples.

    max_abs: largest absolute difference of numbers that are finite in both
    sqnr_db: power of the original's values over the power of the difference, in dB
    cosine:  cosine similarity
    op:      operator that computes the value
    not_finite: numbers that are NaN or infinite in the original, and in the other model
    numbers: numbers in all
    """

    name: str
    max_abs: float
    sqnr_db: float
    cosine: float
    op: str = ""
    not_finite: tuple[int, int] = (0, 0)
    numbers: int = 0

    def warnings(self) -> list[str]:
        """What the differences of finite numbers do not tell."""
        whose = ("the original's", "the other model's")
        return [
            f"{who} {self.name} is NaN or infinite in {count} of {self.numbers} numbers, which no difference shows"
            for who, count in zip(whose, self.not_finite, strict=True)
            if count
        ]


def tensor_differences(
    first: ir.Model, second: ir.Model, names: Sequence[str], data: Dataset
) -> list[TensorDifference]:
    """Differences of the named values, which both models have, in this order.

    Values that are not numeric, or whose shapes differ, count as equal.
    """
    level = SessionSettings()
    one, two = tap(first, names, level), tap(second, names, level)
    top, sums, counts = np.zeros(len(names)), np.zeros((len(names), 4)), np.zeros((len(names), 3), np.int64)
    for batch in data.batches(1):
        for i, (a, b) in enumerate(zip(one.run(None, batch.inputs), two.run(None, batch.inputs), strict=True)):
            a, b = np.asarray(a), np.asarray(b)
            if a.dtype.kind not in "fiub" or a.shape != b.shape or not a.size:
                continue
            x, y = a.astype(np.float64), b.astype(np.float64)
            fine = [np.isfinite(v) for v in (x, y)]
            counts[i] += x.size, *(x.size - int(f.sum()) for f in fine)
            x, y = (np.where(fine[0] & fine[1], v, 0.0) for v in (x, y))
            top[i] = max(top[i], float(np.abs(x - y).max()))
            sums[i] += ((x * x).sum(), (y * y).sum(), (x * y).sum(), ((x - y) ** 2).sum())
    makers = {v.name: n.op_type for n in first.graph for v in n.outputs}
    return [
        TensorDifference(
            name, float(top[i]), sqnr_db(s[0], s[3], _TINY),
            float(s[2] / max(np.sqrt(s[0] * s[1]), _TINY)), makers.get(name, ""),
            (int(counts[i, 1]), int(counts[i, 2])), int(counts[i, 0]),
        )
        for i, (name, s) in enumerate(zip(names, sums, strict=True))
    ]  # fmt: skip


def intermediate_differences(first: ir.Model, second: ir.Model, data: Dataset) -> list[TensorDifference]:
    """Differences of the intermediate values that both models have with the same shape, in the first model's order."""
    ours, theirs = (evidence_for(m, data) for m in (first, second))
    names, sizes = [], []
    for node in ours.model.graph:
        for value in node.outputs:
            shape = ours.trace.shape(value.name)
            if value.name and shape is not None and shape == theirs.trace.shape(value.name):
                names.append(value.name)
                sizes.append(8 * int(np.prod(shape)))
    found: list[TensorDifference] = []
    while names:
        count = max(1, int(np.searchsorted(np.cumsum(sizes), _MAX_BYTES)))
        found += tensor_differences(ours.model, theirs.model, names[:count], data)
        names, sizes = names[count:], sizes[count:]
    return found

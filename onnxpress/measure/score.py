"""How good a candidate is on samples: a task metric against the original, with a paired 95 % interval.

Classifiers are judged by top-1 where there are labels and by agreement with the original where there are none;
everything else by relative error.  `drop` is always "how much worse than the original", in the metric's own unit
(0.01 = one point).  `nmse` is the surrogate that ranks candidates whose metric is the same: squared error of all
outputs over the original's variance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Batch, Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import takes_batches
from onnxpress.model.signature import signature
from onnxpress.runtime.session import all_cores, open_session, run

_KEEP_BYTES = 256 * 2**20
_BATCH = 16
_RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """metric: top-1, agreement or relative error; drop with its 95 % interval [low, high]; samples: how many counted."""

    metric: str
    value: float
    reference: float
    drop: float
    low: float
    high: float
    agreement: float | None
    nmse: float
    samples: int

    def text(self) -> str:
        return f"{self.metric} {self.value:.4f} (original {self.reference:.4f}), drop {self.drop:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


class Judge:
    """Scores candidates against one original on one dataset.

    The original's outputs are kept when they are small, and recomputed beside the candidate's when not, so memory
    stays bounded for models with large outputs.
    """

    def __init__(self, original: ir.Model | bytes, data: Dataset, name: str = "") -> None:
        if not len(data):
            raise InputProblem("no samples to score on", name or data.name, "", "give at least one sample")
        self.data, self.name = data, name or data.name
        self._original = open_session(original, all_cores())
        self._batch = _BATCH
        first = next(iter(data.batches(1)))
        if isinstance(original, ir.Model) and not takes_batches(original, first.inputs, signature(original)):
            self._batch = 1
        outputs = run(self._original, first.inputs, where=first.keys[0])
        self.classes = class_count(outputs[0])
        keep = sum(o.nbytes for o in outputs) * len(data) <= _KEEP_BYTES
        self._kept = [self._outputs(self._original, b) for b in self._batches()] if keep else None
        self.labelled = (
            self.classes > 1
            and data.labelled
            and all(
                label is None or (np.ndim(label) == 0 and float(label).is_integer() and 0 <= int(label) < self.classes)
                for label in data.labels
            )
        )

    @property
    def metric(self) -> str:
        return "relative error" if self.classes < 2 else ("top-1" if self.labelled else "agreement")

    def _batches(self) -> Iterator[Batch]:
        return self.data.batches(self._batch)

    @staticmethod
    def _outputs(session: object, batch: Batch) -> list[np.ndarray]:
        values = run(session, batch.inputs, where=batch.keys[0])
        return [v[: batch.count] if v.ndim and v.shape[0] > batch.count else v for v in values]

    def score(self, model: ir.Model | bytes) -> Score:
        session = open_session(model, all_cores())
        right: list[np.ndarray] = []
        right0: list[np.ndarray] = []
        same: list[np.ndarray] = []
        errors: list[np.ndarray] = []
        power: list[np.ndarray] = []
        total, square, number = 0.0, 0.0, 0
        for index, batch in enumerate(self._batches()):
            kept = self._kept[index] if self._kept is not None else self._outputs(self._original, batch)
            found = self._outputs(session, batch)
            error, energy, first, second, count = _errors(kept, found, batch.count)
            errors.append(error)
            power.append(energy)
            total, square, number = total + first, square + second, number + count
            if self.classes > 1:
                old, new = (o[0].reshape(batch.count, -1).argmax(1) for o in (kept, found))
                same.append(old == new)
                if self.labelled:
                    labels = np.array([-1 if label is None else int(label) for label in batch.labels[: batch.count]])
                    use = labels >= 0
                    right.append((new == labels)[use])
                    right0.append((old == labels)[use])
        variance = max(square - total * total / max(number, 1), 1e-30)
        nmse = float(np.concatenate(errors).sum() / variance)
        return self._judge(nmse, same, right, right0, np.concatenate(errors), np.concatenate(power))

    def _judge(
        self,
        nmse: float,
        same: list[np.ndarray],
        right: list[np.ndarray],
        right0: list[np.ndarray],
        errors: np.ndarray,
        power: np.ndarray,
    ) -> Score:
        agreement = float(np.concatenate(same).mean()) if same else None
        if self.labelled:
            new, old = np.concatenate(right).astype(float), np.concatenate(right0).astype(float)
            loss = old - new
            return Score(
                "top-1",
                float(new.mean()),
                float(old.mean()),
                float(loss.mean()),
                *_interval(loss),
                agreement,
                nmse,
                len(loss),
            )
        if self.classes > 1:
            loss = 1.0 - np.concatenate(same).astype(float)
            return Score(
                "agreement",
                float(1 - loss.mean()),
                1.0,
                float(loss.mean()),
                *_interval(loss),
                agreement,
                nmse,
                len(loss),
            )
        relative = np.sqrt(errors / np.maximum(power, 1e-30))
        return Score(
            "relative error",
            float(relative.mean()),
            0.0,
            float(relative.mean()),
            *_interval(relative),
            None,
            nmse,
            len(relative),
        )


def class_count(output: np.ndarray) -> int:
    """Number of classes where an output of one sample looks like class scores ([1,K] or [1,K,1,1], float), else 0."""
    if output.dtype.kind != "f" or output.ndim < 2 or output.shape[0] != 1:
        return 0
    size = int(np.prod(output.shape[1:]))
    return size if size >= 2 and size == max(output.shape[1:]) else 0


def _errors(
    old: list[np.ndarray], new: list[np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray, float, float, int]:
    """Per-sample squared error and power over all float outputs; sum, sum of squares and count of the old values."""
    error, power = np.zeros(count), np.zeros(count)
    total, square, number = 0.0, 0.0, 0
    for a, b in zip(old, new, strict=True):
        if a.dtype.kind != "f":
            continue
        a = a.astype(np.float64)
        b = b.astype(np.float64) if b.shape == a.shape else np.full_like(a, np.inf)
        difference = np.where(
            np.isfinite(a), np.nan_to_num(b, nan=1e30, posinf=1e30, neginf=-1e30) - np.nan_to_num(a), 0.0
        )
        clean = np.where(np.isfinite(a), a, 0.0)
        rows = (count, -1) if a.ndim and a.shape[0] == count else (1, -1)
        error += (difference.reshape(rows) ** 2).sum(axis=1)
        power += (clean.reshape(rows) ** 2).sum(axis=1)
        total, square, number = total + float(clean.sum()), square + float((clean**2).sum()), number + clean.size
    return error, power, total, square, number


def _interval(loss: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of paired per-sample losses, by the bootstrap over samples."""
    if len(loss) < 2:
        return float("-inf"), float("inf")
    rng = np.random.default_rng(0)
    values, counts = np.unique(loss, return_counts=True)
    if len(values) <= 16:  # outcomes are few: draw their counts instead of samples
        draws = rng.multinomial(len(loss), counts / len(loss), _RESAMPLES) @ values / len(loss)
    else:
        draws = np.array([loss[rng.integers(0, len(loss), len(loss))].mean() for _ in range(_RESAMPLES)])
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))

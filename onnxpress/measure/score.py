"""How good a candidate is on samples: a task metric against the original, with a paired 95 % interval.

With class labels the output that answers them is judged by top-1; without, an output of class probabilities (or one that
is named as scores) by agreement with the original; where an output of that shape may as well be an embedding, a tenth of
its relative error counts too.  All other outputs are judged by relative error, integers by the share
of elements that changed.  `drop` is "how much worse than the original", in the metric's own unit (0.01 = one point); of
several outputs the worst counts.  `nmse` is the surrogate that ranks candidates whose metric is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxpress.data.dataset import Batch, Dataset
from onnxpress.data.layout import layout
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import supports_batching
from onnxpress.model import edit
from onnxpress.model.signature import signature
from onnxpress.runtime.session import all_cores, open_session, run

_KEEP_BYTES = 256 * 2**20
_BATCH = 16
_RESAMPLES = 2000
_DOUBT = 0.1  # weight of the relative error of an output that may or may not be class scores
_SCORE_NAMES = ("logit", "prob", "score", "class", "softmax", "dense", "label")


@dataclass(frozen=True)
class MetricResult:
    """One metric.  value: of the other model, reference: of the original; drop: how much worse the other is, with its 95 % interval
    [low, high]."""

    metric: str
    value: float
    reference: float
    drop: float
    low: float
    high: float
    samples: int

    def text(self) -> str:
        interval = f"[{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.metric} {self.value:.4f}, original {self.reference:.4f}: drop {self.drop:+.4f} {interval} on {self.samples} samples"


@dataclass(frozen=True)
class Score(MetricResult):
    """What candidates are judged by: top-1, agreement, relative error or changed elements."""

    agreement: float | None
    nmse: float


class Scorer:
    """Scores candidates against one original on one dataset.

    The original's outputs are kept when they are small, and recomputed beside the candidate's when not, so memory
    stays bounded for models with large outputs.
    """

    def __init__(self, original: ir.Model | bytes, data: Dataset, name: str = "") -> None:
        if not len(data):
            raise InputProblem("no samples to score on", name or data.name, "", "give at least one sample")
        self.data, self.name = data, name or data.name
        self._original = open_session(original, all_cores())
        self._fixed = layout(data.signature).batch or 1
        self._batch = _BATCH
        first = next(iter(data.batches(1)))
        last = next(iter(data.select([len(data) - 1]).batches(1))).inputs
        if isinstance(original, ir.Model) and not supports_batching(original, first.inputs, signature(original), last):
            self._batch = 1
        outputs = run(self._original, first.inputs, where=first.keys[0])
        if not any(o.dtype.kind in "fiub" for o in outputs):
            raise InputProblem("no output of the model can be judged", "", "none is a number", "judge another output")
        self.names = names = [o.name for o in self._original.get_outputs()]
        keep = sum(o.nbytes for o in outputs) * len(data) <= _KEEP_BYTES
        self._kept = [self._outputs(self._original, b) for b in self._batches()] if keep else None
        rows = [o[:1] if self._fixed > 1 else o for o in outputs]
        self.labelled = self._has_classes(rows)
        self.doubtful = False
        self.answer = self._answering(rows, names)

    @property
    def metric(self) -> str:
        if self.answer is None:
            return "relative error"
        return "top-1" if self.labelled else "agreement"

    def _has_classes(self, rows: Sequence[np.ndarray]) -> bool:
        """Whether the labels are class numbers that some output has scores for."""
        most = max((class_count(o) for o in rows), default=0)
        marks = [label for label in self.data.labels if label is not None]
        return bool(marks) and all(
            np.ndim(m) == 0 and not isinstance(m, str) and float(m).is_integer() and 0 <= int(m) < most for m in marks
        )

    def _answering(self, rows: Sequence[np.ndarray], names: Sequence[str]) -> int | None:
        """The output that answers: with labels the one most often right, else the one that looks like class scores."""
        able = [i for i, o in enumerate(rows) if class_count(o)]
        if not able:
            return None
        if self.labelled:
            return max(able, key=lambda i: (self._right(i), -i))
        likely = [i for i in able if _probabilities(rows[i]) or any(w in names[i].lower() for w in _SCORE_NAMES)]
        self.doubtful = not likely
        return (likely or able)[0]

    def _right(self, output: int) -> int:
        total = 0
        for index, batch in enumerate(self._batches()):
            if index * max(self._batch, 1) >= 256:
                break
            kept = self._kept[index] if self._kept is not None else self._outputs(self._original, batch)
            found = kept[output].reshape(batch.count, -1).argmax(1)
            total += sum(label is not None and int(label) == f for label, f in zip(batch.labels, found, strict=True))
        return total

    def _batches(self) -> Iterator[Batch]:
        return self.data.batches(self._batch)

    def _outputs(self, session: ort.InferenceSession, batch: Batch) -> list[np.ndarray]:
        values = run(session, batch.inputs, where=batch.keys[0])
        if batch.count >= self._fixed:
            return values
        return [v[: batch.count] if v.ndim and v.shape[0] == self._fixed else v for v in values]

    def pairs(self, model: ir.Model | bytes) -> Iterator[tuple[Batch, list[np.ndarray], list[np.ndarray]]]:
        """Batches with the original's outputs and the model's."""
        session = open_session(model, all_cores())
        for index, batch in enumerate(self._batches()):
            kept = self._kept[index] if self._kept is not None else self._outputs(self._original, batch)
            yield batch, kept, self._outputs(session, batch)

    def score(self, model: ir.Model | bytes) -> Score:
        same: list[np.ndarray] = []
        loss: list[np.ndarray] = []
        right: list[np.ndarray] = []
        others: list[np.ndarray] = []
        sums: list[list[tuple[float, float, float, float]]] = []
        for batch, kept, found in self.pairs(model):
            if self.answer is not None:
                old, new = (o[self.answer].reshape(batch.count, -1).argmax(1) for o in (kept, found))
                same.append(old == new)
                marks = np.array([-1 if x is None or not self.labelled else int(x) for x in batch.labels])
                use = marks >= 0
                right.append((old == marks)[use])
                loss.append(
                    (old == marks)[use].astype(float) - (new == marks)[use] if self.labelled else (old != new) * 1.0
                )
            weights = {i: 1.0 for i in range(len(kept)) if i != self.answer}
            if self.doubtful and self.answer is not None:
                weights[self.answer] = _DOUBT
            if weights:
                parts = [w * output_error(kept[i], found[i], batch.count) for i, w in weights.items()]
                others.append(np.max(parts, axis=0))
            sums.append([_moments(a, b) for a, b in zip(kept, found, strict=True)])
        error, first, second, number = np.moveaxis(np.sum(sums, axis=0), -1, 0)
        nmse = float(np.max(error / np.maximum(second - first**2 / np.maximum(number, 1), 1e-30)))
        return self._judge(nmse, same, loss, right, others)

    def _judge(
        self,
        nmse: float,
        same: list[np.ndarray],
        loss: list[np.ndarray],
        right: list[np.ndarray],
        others: list[np.ndarray],
    ) -> Score:
        found = []
        if self.answer is not None:
            answer, agreement = np.concatenate(loss), float(np.concatenate(same).mean())
            reference = float(np.concatenate(right).mean()) if self.labelled else 1.0
            drop = float(answer.mean())
            found.append(
                Score(self.metric, reference - drop, reference, drop, *_interval(answer), len(answer), agreement, nmse)
            )
        if others:
            rest = np.concatenate(others)
            drop = float(rest.mean())
            found.append(Score("relative error", drop, 0.0, drop, *_interval(rest), len(rest), None, nmse))
        return max(found, key=lambda s: s.drop)


def class_count(output: np.ndarray) -> int:
    """Number of classes where an output of one sample may be class scores ([1,K] or [1,K,1,1], float), else 0."""
    if output.dtype.kind != "f" or output.ndim < 2 or output.shape[0] != 1:
        return 0
    size = int(np.prod(output.shape[1:]))
    return size if size >= 2 and size == max(output.shape[1:]) else 0


def _probabilities(row: np.ndarray) -> bool:
    return bool(row.min() >= 0 and abs(float(row.sum()) - 1) < 1e-3)


def output_error(old: np.ndarray, new: np.ndarray, count: int) -> np.ndarray:
    """Per sample: relative error of a float output (mean over the channels of axis 1 of maps, which may differ in scale),
    share of changed elements of any other; infinite where the shape changed."""
    if old.shape != new.shape:
        return np.full(count, np.inf)
    rows = (count, -1) if old.ndim and old.shape[0] == count else (1, -1)
    if old.dtype.kind != "f":
        return np.broadcast_to((old != new).reshape(rows).mean(axis=1), (count,))
    a, b = np.nan_to_num(old.astype(np.float64)), np.nan_to_num(new.astype(np.float64), nan=1e30)
    if old.ndim >= 3 and rows[0] == count and old.shape[1] > 1:
        a, b = a.reshape(count, old.shape[1], -1), b.reshape(count, old.shape[1], -1)
    else:
        a, b = a.reshape(rows)[:, None], b.reshape(rows)[:, None]
    error, power = ((a - b) ** 2).sum(axis=2), (a**2).sum(axis=2)
    floor = 1e-8 * power.max(axis=1, keepdims=True) + 1e-30
    return np.broadcast_to(np.sqrt(error / np.maximum(power, floor)).mean(axis=1), (count,))


def _moments(old: np.ndarray, new: np.ndarray) -> tuple[float, float, float, float]:
    """(squared error; sum, sum of squares and number of the old values) of one output of one batch."""
    if old.dtype.kind not in "fiub":
        return 0.0, 0.0, 0.0, 0.0
    a = np.nan_to_num(old.astype(np.float64))
    b = np.nan_to_num(new.astype(np.float64), nan=1e30) if new.shape == old.shape else np.full_like(a, 1e30)
    return float(((a - b) ** 2).sum()), float(a.sum()), float((a**2).sum()), float(a.size)


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


def logits_model(model: ir.Model) -> ir.Model:
    """A copy that gives what a last Softmax is given, wherever an output is one's."""
    work = model.clone()
    for position, value in enumerate(work.graph.outputs):
        node = value.producer()
        source = node.inputs[0] if node is not None and node.op_type == "Softmax" else None
        if source is None or source.is_graph_output() or source.is_graph_input() or list(value.uses()):
            continue
        source.type, source.shape = value.type, value.shape
        work.graph.outputs[position] = source
    edit.drop_dead(work)
    return work

"""Quality of a candidate on samples: a task metric against the original, with a paired 95 % confidence interval.

With class labels the output that predicts them is scored by top-1.  Without labels, an output of class probabilities
(or one whose name suggests scores) is scored by agreement with the original; where an output of that shape may also be
an embedding, a tenth of its relative error counts as well.  All other outputs are scored by relative error, integers by
the fraction of changed elements.  `drop` is the losses against the original in the metric's own unit (0.01 = one
percentage point); of several outputs the worst counts.  `nmse` ranks candidates with equal metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxpress.data.dataset import Batch, Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import supports_batching
from onnxpress.model import edit
from onnxpress.model.signature import signature
from onnxpress.runtime.session import all_cores, open_session, run

_KEEP_BYTES = 256 * 2**20
_BATCH = 16
_RESAMPLES = 2000
_AMBIGUOUS_WEIGHT = 0.1  # weight of the relative error of an output that may not be class scores
_SCORE_NAMES = ("logit", "prob", "score", "class", "softmax", "dense", "label")


@dataclass(frozen=True)
class MetricResult:
    """The result of one metric.

    value:     of the other model
    reference: of the original
    drop:      how much worse the other model is
    low, high: 95 % interval of the drop
    samples:   number of samples
    """

    metric: str
    value: float
    reference: float
    drop: float
    low: float
    high: float
    samples: int

    def text(self) -> str:
        """The result in one line."""
        values = f"{self.metric} {self.value:.4f}, original {self.reference:.4f}"
        drop = f"drop {self.drop:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{values}: {drop} on {self.samples} samples"


@dataclass(frozen=True)
class Score(MetricResult):
    """The score of a candidate: top-1, agreement, relative error or changed elements.

    agreement: fraction of equal predictions; None where no output has class scores
    nmse:      mean squared error over the variance of the original's output, of the worst output
    """

    agreement: float | None
    nmse: float


class Scorer:
    """Scores models against one original on one dataset.

    The original's outputs are kept in memory when they are small, else recomputed for every model, so that memory stays
    bounded.
    """

    def __init__(self, original: ir.Model | bytes, data: Dataset, name: str = "") -> None:
        if not len(data):
            raise InputProblem("no samples to score on", name or data.name, "", "give at least one sample")
        self.data, self.name = data, name or data.name
        self._original = open_session(original, all_cores())
        self._fixed = batch_layout(data.signature).batch or 1
        self._batch = _BATCH
        first = next(iter(data.batches(1)))
        last = next(iter(data.select([len(data) - 1]).batches(1))).inputs
        if isinstance(original, ir.Model) and not supports_batching(original, first.inputs, signature(original), last):
            self._batch = 1
        outputs = run(self._original, first.inputs, where=first.keys[0])
        if not any(o.dtype.kind in "fiub" for o in outputs):
            raise InputProblem(
                "no output of the model can be scored", "", "no output is numeric", "export a numeric output"
            )
        self.output_names = names = [o.name for o in self._original.get_outputs()]
        keep = sum(o.nbytes for o in outputs) * len(data) <= _KEEP_BYTES
        self._kept = [self._outputs(self._original, b) for b in self._batches()] if keep else None
        rows = [o[:1] if self._fixed > 1 else o for o in outputs]
        self.labelled = self._has_classes(rows)
        self.ambiguous = False
        self.class_output = self._find_class_output(rows, names)

    @property
    def metric(self) -> str:
        if self.class_output is None:
            return "relative error"
        return "top-1" if self.labelled else "agreement"

    def _has_classes(self, rows: Sequence[np.ndarray]) -> bool:
        """Whether the labels are class numbers for which some output has scores."""
        most = max((class_count(o) for o in rows), default=0)
        labels = [label for label in self.data.labels if label is not None]
        return bool(labels) and all(
            np.ndim(m) == 0 and not isinstance(m, str) and float(m).is_integer() and 0 <= int(m) < most for m in labels
        )

    def _find_class_output(self, rows: Sequence[np.ndarray], names: Sequence[str]) -> int | None:
        """Index of the output with class scores; None where there is none.

        With labels it is the most accurate output, else the one that looks like class scores.
        """
        candidates = [i for i, o in enumerate(rows) if class_count(o)]
        if not candidates:
            return None
        if self.labelled:
            return max(candidates, key=lambda i: (self._correct_count(i), -i))
        likely = [i for i in candidates if _probabilities(rows[i]) or any(w in names[i].lower() for w in _SCORE_NAMES)]
        self.ambiguous = not likely
        return (likely or candidates)[0]

    def _correct_count(self, output: int) -> int:
        """Number of correct predictions of an output, on at most about 256 samples."""
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

    def paired_outputs(self, model: ir.Model | bytes) -> Iterator[tuple[Batch, list[np.ndarray], list[np.ndarray]]]:
        """(batch, outputs of the original, outputs of the model) for each batch."""
        session = open_session(model, all_cores())
        for index, batch in enumerate(self._batches()):
            kept = self._kept[index] if self._kept is not None else self._outputs(self._original, batch)
            yield batch, kept, self._outputs(session, batch)

    def score(self, model: ir.Model | bytes) -> Score:
        """The score of a model."""
        agreements: list[np.ndarray] = []
        losses: list[np.ndarray] = []
        correct: list[np.ndarray] = []
        errors: list[np.ndarray] = []
        sums: list[list[tuple[float, float, float, float]]] = []
        for batch, kept, found in self.paired_outputs(model):
            if self.class_output is not None:
                old, new = (o[self.class_output].reshape(batch.count, -1).argmax(1) for o in (kept, found))
                agreements.append(old == new)
                labels = np.array([-1 if x is None or not self.labelled else int(x) for x in batch.labels])
                use = labels >= 0
                correct.append((old == labels)[use])
                losses.append(
                    (old == labels)[use].astype(float) - (new == labels)[use] if self.labelled else (old != new) * 1.0
                )
            weights = {i: 1.0 for i in range(len(kept)) if i != self.class_output}
            if self.ambiguous and self.class_output is not None:
                weights[self.class_output] = _AMBIGUOUS_WEIGHT
            if weights:
                parts = [w * output_error(kept[i], found[i], batch.count) for i, w in weights.items()]
                errors.append(np.max(parts, axis=0))
            sums.append([_moments(a, b) for a, b in zip(kept, found, strict=True)])
        error, first, second, number = np.moveaxis(np.sum(sums, axis=0), -1, 0)
        nmse = float(np.max(error / np.maximum(second - first**2 / np.maximum(number, 1), 1e-30)))
        return self._worst_score(nmse, agreements, losses, correct, errors)

    def _worst_score(
        self,
        nmse: float,
        agreements: list[np.ndarray],
        losses: list[np.ndarray],
        correct: list[np.ndarray],
        errors: list[np.ndarray],
    ) -> Score:
        """The score with the largest drop."""
        found = []
        if self.class_output is not None:
            paired, agreement = np.concatenate(losses), float(np.concatenate(agreements).mean())
            reference = float(np.concatenate(correct).mean()) if self.labelled else 1.0
            drop = float(paired.mean())
            found.append(
                Score(
                    self.metric,
                    reference - drop,
                    reference,
                    drop,
                    *_interval(paired),
                    len(paired),
                    agreement,
                    nmse,
                )
            )
        if errors:
            rest = np.concatenate(errors)
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
    """Error of an output per sample: [count].

    Relative error of a float output (the mean over the channels of axis 1 of feature maps, which may differ in scale),
    fraction of changed elements of any other; infinite where the shape changed.
    """
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
    """(squared error; sum, sum of squares and number of the original's values) of one output of one batch."""
    if old.dtype.kind not in "fiub":
        return 0.0, 0.0, 0.0, 0.0
    a = np.nan_to_num(old.astype(np.float64))
    b = np.nan_to_num(new.astype(np.float64), nan=1e30) if new.shape == old.shape else np.full_like(a, 1e30)
    return float(((a - b) ** 2).sum()), float(a.sum()), float((a**2).sum()), float(a.size)


def _interval(losses: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of paired losses per sample, by the bootstrap over samples."""
    if len(losses) < 2:
        return float("-inf"), float("inf")
    rng = np.random.default_rng(0)
    values, counts = np.unique(losses, return_counts=True)
    if len(values) <= 16:  # few distinct losses: draw their counts instead of samples
        draws = rng.multinomial(len(losses), counts / len(losses), _RESAMPLES) @ values / len(losses)
    else:
        draws = np.array([losses[rng.integers(0, len(losses), len(losses))].mean() for _ in range(_RESAMPLES)])
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def logits_model(model: ir.Model) -> ir.Model:
    """A copy whose outputs are the inputs of a final Softmax, wherever an output is a Softmax."""
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

"""Quality of a candidate on samples: its metrics against the original, with paired 95 % confidence intervals.

Which metrics judge is decided by `quality.py`. `drop` is what is lost against the original in the metric's own unit
(0.01 = one percentage point of accuracy). Of several metrics each has the drop that is allowed for it, and the one that
uses most of its own decides. `nmse` ranks candidates with equal metrics.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxpress.data.dataset import Batch, Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import supports_batching
from onnxpress.measure.metrics.catalogue import METRICS
from onnxpress.measure.metrics.classes import ClassMetric, answer, class_scores
from onnxpress.measure.metrics.few_samples import by_margins, counts_too_few, margin
from onnxpress.measure.metrics.label_plausibility import implausible_labels
from onnxpress.measure.metrics.metric import MetricResult
from onnxpress.measure.metrics.output_facts import InputFacts, OutputFacts, last_operators
from onnxpress.measure.quality import JudgedMetric, QualityJudge, QualityOptions, judge_for
from onnxpress.model import edit
from onnxpress.model.signature import signature
from onnxpress.runtime.session import all_cores, open_session, run

_KEEP_BYTES = 256 * 2**20
_BATCH, _BATCH_BYTES = 16, 32 * 2**20  # samples, and bytes of their outputs at most
_CHOICE_SAMPLES, _CHOICE_BYTES = 32, 96 * 2**20  # whose outputs a metric is chosen by
_CLASS_METRICS = ("top-1", "agreement")
_SHARES = frozenset(METRICS) - {"psnr", "mse", "mae", "kl", "perplexity", "error-rate", "relative-error"}
_EXCEEDED = 1e-9  # of the allowed drop (of 0.01, where none is allowed): rounding


@dataclass(frozen=True)
class Score(MetricResult):
    """The score of a candidate: the result of the metric that uses most of the drop that is allowed for it.

    agreement: fraction of samples with the original's class; None where no output has class scores
    nmse:      mean squared error over the variance of the original's output, of the worst output
    parts:     the results of all metrics, the one that matters most first
    """

    agreement: float | None = None
    nmse: float = 0.0
    parts: tuple[MetricResult, ...] = ()

    def used(self, max_drop: float | None = None) -> float:
        """The share of the allowed drop that is used, of the metric that uses most: above 1 it is exceeded.

        max_drop: allowed drop of the first metric (those of the others are in proportion); None: each metric's default
        """
        parts = self.parts or (self,)
        scale = 1.0 if max_drop is None else max_drop / max(parts[0].default_drop, 1e-300)
        return max(_share(p.drop, p.default_drop * scale) for p in parts)

    @property
    def equivalent_drop(self) -> float:
        """The drop in the unit of the first metric, of the metric that uses most of what is allowed."""
        return self.used() * (self.parts or (self,))[0].default_drop

    def keeps(self, max_drop: float | None) -> bool:
        """Whether no metric loses more than is allowed."""
        return self.used(max_drop) <= 1

    def allowed(self, max_drop: float | None) -> float:
        """The drop that is allowed in the unit of this metric."""
        parts = self.parts or (self,)
        return self.default_drop * (1.0 if max_drop is None else max_drop / max(parts[0].default_drop, 1e-300))


def _share(drop: float, allowed: float) -> float:
    if drop <= allowed + _EXCEEDED * (allowed or 0.01):
        return min(drop / allowed, 1.0) if allowed > 0 else min(drop, 0.0)
    return drop / allowed if allowed > 0 else float("inf")


def score_of(facts: dict[str, Any]) -> Score:
    """A score from its JSON form."""
    return Score(**{**facts, "parts": tuple(MetricResult(**p) for p in facts.get("parts", ()))})


class Scorer:
    """Scores models against one original on one dataset.

    The original's outputs are kept in memory when they are small, else recomputed for every model, so that memory stays
    bounded.
    """

    def __init__(
        self,
        original: ir.Model | bytes,
        data: Dataset,
        name: str = "",
        quality: QualityOptions | QualityJudge | None = None,
    ) -> None:
        """quality: how models are judged; a QualityJudge is that of another scorer of the same model, so that parts of
        the samples are judged alike."""
        if not len(data):
            raise InputProblem("no samples to score on", name or data.name, "", "give at least one sample")
        self.data, self.name, self.quality = data, name or data.name, quality or QualityOptions()
        self._original = open_session(original, all_cores())
        self._operators = last_operators(original) if isinstance(original, ir.Model) else {}
        self._fixed = batch_layout(data.signature).batch or 1
        first = next(iter(data.batches(1)))
        last = next(iter(data.select([len(data) - 1]).batches(1))).inputs
        supported = not isinstance(original, ir.Model) or supports_batching(
            original, first.inputs, signature(original), last
        )
        self._batch = _BATCH if supported else 1
        outputs = run(self._original, first.inputs, where=first.keys[0])
        if not any(o.dtype.kind in "fiub" for o in outputs):
            raise InputProblem(
                "no output of the model can be scored", "", "no output is numeric", "export a numeric output"
            )
        self.output_names = [o.name for o in self._original.get_outputs()]
        each = sum(o.nbytes for o in outputs) // self._fixed
        keep = each * len(data) <= _KEEP_BYTES
        self._batch = max(1, min(self._batch, _BATCH_BYTES // max(each, 1)))
        self._each = each
        self._batchable = supported or self._fixed > 1
        self._kept = [self._outputs(self._original, b) for b in self._batches()] if keep else None
        self._truths: dict[tuple[int, int], tuple[Any, Any]] = {}  # truth and the original's value by metric and sample

    @cached_property
    def judge(self) -> QualityJudge:
        """The metrics that judge. Raises InputProblem where one does not fit."""
        if isinstance(self.quality, QualityJudge):
            return self.quality
        found = self.judge_for(self.quality)
        doubts = self._doubtful_labels(found)
        if not doubts:
            return found
        if self.quality.metric is not None:
            return replace(found, warnings=tuple(doubts))
        without = self.judge_for(self.quality, labels=False)
        return replace(without, warnings=(*doubts, "judged by the original's answers instead of the labels"))

    def judge_for(self, quality: QualityOptions, labels: bool = True) -> QualityJudge:
        """The metrics that other options ask for. labels: whether those of the samples are used."""
        facts, inputs, chosen = self._facts
        known = [*chosen.labels, *self.data.labels] if labels else []
        return judge_for(quality, facts, inputs, known)

    @cached_property
    def _facts(self) -> tuple[list[OutputFacts], list[InputFacts], Dataset]:
        """What the outputs are, told from samples that are spread over all of them."""
        count = min(_CHOICE_SAMPLES, len(self.data), max(_CHOICE_BYTES // max(self._each, 1), 2))
        chosen = self.data.select(sorted({int(i) for i in np.linspace(0, len(self.data) - 1, count)}))
        rows: dict[str, list[np.ndarray]] = {name: [] for name in self.output_names}
        inputs: list[InputFacts] = []
        axes = {p.name: p.axis for p in batch_layout(self.data.signature).ports}
        for batch in chosen.batches(self._batch):
            values = self._outputs(self._original, batch)
            for i in range(batch.count):
                for name, value in self.sample_outputs(values, i, batch).items():
                    rows[name].append(value)
            inputs = inputs or [
                InputFacts(n, v[0] if v.ndim and axes.get(n) == 0 else v) for n, v in batch.inputs.items()
            ]
        return [OutputFacts(n, r, self._operators.get(n, ())) for n, r in rows.items()], inputs, chosen

    def _doubtful_labels(self, judge: QualityJudge) -> list[str]:
        """Why labels can hardly be right: the original answers them no better than by chance."""
        doubts = []
        for place, judged in enumerate(judge.metrics):
            if not judged.by_label:
                continue
            values = [self._known_value(place, judged, judge, i, batch, kept, index)[1]
                      for index, batch, kept, i in self._labelled_samples()]  # fmt: skip
            if values and (why := implausible_labels(judged.metric, judged.metric.aggregate(values), values)):
                doubts.append(f"{why}: wrong labels, another order of classes, or other preprocessing?")
        return doubts

    def _labelled_samples(self) -> Iterator[tuple[int, Batch, list[np.ndarray], int]]:
        done = 0
        for batch, kept in self._original_outputs():
            for i in range(batch.count):
                if batch.labels[i] is not None:
                    yield done + i, batch, kept, i
            done += batch.count

    @cached_property
    def _batch_axes(self) -> list[bool]:
        """For each output whether its first axis numbers the samples, where one is run at a time.

        Told from declared shapes: the rows of a detector are no samples, however many there are.
        """
        free = {i.shape[0] for i in self._original.get_inputs() if i.shape and isinstance(i.shape[0], str)}
        found = []
        for value in self._original.get_outputs():
            first = value.shape[0] if value.shape else None
            found.append(first == 1 or first is None or first in free)
        return found

    def sample_outputs(self, values: Sequence[np.ndarray], index: int, batch: Batch) -> dict[str, np.ndarray]:
        """The outputs of one sample of a batch by name; an output without batch axis is the same for all samples."""
        found = {}
        for name, value, own in zip(self.output_names, values, self._batch_axes, strict=True):
            cut = value.ndim and value.shape[0] == batch.count and (own or self._batchable)
            found[name] = value[index] if cut else value
        return found

    @property
    def metric(self) -> str:
        """The name of the metric that matters most."""
        return self.judge.metrics[0].metric.name

    @property
    def labelled(self) -> bool:
        """Whether labels are the truth of the metric that matters most."""
        return self.judge.metrics[0].by_label

    @cached_property
    def _class_metric(self) -> ClassMetric | None:
        """The metric of answers that are one class a sample; None where there is none."""
        found = (m.metric for m in self.judge.metrics if m.metric.name in _CLASS_METRICS and not self.judge.transform)
        return next((m for m in found if isinstance(m, ClassMetric) and m.output in self.output_names), None)

    @cached_property
    def class_output(self) -> int | None:
        """Index of the output whose largest value is the answer; None where there is none."""
        metric = self._class_metric
        return None if metric is None or metric.output is None else self.output_names.index(metric.output)

    def answers(self, outputs: Sequence[np.ndarray], batch: Batch) -> list[int]:
        """The class that each sample of a batch is answered with; empty where the answers are no classes."""
        metric = self._class_metric
        if metric is None:
            return []
        rows = (self.sample_outputs(outputs, i, batch) for i in range(batch.count))
        return [answer(class_scores(metric.name, r, metric.output), metric.threshold) for r in rows]

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
        for batch, kept in self._original_outputs():
            yield batch, kept, self._outputs(session, batch)

    def allowed_drop(self, max_drop: float | None) -> float:
        """The allowed drop of the metric that matters most; max_drop: what the user allows, None for the default.

        Raises InputProblem for a drop that allows everything.
        """
        default = self._default_drop
        if max_drop is not None and max_drop >= 1 and self.metric in _SHARES:
            raise InputProblem(
                "the drop must lie between 0 and 1", "`max_drop`", f"got {max_drop:g} of {self.metric}", "give 0.01"
            )
        return default if max_drop is None else max_drop

    @cached_property
    def _default_drop(self) -> float:
        same = ((batch, kept, kept) for batch, kept in self._original_outputs())
        return self._score_pairs(same, False, self.judge).parts[0].default_drop

    def _original_outputs(self) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        for index, batch in enumerate(self._batches()):
            yield batch, self._kept[index] if self._kept is not None else self._outputs(self._original, batch)

    def nmse(self, model: ir.Model | bytes) -> float:
        """Mean squared error over the variance of the original's output, of the worst output."""
        return _worst_nmse([_batch_moments(kept, found) for _, kept, found in self.paired_outputs(model)])

    def score(self, model: ir.Model | bytes, intervals: bool = True, judge: QualityJudge | None = None) -> Score:
        """The score of a model. intervals: whether those of drops are computed. judge: other metrics than its own."""
        return self._score_pairs(self.paired_outputs(model), intervals, judge or self.judge)

    def score_with(self, model: ir.Model | bytes, others: Sequence[tuple[Scorer, ir.Model | bytes]]) -> Score:
        """The score on these samples and those of other scorers, each with a model of its own.

        For cross-validation: the models are made alike, each from samples that its scorer does not hold.
        """
        parts = [(self, model), *others]
        paired = itertools.chain.from_iterable(scorer.paired_outputs(one) for scorer, one in parts)
        return self._score_pairs(paired, True, self.judge)

    def _score_pairs(
        self,
        paired: Iterable[tuple[Batch, list[np.ndarray], list[np.ndarray]]],
        intervals: bool,
        judge: QualityJudge,
    ) -> Score:
        metrics = judge.metrics
        values: list[list[tuple[Any, Any]]] = [[] for _ in metrics]
        moments: list[list[tuple[float, float, float, float]]] = []
        same: list[bool] = []
        margins: list[list[tuple[float, float]]] = [[] for _ in metrics]
        done = 0
        for batch, kept, found in paired:
            moments.append(_batch_moments(kept, found))
            pairs_of_answers = zip(self.answers(kept, batch), self.answers(found, batch), strict=True)
            same += [old == new for old, new in pairs_of_answers]
            for i in range(batch.count):
                two = judge.read(self.sample_outputs(found, i, batch), batch.keys[i])
                for place, judged in enumerate(metrics):
                    if not judged.by_label or batch.labels[i] is not None:
                        truth, reference = self._known_value(place, judged, judge, i, batch, kept, done + i)
                        value = judged.metric.sample_value(two, truth, batch.keys[i])
                        values[place].append((reference, value))
                        if isinstance(judged.metric, ClassMetric) and judged.metric.most == 1 and not judge.transform:
                            one = self.sample_outputs(kept, i, batch)
                            margins[place].append(
                                (margin(judged.metric, one, truth), margin(judged.metric, two, truth))
                            )
            done += batch.count
        results = []
        for judged, pairs, both in zip(metrics, values, margins, strict=True):
            if not pairs:
                where = f"the metric {judged.metric.name} judges by labels"
                raise InputProblem("no sample has a label", self.name, where, "label some of them, or give no labels")
            result = judged.metric.result([p[0] for p in pairs], [p[1] for p in pairs], intervals)
            if both and counts_too_few(judged.metric, len(pairs), result.default_drop):
                result = by_margins(result, [m[0] for m in both], [m[1] for m in both])
            results.append(_with_output(result, judged, len(metrics)))
        agreement = float(np.mean(same)) if same else None
        return _worst_score(results, agreement, _worst_nmse(moments))

    def _known_value(
        self,
        place: int,
        judged: JudgedMetric,
        judge: QualityJudge,
        i: int,
        batch: Batch,
        kept: list[np.ndarray],
        index: int,
    ) -> tuple[Any, Any]:
        """Truth and the original's value of a sample; remembered where the original's outputs are kept.

        place: of the metric in the judge; i: of the sample in the batch; index: of the sample in the data.
        """
        remember = self._kept is not None and self.__dict__.get("judge") is judge
        known = self._truths.get((place, index)) if remember else None
        if known is None:
            one = judge.read(self.sample_outputs(kept, i, batch), batch.keys[i])
            truth = judged.metric.truth(one, batch.labels[i], batch.keys[i])
            known = truth, judged.metric.sample_value(one, truth, batch.keys[i])
            if remember:
                self._truths[place, index] = known
        return known


def _with_output(result: MetricResult, judged: JudgedMetric, count: int) -> MetricResult:
    """A result that names its outputs where there are several metrics."""
    if count == 1 or not judged.outputs:
        return result
    return replace(result, output=", ".join(judged.outputs))


def _worst_score(results: Sequence[MetricResult], agreement: float | None, nmse: float) -> Score:
    """The score: the result that uses most of its allowed drop."""
    worst = max(results, key=lambda r: _share(r.drop, r.default_drop))
    return Score(**vars(worst), agreement=agreement, nmse=nmse, parts=tuple(results))


def _worst_nmse(moments: Sequence[Sequence[tuple[float, float, float, float]]]) -> float:
    error, first, second, number = np.moveaxis(np.sum(moments, axis=0), -1, 0)
    return float(np.max(error / np.maximum(second - first**2 / np.maximum(number, 1), 1e-30)))


def _batch_moments(kept: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> list[tuple[float, float, float, float]]:
    return [_moments(a, b) for a, b in zip(kept, found, strict=True)]


def class_count(output: np.ndarray) -> int:
    """Number of classes where an output of one sample may be class scores ([1,K] or [1,K,1,1], float), else 0."""
    if output.dtype.kind != "f" or output.ndim < 2 or output.shape[0] != 1:
        return 0
    size = int(np.prod(output.shape[1:]))
    return size if size >= 2 and size == max(output.shape[1:]) else 0


def _moments(old: np.ndarray, new: np.ndarray) -> tuple[float, float, float, float]:
    """(squared error; sum, sum of squares and number of the original's values) of one output of one batch."""
    if old.dtype.kind not in "fiub":
        return 0.0, 0.0, 0.0, 0.0
    a = np.nan_to_num(old.astype(np.float64))
    b = np.nan_to_num(new.astype(np.float64), nan=1e30) if new.shape == old.shape else np.full_like(a, 1e30)
    return float(((a - b) ** 2).sum()), float(a.sum()), float((a**2).sum()), float(a.size)


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

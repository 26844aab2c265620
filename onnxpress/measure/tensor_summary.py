"""What is seen of a tensor in one batch: its extremes along an axis, and some of its values; as numbers, or as rows of channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import layout
from onnxpress.measure.evidence import Evidence, stream
from onnxpress.measure.in_graph_statistics import OPSET, StatsGraph, grid, on_grid, step
from onnxpress.model import read

_TAKEN = 2**18  # values of a tensor, of all samples; but of each sample no more and no fewer than
_MOST, _LEAST = 8192, 1024


@dataclass(frozen=True)
class TensorSummary:
    """Of one tensor in one batch. low, high: extremes, along the axis asked for or one number; some: values, evenly spread over all
    places of every axis; square: the mean square of those along the axis (None: not known, or no axis)."""

    low: np.ndarray
    high: np.ndarray
    some: np.ndarray
    square: np.ndarray | None


@dataclass(frozen=True)
class _AxisPositions:
    """Where values stand on an axis. at: of each its position; count: of each position its values."""

    at: np.ndarray
    count: np.ndarray

    @classmethod
    def on(cls, values: int, stride: int, inner: int, size: int) -> _AxisPositions:
        """Of every so manieth value of an array whose axis has that size, and so many elements behind each position."""
        at = np.arange(values, dtype=np.int64) * stride // inner % size
        return cls(at, np.maximum(np.bincount(at, minlength=size), 1))

    def square(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(np.bincount(self.at, np.square(values), len(self.count)) / self.count)


@dataclass(frozen=True)
class _SummaryQuery:
    """Of one tensor. shape: of one sample, as traced; axis: kept beside the first, or None; floor: nothing is below 0; apart: of a
    map that pools read, rows and columns between those handed out, or 0; step: between the values that are taken of all, or of those."""

    shape: tuple[int, ...]
    axis: int | None
    floor: bool
    apart: int
    step: int
    places: dict[int, _AxisPositions] = field(default_factory=dict)  # by the number of values

    @classmethod
    def about(cls, shape: tuple[int, ...], axis: int | None, wish: int, floor: bool) -> _SummaryQuery:
        place = (None if axis is None or len(shape) < 2 else axis % len(shape)) or None
        apart = grid(shape, place, wish)
        size = shape[1] * on_grid(shape, apart) if apart else int(np.prod(shape))
        return cls(shape, place, floor, apart, step(size, size // wish))

    def question(self, asking: StatsGraph, value: ir.Value) -> list[ir.Value]:
        """high, some, and low where it is looked for."""
        over = [i for i in range(1, len(self.shape)) if i != self.axis]
        made = [asking.highest(value) if self.apart else asking.extreme("ReduceMax", value, over)]
        made.append(asking.on_grid(value, self.apart) if self.apart else asking.every(value, self.step))
        return made if self.floor else [*made, asking.extreme("ReduceMin", value, over)]

    def digest(self, answers: Sequence[np.ndarray], count: int, fixed: int) -> TensorSummary:
        """count: real samples of the batch; fixed: its size where that is baked in."""
        high, some = answers[0], answers[1]
        low = answers[2] if len(answers) > 2 else np.zeros_like(high)
        if count < fixed and high.ndim and high.shape[0] == fixed:  # rows that fill a fixed batch up
            low, high = low[:count], high[:count]
            some = some[: count if self.apart else -(-count * self._row // self.step)]
        if self.axis is None:
            return TensorSummary(low.min(initial=np.inf), high.max(initial=-np.inf), some, None)
        square = self._square(some, len(high), high.shape[-1])
        return TensorSummary(
            low.min(axis=0), high.max(axis=0), some.ravel()[:: self.step] if self.apart else some, square
        )

    @property
    def _row(self) -> int:
        """Values of each position of the first axis."""
        return int(np.prod(self.shape[1:]))

    def _square(self, some: np.ndarray, samples: int, size: int) -> np.ndarray | None:
        """Mean squares along the axis of the values handed out, where it is known on which of its positions each stands."""
        assert self.axis is not None
        if self.apart:
            rows = some.reshape(len(some), size, -1)
            return np.asarray(np.einsum("ncp,ncp->c", rows, rows) / max(some.size // size, 1))
        inner = int(np.prod(self.shape[self.axis + 1 :]))
        if size != self.shape[self.axis] or (inner != 1 and len(some) != -(-samples * self._row // self.step)):
            return None
        if len(some) not in self.places:
            self.places[len(some)] = _AxisPositions.on(len(some), self.step, inner, size)
        return self.places[len(some)].square(some)


def summarize_tensors(
    evidence: Evidence,
    tensors: Sequence[str],
    axes: Mapping[str, int],
    parts: Sequence[Dataset] | None = None,
    floors: Collection[str] = (),
) -> Iterator[tuple[int, dict[str, TensorSummary]]]:
    """One pass over samples, batch by batch, with the part that each is of. axes: along which extremes are wanted; others get one
    number; parts: of the evidence's samples (None: all as one); floors: tensors with nothing below 0, whose low may be said to be 0.

    Tensors of the trace that are float32; of others nothing is said.  onnxruntime's reductions pass NaN over: it is looked for among
    the values that are taken, and among all of the sample that was traced.
    """
    parts = parts if parts is not None else [evidence.samples()]
    if read.opset(evidence.model) < OPSET:
        for part, data in enumerate(parts):
            for values in stream(evidence.model, tensors, data, evidence.batch_for(tensors)):
                yield (
                    part,
                    {
                        name: summarize(x, axes.get(name))
                        for name, x in values.items()
                        if x.dtype == np.float32 and x.size
                    },
                )
        return
    seen = evidence.trace
    wish = min(_MOST, max(_LEAST, _TAKEN // max(sum(len(data) for data in parts), 1)))
    known = {n: seen.shapes[n] for n in tensors if n in seen.floats and seen.shapes[n]}
    asked = {n: _SummaryQuery.about(shape, axes.get(n), wish, n in floors) for n, shape in known.items()}
    asking = StatsGraph(evidence.model)
    answers = asking.answering({n: partial(a.question, asking) for n, a in asked.items()})
    batch, fixed = answers.batch(evidence), layout(evidence.samples().signature).batch or 1
    for part, data in enumerate(parts):
        for rows in data.batches(batch):
            found = answers.of(rows.inputs, rows.keys[0])
            taken = {name: a.digest(found[name], rows.count, fixed) for name, a in asked.items()}
            yield (
                part,
                {n: replace(d, low=np.full_like(d.low, np.nan)) if seen.floats[n] else d for n, d in taken.items()},
            )


def summarize(x: np.ndarray, axis: int | None) -> TensorSummary:
    """The same of values at hand."""
    flat = x.ravel()
    stride = step(len(flat), len(flat) // (_MOST * max(len(x), 1) if x.ndim else 1))
    some = flat[::stride]
    if axis is None or x.ndim < 2:
        return TensorSummary(flat.min(), flat.max(), some, None)
    place = axis % x.ndim
    size, inner = x.shape[place], int(np.prod(x.shape[place + 1 :]))
    rows = x.reshape(-1, size, inner)
    return TensorSummary(
        rows.min(axis=(0, 2)),
        rows.max(axis=(0, 2)),
        some,
        _AxisPositions.on(len(some), stride, inner, size).square(some),
    )


@dataclass(frozen=True)
class _RowQuery:
    """Of one tensor, whose channels (width: their number) lie on an axis, or None; apart, step: as in `_Asked`, of positions."""

    axis: int | None
    rank: int
    width: int
    apart: int
    step: int

    @classmethod
    def about(cls, shape: tuple[int, ...], axis: int | None, wish: int) -> _RowQuery:
        place = None if axis is None or len(shape) < 2 else axis % len(shape)
        width, apart = 1 if place is None else shape[place], grid(shape, place, wish)
        positions = on_grid(shape, apart) if apart else int(np.prod(shape)) // max(width, 1)
        return cls(place, len(shape), width, apart, step(positions, positions * width // wish))

    def question(self, asking: StatsGraph, value: ir.Value) -> list[ir.Value]:
        if self.apart:
            return [asking.on_grid(value, self.apart)]
        if self.axis is None:
            return [asking.every(value, self.step)]
        last = value if self.axis == self.rank - 1 else asking.last(value, self.axis, self.rank)
        return [asking.every(last, self.step, self.width)]

    def rows(self, answer: np.ndarray) -> np.ndarray:
        if self.apart:
            return answer.reshape(len(answer), self.width, -1).swapaxes(1, 2).reshape(-1, self.width)[:: self.step]
        return answer.reshape(-1, self.width)


def sample_rows(
    evidence: Evidence, tensors: Sequence[str], axes: Mapping[str, int], samples: int, wish: int
) -> Iterator[dict[str, np.ndarray]]:
    """[some positions, channels] of each tensor, batch by batch, of so many samples; of one without an axis [some values, 1].

    axes: of channels, of which every sample has the same number; wish: values of a tensor and sample.  Tensors of the trace that are
    float32.
    """
    data, seen = evidence.samples().take(samples), evidence.trace
    known = {n: seen.shapes[n] for n in tensors if n in seen.floats and seen.shapes[n]}
    if read.opset(evidence.model) < OPSET:
        for values in stream(evidence.model, list(known), data, evidence.batch_for(list(known))):
            yield {n: array_rows(x, axes.get(n), wish * max(len(x), 1)) for n, x in values.items()}
        return
    asking = StatsGraph(evidence.model)
    plans = {n: _RowQuery.about(shape, axes.get(n), wish) for n, shape in known.items()}
    answers = asking.answering({n: partial(p.question, asking) for n, p in plans.items()})
    batch, fixed = answers.batch(evidence), layout(data.signature).batch or 1
    for rows in data.batches(batch):
        found = answers.of(rows.inputs, rows.keys[0])
        whole = {n: plan.rows(found[n][0]) for n, plan in plans.items()}
        yield {n: x[: len(x) * rows.count // fixed] if rows.count < fixed else x for n, x in whole.items()}


def array_rows(x: np.ndarray, axis: int | None, wish: int) -> np.ndarray:
    """The same of values at hand; wish: values."""
    rows = x.reshape(-1, 1) if axis is None or x.ndim < 2 else np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    return rows[:: step(len(rows), rows.size // wish)]

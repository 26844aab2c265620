"""Statistics of one tensor in one batch: extremes along an axis, and a sample of its values, flat or as rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.measure.evidence import Evidence, stream
from onnxpress.measure.in_graph_statistics import MIN_OPSET, StatsGraph, coprime_stride, grid_positions, grid_stride
from onnxpress.model import read

_MAX_VALUES = 2**18  # values kept of one tensor over all samples, within the bounds per sample below
_MAX_PER_SAMPLE, _MIN_PER_SAMPLE = 8192, 1024


@dataclass(frozen=True)
class TensorSummary:
    """Statistics of one tensor in one batch.

    low, high:   extremes: [channels] where an axis is kept, else a scalar
    values:      a sample of the values, flat, evenly spaced over all axes
    mean_square: [channels] mean square of the sampled values; None without an axis, or where their channels are unknown
    """

    low: np.ndarray
    high: np.ndarray
    values: np.ndarray
    mean_square: np.ndarray | None


@dataclass(frozen=True)
class _AxisPositions:
    """Axis positions of sampled values.

    position: of each value
    count:    number of values at each position, at least 1
    """

    position: np.ndarray
    count: np.ndarray

    @classmethod
    def of_strided(cls, count: int, stride: int, inner: int, size: int) -> _AxisPositions:
        """Axis positions of `count` values sampled with `stride`.

        size:  number of positions of the axis
        inner: number of elements of each position
        """
        position = np.arange(count, dtype=np.int64) * stride // inner % size
        return cls(position, np.maximum(np.bincount(position, minlength=size), 1))

    def mean_square(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(np.bincount(self.position, np.square(values, dtype=np.float64), len(self.count)) / self.count)


@dataclass(frozen=True)
class _SummaryQuery:
    """How one tensor is summarized inside the graph.

    shape:       of one sample, as traced
    axis:        the axis that extremes are kept along, or None
    nonnegative: whether no value is below 0, so that `low` is 0
    grid:        stride of the pooling grid of a feature map, 0 where none is used
    stride:      of the values sampled from the tensor, or from the grid
    """

    shape: tuple[int, ...]
    axis: int | None
    nonnegative: bool
    grid: int
    stride: int
    positions: dict[int, _AxisPositions] = field(default_factory=dict)  # by the number of values

    @classmethod
    def for_shape(cls, shape: tuple[int, ...], axis: int | None, target: int, nonnegative: bool) -> _SummaryQuery:
        """target: number of values to sample."""
        kept = (None if axis is None or len(shape) < 2 else axis % len(shape)) or None
        grid = grid_stride(shape, kept, target)
        size = shape[1] * grid_positions(shape, grid) if grid else int(np.prod(shape))
        return cls(shape, kept, nonnegative, grid, coprime_stride(size, size // target))

    def add_nodes(self, graph: StatsGraph, value: ir.Value) -> list[ir.Value]:
        """Outputs in order: high, sampled values, and low unless it is known."""
        over = [i for i in range(1, len(self.shape)) if i != self.axis]
        made = [graph.global_max(value) if self.grid else graph.reduce("ReduceMax", value, over)]
        made.append(graph.sample_grid(value, self.grid) if self.grid else graph.sample_strided(value, self.stride))
        return made if self.nonnegative else [*made, graph.reduce("ReduceMin", value, over)]

    def summary(self, outputs: Sequence[np.ndarray], count: int, fixed: int) -> TensorSummary:
        """count: samples of the batch without padding; fixed: the model's fixed batch size, else 1."""
        high, values = outputs[0], outputs[1]
        low = outputs[2] if len(outputs) > 2 else np.zeros_like(high)
        if count < fixed and high.ndim and high.shape[0] == fixed:  # rows that pad a fixed batch
            low, high = low[:count], high[:count]
            values = values[: count if self.grid else -(-count * self._sample_size // self.stride)]
        if self.axis is None:
            return TensorSummary(low.min(initial=np.inf), high.max(initial=-np.inf), values, None)
        mean_square = self._mean_square(values, len(high), high.shape[-1])
        flat = values.ravel()[:: self.stride] if self.grid else values
        return TensorSummary(low.min(axis=0), high.max(axis=0), flat, mean_square)

    @property
    def _sample_size(self) -> int:
        """Number of values of one sample."""
        return int(np.prod(self.shape[1:]))

    def _mean_square(self, values: np.ndarray, samples: int, size: int) -> np.ndarray | None:
        """[size] mean square of the sampled values by axis position; None where the positions are unknown."""
        assert self.axis is not None
        if self.grid:
            rows = values.reshape(len(values), size, -1)
            return np.asarray(np.einsum("ncp,ncp->c", rows, rows, dtype=np.float64) / max(values.size // size, 1))
        inner = int(np.prod(self.shape[self.axis + 1 :]))
        count = len(values)
        if size != self.shape[self.axis] or (inner != 1 and count != -(-samples * self._sample_size // self.stride)):
            return None
        if count not in self.positions:
            self.positions[count] = _AxisPositions.of_strided(count, self.stride, inner, size)
        return self.positions[count].mean_square(values)


def summarize_tensors(
    evidence: Evidence,
    tensors: Sequence[str],
    axes: Mapping[str, int],
    parts: Sequence[Dataset] | None = None,
    nonnegative: Collection[str] = (),
) -> Iterator[tuple[int, dict[str, TensorSummary]]]:
    """Summaries of tensors in one pass over the samples: (number of the part, summary by tensor name) for each batch.

    tensors:     names; those that are not float32 in the trace are skipped
    axes:        by tensor, the axis that extremes are kept along; others get scalars
    parts:       parts of the evidence's samples; None: one part
    nonnegative: tensors without negative values, whose `low` is set to 0 without a reduction

    onnxruntime's reductions ignore NaN: it is detected among the sampled values, and among all values of the traced
    sample.
    """
    parts = parts if parts is not None else [evidence.samples()]
    if read.opset(evidence.model) < MIN_OPSET:
        for part, data in enumerate(parts):
            for values in stream(evidence.model, tensors, data, evidence.batch_for(tensors)):
                floats = {name: x for name, x in values.items() if x.dtype == np.float32 and x.size}
                yield part, {name: summarize(x, axes.get(name)) for name, x in floats.items()}
        return
    trace = evidence.trace
    target = min(_MAX_PER_SAMPLE, max(_MIN_PER_SAMPLE, _MAX_VALUES // max(sum(len(data) for data in parts), 1)))
    shapes = {n: trace.shapes[n] for n in tensors if n in trace.floats and trace.shapes[n]}
    queries = {n: _SummaryQuery.for_shape(shape, axes.get(n), target, n in nonnegative) for n, shape in shapes.items()}
    graph = StatsGraph(evidence.model)
    session = graph.build({n: partial(query.add_nodes, graph) for n, query in queries.items()})
    batch, fixed = session.batch_size(evidence), batch_layout(evidence.samples().signature).batch or 1
    for part, data in enumerate(parts):
        for rows in data.batches(batch):
            outputs = session.run(rows.inputs, rows.keys[0])
            # a tensor may be empty for a batch: rows that were found by value, as boxes are
            full = {n: query for n, query in queries.items() if outputs[n][1].size}
            found = {n: query.summary(outputs[n], rows.count, fixed) for n, query in full.items()}
            yield (
                part,
                {n: replace(s, low=np.full_like(s.low, np.nan)) if trace.floats[n] else s for n, s in found.items()},
            )


def summarize(x: np.ndarray, axis: int | None) -> TensorSummary:
    """The summary of an array.  axis: kept for the extremes, or None."""
    flat = x.ravel()
    stride = coprime_stride(len(flat), len(flat) // (_MAX_PER_SAMPLE * max(len(x), 1) if x.ndim else 1))
    values = flat[::stride]
    if axis is None or x.ndim < 2:
        return TensorSummary(flat.min(), flat.max(), values, None)
    kept = axis % x.ndim
    size, inner = x.shape[kept], int(np.prod(x.shape[kept + 1 :]))
    rows = x.reshape(-1, size, inner)
    mean_square = _AxisPositions.of_strided(len(values), stride, inner, size).mean_square(values)
    return TensorSummary(rows.min(axis=(0, 2)), rows.max(axis=(0, 2)), values, mean_square)


@dataclass(frozen=True)
class _RowQuery:
    """How rows of channels of one tensor are sampled inside the graph.

    axis:   the axis of the channels, or None
    rank:   of the tensor
    width:  number of channels; 1 without an axis
    grid:   stride of the pooling grid of a feature map, 0 where none is used
    stride: of the positions sampled from the tensor, or from the grid
    """

    axis: int | None
    rank: int
    width: int
    grid: int
    stride: int

    @classmethod
    def for_shape(cls, shape: tuple[int, ...], axis: int | None, target: int) -> _RowQuery:
        """target: number of values to sample."""
        kept = None if axis is None or len(shape) < 2 else axis % len(shape)
        width, grid = 1 if kept is None else shape[kept], grid_stride(shape, kept, target)
        positions = grid_positions(shape, grid) if grid else int(np.prod(shape)) // max(width, 1)
        return cls(kept, len(shape), width, grid, coprime_stride(positions, positions * width // target))

    def add_nodes(self, graph: StatsGraph, value: ir.Value) -> list[ir.Value]:
        if self.grid:
            return [graph.sample_grid(value, self.grid)]
        if self.axis is None:
            return [graph.sample_strided(value, self.stride)]
        last = value if self.axis == self.rank - 1 else graph.move_axis_last(value, self.axis, self.rank)
        return [graph.sample_strided(last, self.stride, self.width)]

    def rows(self, output: np.ndarray) -> np.ndarray:
        """[positions, width] of an output of the graph."""
        if self.grid:
            return output.reshape(len(output), self.width, -1).swapaxes(1, 2).reshape(-1, self.width)[:: self.stride]
        return output.reshape(-1, self.width)


def sample_rows(
    evidence: Evidence, tensors: Sequence[str], axes: Mapping[str, int], samples: int, target: int
) -> Iterator[dict[str, np.ndarray]]:
    """Rows of channels at sampled positions, batch by batch.

    Each item has [positions, channels] by tensor name; [values, 1] without an axis.

    tensors: names; those that are not float32 in the trace are skipped
    axes:    by tensor, the axis of the channels, whose size is the same in every sample
    samples: maximum number of samples
    target:  number of values of each tensor and sample
    """
    data, trace = evidence.samples().take(samples), evidence.trace
    shapes = {n: trace.shapes[n] for n in tensors if n in trace.floats and trace.shapes[n]}
    if read.opset(evidence.model) < MIN_OPSET:
        for values in stream(evidence.model, list(shapes), data, evidence.batch_for(list(shapes))):
            yield {n: array_rows(x, axes.get(n), target * max(len(x), 1)) for n, x in values.items()}
        return
    graph = StatsGraph(evidence.model)
    queries = {n: _RowQuery.for_shape(shape, axes.get(n), target) for n, shape in shapes.items()}
    session = graph.build({n: partial(query.add_nodes, graph) for n, query in queries.items()})
    batch, fixed = session.batch_size(evidence), batch_layout(data.signature).batch or 1
    for rows in data.batches(batch):
        outputs = session.run(rows.inputs, rows.keys[0])
        whole = {n: query.rows(outputs[n][0]) for n, query in queries.items()}
        yield {n: x[: len(x) * rows.count // fixed] if rows.count < fixed else x for n, x in whole.items()}


def array_rows(x: np.ndarray, axis: int | None, target: int) -> np.ndarray:
    """[positions, channels] of an array at evenly spaced positions.

    axis:   of the channels, or None
    target: number of values
    """
    rows = x.reshape(-1, 1) if axis is None or x.ndim < 2 else np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    return rows[:: coprime_stride(len(rows), rows.size // target)]

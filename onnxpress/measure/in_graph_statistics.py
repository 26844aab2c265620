"""Statistics of large intermediate tensors, computed inside the graph, so that its added outputs are small.

Collecting statistics of every tensor then costs less than one more run of the model, and hardly any memory.  (Exporting
all values costs about as much again in page faults.)  Feature maps are reduced and sampled by pooling operators, which
onnxruntime computes in the blocked layout of its convolutions; for reductions and slices it would reorder each map
first.

The shape of one sample determines which values are sampled: evenly over all positions of every axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.model import edit, read, submodels
from onnxpress.runtime.session import all_cores, open_session, run

MIN_OPSET = 11  # first version of Slice and of the reductions as they are written here
_MIN_MAP_SIZE = 7  # rows and columns from which on a feature map is sampled by pooling
_GRID_OVERSAMPLING = 4  # values of a grid per value wanted: a grid meets borders, or every second pixel, more often
_END = 2**62
_BATCH_BYTES = 80 * 2**20  # of a few of the largest tensors of a batch


def coprime_stride(count: int, stride: int) -> int:
    """The smallest stride of at least `stride` that is coprime to `count`.

    A divisor of a width would meet the same channels only.
    """
    return next(s for s in range(max(1, stride), count + stride + 2) if math.gcd(s, count) == 1)


def grid_stride(shape: tuple[int, ...], axis: int | None, target: int) -> int:
    """Stride of the pooling grid that samples a feature map [samples, channels, rows, columns].

    target: number of values of a sample; the grid has a few times as many.  0 for other tensors and for small maps.
    """
    if len(shape) != 4 or axis != 1 or min(shape[2:]) < _MIN_MAP_SIZE:
        return 0
    size = int(np.prod(shape))
    return next(g for g in itertools.chain((1,), itertools.count(2, 2)) if size <= g * g * target * _GRID_OVERSAMPLING)


def grid_positions(shape: tuple[int, ...], stride: int) -> int:
    """Number of positions of a feature map on a grid with this stride."""
    return -(-shape[2] // stride) * -(-shape[3] // stride)


class StatsGraph:
    """A copy of a model with added nodes that compute statistics.

    onnxruntime orders nodes backwards from those whose outputs no node reads, the last in the file first.  So the
    statistics of the first tensor stand last, and are computed as soon as it exists: it is still in the processor's
    cache, and its memory is free afterwards.  (A pooling node would not do: the node that reorders its output follows
    it.  Flatten does.)
    """

    def __init__(self, model: ir.Model) -> None:
        graph = (work := model.clone()).graph
        self._work, self._last = work, list(graph)[-1]
        self._values = {v.name: v for v in (*graph.inputs, *(v for n in graph for v in n.outputs))}
        self._axes_as_input = read.opset(model) >= 18  # reductions take their axes as an input from there on
        self._constants: dict[tuple[int, ...], ir.Value] = {}

    def build(self, statistics: Mapping[str, Callable[[ir.Value], Sequence[ir.Value]]]) -> StatsSession:
        """A session with the added outputs.

        statistics: by tensor name, a function that adds nodes and returns their outputs
        """
        made = {name: list(add(self._values[name])) for name, add in reversed(list(statistics.items()))}
        added = [value for name in statistics for value in made[name]]
        for value in added:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        model = submodels.set_outputs(self._work, [*added, *self._work.graph.outputs])
        return StatsSession(model, {name: len(made[name]) for name in statistics})

    def reduce(self, op: str, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """ReduceMin or ReduceMax over some axes."""
        if not axes:
            return self._node("Identity", value)
        if self._axes_as_input:
            return self._node(op, value, self._constant(axes), keepdims=0)
        return self._node(op, value, axes=list(axes), keepdims=0)

    def global_max(self, value: ir.Value) -> ir.Value:
        """[samples, channels] maximum of a feature map."""
        return self._node("Flatten", self._node("GlobalMaxPool", value))

    def sample_grid(self, value: ir.Value, stride: int) -> ir.Value:
        """[samples, channels x positions] of a feature map on a grid."""
        return self._node("Flatten", self._node("MaxPool", value, kernel_shape=[1, 1], strides=[stride, stride]))

    def move_axis_last(self, value: ir.Value, axis: int, rank: int) -> ir.Value:
        """The tensor with one axis moved behind all others."""
        return self._node("Transpose", value, perm=[*(i for i in range(rank) if i != axis), axis])

    def sample_strided(self, value: ir.Value, stride: int, width: int | None = None) -> ir.Value:
        """Every `stride`-th value of the flat tensor, or every `stride`-th row of this width."""
        rows = self._node("Reshape", value, self._constant([-1] if width is None else [-1, width]))
        return self._node("Slice", rows, *(self._constant([number]) for number in (0, _END, 0, stride)))

    def _node(self, op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        made = edit.insert_after(self._work, self._last, op, inputs, "statistic", attributes)
        self._last = made.producer() or self._last
        return made

    def _constant(self, numbers: Sequence[int]) -> ir.Value:
        key = tuple(numbers)
        if key not in self._constants:
            self._constants[key] = edit.add_constant(self._work, np.asarray(numbers, np.int64), "statistic")
        return self._constants[key]


class StatsSession:
    """A session that computes the added statistics, and the model's own outputs."""

    def __init__(self, model: ir.Model, counts: Mapping[str, int]) -> None:
        """counts: number of added outputs by tensor name, in order."""
        # spinning: waking a thread for each of hundreds of small nodes would take longer than the nodes do
        self.session = open_session(model, replace(all_cores(), spinning=True))
        self._counts = counts
        names = [port.name for port in self.session.get_outputs()]
        self._added, self.model_outputs = names[: sum(counts.values())], names[sum(counts.values()) :]

    def batch_size(self, evidence: Evidence) -> int:
        """Samples per batch such that a few of the model's largest tensors fit in memory."""
        largest = max((4 * int(np.prod(evidence.trace.shapes[name])) for name in evidence.trace.floats), default=1)
        batchable = evidence.batchable_in(self.session, self.model_outputs)
        return int(max(1, min(16, _BATCH_BYTES // (4 * largest)))) if batchable else 1

    def run(self, inputs: Mapping[str, np.ndarray], where: object = "") -> dict[str, list[np.ndarray]]:
        """The added outputs by tensor name."""
        outputs = iter(run(self.session, inputs, self._added, where))
        return {name: list(itertools.islice(outputs, count)) for name, count in self._counts.items()}

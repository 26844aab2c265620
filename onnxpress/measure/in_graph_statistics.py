"""Questions about large inner tensors, answered inside the graph: what is handed out is small.

Looking at every tensor of a model then costs less than one more run of it, and no memory to speak of.  (Handing all values out costs
as much again in page faults.)  Feature maps are asked by pools, which onnxruntime computes in the blocked layout that its convolutions
use: for reductions and slices it would put each in order first.

Which values are taken is settled by the shape of one sample: evenly over all places of every axis.
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

OPSET = 11  # from which on Slice and the reductions are as they are written here
_MAP = 7  # rows and columns from which on a feature map is asked by pools, for
_DENSER = 4  # times the values: a grid sees borders, or every second pixel, more often than others
_END = 2**62
_BYTES = 80 * 2**20  # of a few of the largest tensors at once


def step(count: int, wish: int) -> int:
    """At least the wish, and prime to the count: a step that divides a width would see the same channels again and again."""
    return next(s for s in range(max(1, wish), count + wish + 2) if math.gcd(s, count) == 1)


def grid(shape: tuple[int, ...], axis: int | None, wish: int) -> int:
    """How many rows and columns of a feature map [samples, channels, rows, columns] lie between those that pools take, for a few times
    as many values of a sample as are wished for; 0 for what is no map, or too small a one."""
    if len(shape) != 4 or axis != 1 or min(shape[2:]) < _MAP:
        return 0
    size = int(np.prod(shape))
    return next(g for g in itertools.chain((1,), itertools.count(2, 2)) if size <= g * g * wish * _DENSER)


def on_grid(shape: tuple[int, ...], apart: int) -> int:
    """The positions of a map that a grid takes."""
    return -(-shape[2] // apart) * -(-shape[3] // apart)


class StatsGraph:
    """A copy of a model with nodes that answer questions.

    onnxruntime walks back from the nodes whose outputs no node reads, the last in the file first.  So the questions to the first tensor
    stand last, and are answered when it has just been made: it is still in the processor's cache, and its memory is free for the next.
    (A pool would be no such node: what puts its output in order comes behind it.  Flatten does.)
    """

    def __init__(self, model: ir.Model) -> None:
        graph = (work := model.clone()).graph
        self._work, self._last = work, list(graph)[-1]
        self._values = {v.name: v for v in (*graph.inputs, *(v for n in graph for v in n.outputs))}
        self._late = read.opset(model) >= 18  # a reduction's axes are an input from there on
        self._numbers: dict[tuple[int, ...], ir.Value] = {}

    def answering(self, questions: Mapping[str, Callable[[ir.Value], Sequence[ir.Value]]]) -> StatsSession:
        """The model opened; a question adds nodes behind the tensor of its name and gives what is handed out of it."""
        made = {name: list(ask(self._values[name])) for name, ask in reversed(list(questions.items()))}
        asked = [value for name in questions for value in made[name]]
        for value in asked:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        model = submodels.set_outputs(self._work, [*asked, *self._work.graph.outputs])
        return StatsSession(model, {name: len(made[name]) for name in questions})

    def extreme(self, op: str, value: ir.Value, over: Sequence[int]) -> ir.Value:
        """ReduceMin or ReduceMax over some axes."""
        if not over:
            return self._node("Identity", value)
        if self._late:
            return self._node(op, value, self._constant(over), keepdims=0)
        return self._node(op, value, axes=list(over), keepdims=0)

    def highest(self, value: ir.Value) -> ir.Value:
        """Of a map, [samples, channels]."""
        return self._node("Flatten", self._node("GlobalMaxPool", value))

    def on_grid(self, value: ir.Value, apart: int) -> ir.Value:
        """Of a map, [samples, channels x positions]."""
        return self._node("Flatten", self._node("MaxPool", value, kernel_shape=[1, 1], strides=[apart, apart]))

    def last(self, value: ir.Value, axis: int, rank: int) -> ir.Value:
        """The axis behind all others."""
        return self._node("Transpose", value, perm=[*(i for i in range(rank) if i != axis), axis])

    def every(self, value: ir.Value, stride: int, width: int | None = None) -> ir.Value:
        """Every so manieth value, or row of that width."""
        rows = self._node("Reshape", value, self._constant([-1] if width is None else [-1, width]))
        return self._node("Slice", rows, *(self._constant([number]) for number in (0, _END, 0, stride)))

    def _node(self, op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        made = edit.insert_after(self._work, self._last, op, inputs, "asked", attributes)
        self._last = made.producer() or self._last
        return made

    def _constant(self, numbers: Sequence[int]) -> ir.Value:
        key = tuple(numbers)
        if key not in self._numbers:
            self._numbers[key] = edit.add_constant(self._work, np.asarray(numbers, np.int64), "asked")
        return self._numbers[key]


class StatsSession:
    """A session that gives what was asked, and the model's own outputs."""

    def __init__(self, model: ir.Model, counts: Mapping[str, int]) -> None:
        # waking a thread for each of hundreds of small nodes would cost more than they take
        self.session = open_session(model, replace(all_cores(), spinning=True))
        self._counts = counts
        names = [port.name for port in self.session.get_outputs()]
        self._asked, self.own = names[: sum(counts.values())], names[sum(counts.values()) :]

    def batch(self, evidence: Evidence) -> int:
        """Samples a batch, so that a few of the model's largest tensors fit."""
        largest = max((4 * int(np.prod(evidence.trace.shapes[name])) for name in evidence.trace.floats), default=1)
        return int(max(1, min(16, _BYTES // (4 * largest)))) if evidence.batchable_in(self.session, self.own) else 1

    def of(self, inputs: Mapping[str, np.ndarray], where: object = "") -> dict[str, list[np.ndarray]]:
        found = iter(run(self.session, inputs, self._asked, where))
        return {name: list(itertools.islice(found, count)) for name, count in self._counts.items()}

"""What is asked of large inner tensors, taken inside the graph: extremes along an axis, and some values.

Reductions and a strided Slice beside each tensor hand out a few thousand numbers instead of megabytes, so that looking at every tensor
of a model costs about one more run of it, and no memory to speak of.  (Handing all values out costs as much again in page faults.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import layout
from onnxpress.measure.evidence import Evidence, stream
from onnxpress.model import edit, read
from onnxpress.runtime.session import all_cores, open_session, run

_TAKEN = 2**18  # values of a tensor, of all samples; but of each sample no more and no fewer than
_MOST, _LEAST = 8192, 1024
_OPSET = 11  # from which on Slice and the reductions are as they are written here
_END = 2**62
_BYTES = 80 * 2**20  # of a few of the largest tensors at once


@dataclass(frozen=True)
class Places:
    """Where values stand on an axis. at: of each its position; count: of each position its values."""

    at: np.ndarray
    count: np.ndarray

    @classmethod
    def on(cls, values: int, stride: int, inner: int, size: int) -> Places:
        """Of every so manieth value of an array whose axis has that size, and so many elements behind each position."""
        at = np.arange(values, dtype=np.int64) * stride // inner % size
        return cls(at, np.maximum(np.bincount(at, minlength=size), 1))


@dataclass(frozen=True)
class Digest:
    """Of one tensor in one batch. low, high: extremes, along the axis asked for or one number; some: values, evenly spread over all
    places of every axis; places: where those stand on the axis (None: not known, or no axis)."""

    low: np.ndarray
    high: np.ndarray
    some: np.ndarray
    places: Places | None


@dataclass(frozen=True)
class _Asked:
    """axis: kept beside the first, or None; step: between the values that are taken; shape: of one sample, as traced."""

    name: str
    axis: int | None
    step: int
    shape: tuple[int, ...]
    places: dict[int, Places] = field(default_factory=dict)  # by the number of values


def digests(
    evidence: Evidence, tensors: Sequence[str], axes: Mapping[str, int], parts: Sequence[Dataset] | None = None
) -> Iterator[tuple[int, dict[str, Digest]]]:
    """One pass over samples, batch by batch, with the part that each is of. axes: along which extremes are wanted; others get one
    number; parts: of the evidence's samples (None: all as one).

    Tensors of the trace that are float32; of others nothing is said.  onnxruntime's reductions pass NaN over: it is looked for among
    the values that are taken, and among all of the sample that was traced.
    """
    parts = parts if parts is not None else [evidence.samples()]
    if read.opset(evidence.model) < _OPSET:
        for part, data in enumerate(parts):
            for values in stream(evidence.model, tensors, data, evidence.batch_for(tensors)):
                yield part, {name: digest_of(x, axes.get(name)) for name, x in values.items() if x.dtype == np.float32 and x.size}
        return
    seen = evidence.trace
    wish = min(_MOST, max(_LEAST, _TAKEN // max(sum(len(data) for data in parts), 1)))
    asked = [_asked(name, seen.shapes[name], axes.get(name), wish) for name in tensors if name in seen.floats and seen.shapes[name]]
    session = open_session(_with_digests(evidence.model, asked), all_cores())
    fixed = layout(evidence.samples().signature).batch or 1
    largest = max((4 * int(np.prod(a.shape)) for a in asked), default=1)
    batch = int(max(1, min(16, _BYTES // (4 * largest)))) if evidence.batchable else 1
    for part, data in enumerate(parts):
        for rows in data.batches(batch):
            found = run(session, rows.inputs, where=rows.keys[0])
            taken = {a.name: _digest(a, found[3 * i : 3 * i + 3], rows.count, fixed) for i, a in enumerate(asked)}
            yield part, {n: replace(d, low=np.full_like(d.low, np.nan)) if seen.floats[n] else d for n, d in taken.items()}


def digest_of(x: np.ndarray, axis: int | None) -> Digest:
    """The same of values at hand."""
    flat = x.ravel()
    stride = step(len(flat), len(flat) // (_MOST * max(len(x), 1) if x.ndim else 1))
    some = flat[::stride]
    if axis is None or x.ndim < 2:
        return Digest(flat.min(), flat.max(), some, None)
    place = axis % x.ndim
    size, inner = x.shape[place], int(np.prod(x.shape[place + 1 :]))
    rows = x.reshape(-1, size, inner)
    return Digest(rows.min(axis=(0, 2)), rows.max(axis=(0, 2)), some, Places.on(len(some), stride, inner, size))


def _asked(name: str, shape: tuple[int, ...], axis: int | None, wish: int) -> _Asked:
    size = int(np.prod(shape))
    place = None if axis is None or len(shape) < 2 else axis % len(shape)
    return _Asked(name, place or None, step(size, size // wish), shape)


def step(count: int, wish: int) -> int:
    """At least the wish, and prime to the count: a step that divides a width would see the same channels again and again."""
    return next(s for s in range(max(1, wish), count + wish + 2) if math.gcd(s, count) == 1)


def _with_digests(model: ir.Model, asked: Sequence[_Asked]) -> ir.Model:
    """A copy that gives (lowest, highest, some values) of each tensor and nothing else."""
    work = model.clone()
    values: dict[str, ir.Value] = {v.name: v for v in work.graph.inputs if v.name}
    values |= {v.name: v for n in work.graph for v in n.outputs if v.name}
    late = read.opset(model) >= 18  # axes are an input from there on
    last = list(work.graph)[-1]

    def constant(numbers: Sequence[int]) -> ir.Value:
        return edit.add_constant(work, np.asarray(numbers, np.int64), "digest")

    def node(op: str, inputs: Sequence[ir.Value], behind: ir.Node = last, **attributes: object) -> ir.Value:
        return edit.insert_after(work, behind, op, inputs, "digest", attributes)

    flat, begin, end, first = constant([-1]), constant([0]), constant([_END]), constant([0])
    names: list[str] = []
    for a in asked:
        value = values[a.name]
        over = [i for i in range(1, len(a.shape)) if i != a.axis]
        made = []
        for op in ("ReduceMin", "ReduceMax"):
            if not over:
                made.append(node("Identity", [value]))
            elif late:
                made.append(node(op, [value, constant(over)], keepdims=0))
            else:
                made.append(node(op, [value], axes=over, keepdims=0))
        row = node("Reshape", [value, flat])
        maker = row.producer()
        assert maker is not None
        made.append(node("Slice", [row, begin, end, first, constant([a.step])], maker))
        names += [v.name or "" for v in made]
        for output in made:
            output.type = ir.TensorType(ir.DataType.FLOAT)
    return edit.outputs_only(work, names)


def _digest(a: _Asked, values: Sequence[np.ndarray], count: int, fixed: int) -> Digest:
    low, high, some = values
    if count < fixed and low.ndim and low.shape[0] == fixed:  # rows that fill a fixed batch up
        low, high = low[:count], high[:count]
    if a.axis is None:
        return Digest(low.min(initial=np.inf), high.max(initial=-np.inf), some, None)
    inner = int(np.prod(a.shape[a.axis + 1 :]))
    size = low.shape[-1]
    whole = len(low) * int(np.prod(a.shape)) // max(a.shape[0], 1)
    known = size == a.shape[a.axis] and (inner == 1 or len(some) == -(-whole // a.step))
    if known and len(some) not in a.places:
        a.places[len(some)] = Places.on(len(some), a.step, inner, size)
    return Digest(low.min(axis=0), high.max(axis=0), some, a.places[len(some)] if known else None)

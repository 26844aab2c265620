"""Which channels of which tensors are one and the same: labels sent through the graph.

Every producer of channels (Conv, Gemm, MatMul, zero padding of a channel axis) gives each of its output
channels a fresh label.  Operators carry labels along, tie them (a residual Add: position by position) or
freeze them (an operator this room does not know, a graph output).  Ties are collected as edges; connected
components are the channels that can only be removed together (the coupling of DepGraph, Fang et al. 2023,
found on labels instead of per-operator index maps: see `channels.py` for what is made of them).

A label array has the rank of its tensor and size 1 on every axis along which labels do not vary.  Label 0 means
frozen.  A tensor whose labels vary along two axes at once (heads x dims) is frozen: removing from it need not
leave a box.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.model.trace import Trace

Labels = np.ndarray


@dataclass(frozen=True)
class Slot:
    """One axis of one constant operand that is sliced along with the channels.

    role: "out" (rows that make channels), "in" (columns that read them), "along" (per-channel constants)
    labels: one label a position of that axis
    """

    node: str
    operand: int
    axis: int
    role: str
    labels: np.ndarray


@dataclass(frozen=True)
class Resize:
    """A movement node whose written-down sizes follow the channels. axis: of its output; labels: along it."""

    node: str
    axis: int
    labels: np.ndarray
    part: int = 0


@dataclass
class Flow:
    """The state of one walk, and its result."""

    trace: Trace
    of: dict[str, Labels] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    resizes: list[Resize] = field(default_factory=list)
    edges: list[np.ndarray] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    count: int = 1

    def fresh(self, number: int) -> np.ndarray:
        labels = np.arange(self.count, self.count + number, dtype=np.int64)
        self.count += number
        return labels

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.broadcast_arrays(a, b)
        pairs = np.stack([a.ravel(), b.ravel()], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs):
            self.edges.append(np.unique(pairs, axis=0))

    def freeze(self, labels: Labels | None, reason: str) -> None:
        if labels is None:
            return
        found = np.unique(labels)
        found = found[found != 0]
        if len(found):
            self.tie(found, np.zeros_like(found))
            self.frozen.append((found, reason))

    def rank(self, value: ir.Value) -> int:
        shape = self.trace.shape(value.name)
        return len(shape) if shape is not None else 0

    def blank(self, value: ir.Value) -> Labels:
        return np.zeros((1,) * self.rank(value), np.int64)

    def read(self, value: ir.Value | None) -> Labels | None:
        return None if value is None or value.name is None else self.of.get(value.name)

    def write(self, value: ir.Value, labels: Labels, reason: str) -> None:
        """Store labels of a value, in compact form; freeze them where they vary along two axes."""
        labels = compact(labels)
        if sum(size > 1 for size in labels.shape) > 1:
            self.freeze(labels, reason)
            labels = self.blank(value)
        if value.name:
            self.of[value.name] = labels


def compact(labels: Labels) -> Labels:
    """Shrink every axis along which the labels do not vary to size 1."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis=axis) if labels.shape[axis] else labels
        if labels.shape[axis] > 1 and (labels == first).all():
            labels = first
    return labels


def vary_axis(labels: Labels) -> int | None:
    """The one axis along which the labels vary; None where they are uniform."""
    axes = [a for a, size in enumerate(labels.shape) if size > 1]
    return axes[0] if axes else None


def along(labels: Labels, axis: int, size: int) -> np.ndarray | None:
    """The labels along one axis as a vector; None where they vary along another one."""
    if vary_axis(labels) not in (None, axis):
        return None
    vector = labels.reshape(-1)
    return np.broadcast_to(vector, (size,)) if vector.size == 1 else vector


def opaque(flow: Flow, node: ir.Node, reason: str) -> None:
    """Nothing is known of the node: what it reads is frozen, what it makes has no channels."""
    for value in node.inputs:
        flow.freeze(flow.read(value), reason)
    for value in node.outputs:
        if value.name:
            flow.of[value.name] = flow.blank(value)

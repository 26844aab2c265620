"""Samples, and batches of samples that are stacked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxpress.data.layout import BatchLayout


@dataclass(frozen=True)
class Sample:
    """One sample.

    inputs: by name, full rank, batch axis 1, read-only
    label:  scalar, array or None
    key:    for messages: "train.npz[17]"
    """

    inputs: dict[str, np.ndarray]
    label: Any | None
    key: str


@dataclass(frozen=True)
class Batch:
    """Stacked samples; the last batch of a model with a fixed batch size is padded with its last sample.

    inputs: by name; the arrays may be changed
    labels: one entry per sample, without padding
    keys:   one entry per sample, without padding
    count:  number of samples without padding
    """

    inputs: dict[str, np.ndarray]
    labels: list[Any | None]
    keys: list[str]
    count: int


def can_stack(one: Sample, other: Sample, layout: BatchLayout) -> bool:
    """Whether two samples can be in one batch: equal shapes, and equal values of inputs without batch axis."""
    for port in layout.ports:
        a, b = one.inputs[port.name], other.inputs[port.name]
        if a.shape != b.shape:
            return False
        if port.axis is None and not np.array_equal(a, b):
            return False
        if port.axis is not None and (a.ndim <= port.axis or a.shape[port.axis] != 1):
            return False
    return True


def stack(group: list[Sample], layout: BatchLayout, rows: int) -> Batch:
    """The batch of a group of samples, padded to `rows` with its last sample."""
    fill = group + [group[-1]] * (rows - len(group))
    inputs: dict[str, np.ndarray] = {}
    for port in layout.ports:
        values = [s.inputs[port.name] for s in fill]
        if port.axis is None or len(values) == 1:
            inputs[port.name] = np.array(values[0], order="C")
        else:
            inputs[port.name] = np.ascontiguousarray(np.concatenate(values, axis=port.axis))
    return Batch(inputs, [s.label for s in group], [s.key for s in group], len(group))

"""Simple criteria of which channels go first: baselines, and what serves where nothing better is known.

Each gives a curve whose error is the share of the criterion's sum that is gone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from onnxpress.measure.gram import Moments, weight_by_tap
from onnxpress.measure.linear import LinearLayer
from onnxpress.model.channels.groups import ChannelGroup
from onnxpress.passes.pruning.obs_selection import Curve

Weights = Mapping[
    tuple[str, int], np.ndarray
]  # the constants that make channels, in their own layouts, by node and operand


def magnitude(group: ChannelGroup, weights: Weights) -> Curve:
    """Squared L2 norm of the makers' rows, each maker by its share; the smallest go first."""
    return _ordered(group, sum((_share((rows**2).sum(axis=1)) for rows in _made(group, weights)), np.zeros(group.size)))


def magnitude_l1(group: ChannelGroup, weights: Weights) -> Curve:
    """L1 norm of the makers' rows (Li et al. 2017)."""
    return _ordered(
        group, sum((_share(np.abs(rows).sum(axis=1)) for rows in _made(group, weights)), np.zeros(group.size))
    )


def fpgm(group: ChannelGroup, weights: Weights) -> Curve:
    """Sum of distances to the makers' other rows: what lies near the geometric median can be replaced (He et al. 2019)."""
    total = np.zeros(group.size)
    for rows in _made(group, weights):
        squares = (rows**2).sum(axis=1)
        apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0))
        total += _share(apart.sum(axis=1))
    return _ordered(group, total)


def chance(group: ChannelGroup, weights: Weights) -> Curve:
    """An order drawn from the group's name."""
    return _ordered(group, np.random.default_rng(zlib.crc32(group.name.encode())).random(group.size))


BY_WEIGHTS: dict[str, Callable[[ChannelGroup, Weights], Curve]] = {
    "magnitude": magnitude, "magnitude-l1": magnitude_l1, "fpgm": fpgm, "random": chance,
}  # fmt: skip


def activation(group: ChannelGroup, moments: Mapping[str, tuple[LinearLayer, Moments]]) -> Curve | None:
    """Squared weights of the readers times the power of what they read (Sun et al. 2024, for whole channels); None where no
    reader is linear."""
    total, found = np.zeros(group.size), False
    for place in group.readers:
        if place.node not in moments:
            continue
        layer, seen = moments[place.node]
        power = np.diag(seen.xx) / max(seen.count, 1.0)
        weight, taps = layer.weight.astype(np.float64), layer.taps
        if len(power) != weight.shape[1]:  # moments of channels, the taps together
            weight, taps = weight_by_tap(layer).astype(np.float64), 1
        columns = (weight**2).sum(axis=0) * power
        per = layer.taps if taps == 1 and layer.op != "Conv" else 1
        parts = [np.unique(p // per) for p in place.positions]
        total += _share(np.array([columns.reshape(-1, taps)[p].sum() for p in parts]))
        found = True
    return _ordered(group, total) if found else None


def _made(group: ChannelGroup, weights: Weights) -> Iterator[np.ndarray]:
    """For every constant that makes the group's channels: what belongs to each, [channels, numbers]."""
    for place in group.slices:
        if place.role == "out" and (place.node, place.operand) in weights:
            rows = np.moveaxis(weights[place.node, place.operand], place.axis, 0)
            rows = rows.reshape(len(rows), -1).astype(np.float64)
            yield np.stack([rows[p].ravel() for p in place.positions])


def _share(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / max(float(values.sum()), 1e-30))


def _ordered(group: ChannelGroup, values: np.ndarray) -> Curve:
    order = np.argsort(values, kind="stable")[: group.size - 1]
    error = np.concatenate([[0.0], np.cumsum(values[order])]) / max(float(values.sum()), 1e-30)
    return Curve(group.name, tuple(int(i) for i in order), tuple(float(e) for e in error))

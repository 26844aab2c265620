"""Importance criteria of channels other than the second-order one: baselines, and fallbacks without samples.

Each returns a curve whose error is the removed share of the summed importance.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from onnxpress.measure.gram import Moments, weight_by_tap
from onnxpress.measure.linear import LinearLayer
from onnxpress.model.channels.groups import ChannelGroup
from onnxpress.passes.pruning.obs_selection import ErrorCurve

ProducerWeights = Mapping[tuple[str, int], np.ndarray]  # by node name and operand index, in their own layouts


def magnitude(group: ChannelGroup, weights: ProducerWeights) -> ErrorCurve:
    """Squared L2 norm of the weights that produce each channel, normalized per layer (Han et al. 2015)."""
    return _curve_by_score(
        group,
        sum((_normalized((rows**2).sum(axis=1)) for rows in _channel_weights(group, weights)), np.zeros(group.size)),
    )


def magnitude_l1(group: ChannelGroup, weights: ProducerWeights) -> ErrorCurve:
    """L1 norm of the weights that produce each channel, normalized per layer (Li et al. 2017)."""
    return _curve_by_score(
        group,
        sum((_normalized(np.abs(rows).sum(axis=1)) for rows in _channel_weights(group, weights)), np.zeros(group.size)),
    )


def fpgm(group: ChannelGroup, weights: ProducerWeights) -> ErrorCurve:
    """Sum of distances to the weights of the other channels (He et al. 2019).

    Channels near the geometric median of the weights can be replaced by others and are removed first.
    """
    score = np.zeros(group.size)
    for rows in _channel_weights(group, weights):
        squares = (rows**2).sum(axis=1)
        distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0))
        score += _normalized(distances.sum(axis=1))
    return _curve_by_score(group, score)


def random_order(group: ChannelGroup, weights: ProducerWeights) -> ErrorCurve:
    """Random order, seeded by the name of the group."""
    return _curve_by_score(group, np.random.default_rng(zlib.crc32(group.name.encode())).random(group.size))


WEIGHT_CRITERIA: dict[str, Callable[[ChannelGroup, ProducerWeights], ErrorCurve]] = {
    "magnitude": magnitude, "magnitude-l1": magnitude_l1, "fpgm": fpgm, "random": random_order,
}  # fmt: skip


def activation(group: ChannelGroup, moments: Mapping[str, tuple[LinearLayer, Moments]]) -> ErrorCurve | None:
    """Squared weights of the readers times the mean square of their inputs, summed per channel (Sun et al. 2024).

    Returns:
        The curve; None if none of the readers is linear.
    """
    score, has_reader = np.zeros(group.size), False
    for place in group.readers:
        if place.node not in moments:
            continue
        layer, seen = moments[place.node]
        mean_square = np.diag(seen.xx) / max(seen.count, 1.0)
        weight, taps = layer.weight.astype(np.float64), layer.taps
        if len(mean_square) != weight.shape[1]:  # moments between channels only
            weight, taps = weight_by_tap(layer).astype(np.float64), 1
        column_scores = (weight**2).sum(axis=0) * mean_square
        taps_per_channel = layer.taps if taps == 1 and layer.op != "Conv" else 1
        channel_positions = [np.unique(p // taps_per_channel) for p in place.positions]
        score += _normalized(np.array([column_scores.reshape(-1, taps)[p].sum() for p in channel_positions]))
        has_reader = True
    return _curve_by_score(group, score) if has_reader else None


def _channel_weights(group: ChannelGroup, weights: ProducerWeights) -> Iterator[np.ndarray]:
    """For every constant that produces channels of the group: its weights per channel, [channels, weights]."""
    for place in group.slices:
        if place.role == "out" and (place.node, place.operand) in weights:
            rows = np.moveaxis(weights[place.node, place.operand], place.axis, 0)
            rows = rows.reshape(len(rows), -1).astype(np.float64)
            yield np.stack([rows[p].ravel() for p in place.positions])


def _normalized(scores: np.ndarray) -> np.ndarray:
    """Scores divided by their sum."""
    return np.asarray(scores / max(float(scores.sum()), 1e-30))


def _curve_by_score(group: ChannelGroup, scores: np.ndarray) -> ErrorCurve:
    """The curve that removes channels by ascending score."""
    order = np.argsort(scores, kind="stable")[: group.size - 1]
    error = np.concatenate([[0.0], np.cumsum(scores[order])]) / max(float(scores.sum()), 1e-30)
    return ErrorCurve(group.name, tuple(int(i) for i in order), tuple(float(e) for e in error))

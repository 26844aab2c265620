"""Error curves of all channel groups, by one of several importance criteria.

second-order: increase of the readers' error after refitting (`obs_selection.py`); activation: weights of the readers
times the power of their inputs; magnitude, magnitude-l1: norms of the producers' weights; fpgm: distance to the weights
of the other channels; random: a baseline (`importance.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.gram import Moments, input_moments
from onnxpress.measure.linear import LinearLayer
from onnxpress.model import read
from onnxpress.model.channels import groups as ch
from onnxpress.passes.pruning import importance
from onnxpress.passes.pruning.importance import ProducerWeights
from onnxpress.passes.pruning.obs_selection import ErrorCurve, curves_from_arrays, curves_to_arrays, obs_curve

_DATA_CRITERIA = {"second-order": obs_curve, "activation": importance.activation}
_WIDE = 1024  # columns of a reader from which its taps are looked at separately: the time grows with the third power
CRITERIA = (*_DATA_CRITERIA, *importance.WEIGHT_CRITERIA)


def error_curves(evidence: Evidence, scope: str = "all", criterion: str = "second-order") -> dict[str, ErrorCurve]:
    """Compute the error curve of every group.

    Args:
        evidence: the model and its samples; without samples, `magnitude` replaces the criteria that need them.
        scope: "all" groups, or "hidden" (internal channels only).
        criterion: one of `CRITERIA`.

    Returns:
        Curves by group name.
    """
    groups = [g for g in evidence.channels.groups if scope == "all" or g.internal]
    nodes = {n.name: n for n in evidence.model.graph}
    producers = {(p.node, p.operand) for g in groups for p in g.slices if p.role == "out"}
    weights = {at: w for at in sorted(producers) if (w := read.constant(nodes[at[0]].inputs[at[1]])) is not None}
    weight_criterion = importance.WEIGHT_CRITERIA.get(
        criterion, importance.magnitude if evidence.data is None else None
    )
    if weight_criterion is not None:
        return {g.name: weight_criterion(g, weights) for g in groups}
    key = f"curves {criterion} {[g.name for g in groups]}"
    arrays = evidence.observed(
        key, lambda: curves_to_arrays(_curves_on_samples(evidence, groups, nodes, weights, _DATA_CRITERIA[criterion]))
    )
    return curves_from_arrays([g.name for g in groups], arrays)


def _curves_on_samples(
    evidence: Evidence,
    groups: Sequence[ch.ChannelGroup],
    nodes: Mapping[str | None, ir.Node],
    weights: ProducerWeights,
    data_criterion: Callable[[ch.ChannelGroup, Mapping[str, tuple[LinearLayer, Moments]]], ErrorCurve | None],
) -> dict[str, ErrorCurve]:
    """Curves by a criterion on the samples; by magnitude where no reader is linear."""
    curves: dict[str, ErrorCurve] = {}
    readers_of_group = {g.name: {p.node for p in g.readers} for g in groups}
    readers = list(dict.fromkeys(p.node for g in groups for p in g.readers))
    blocks: dict[str, int] = {}  # by reader, a size that the runs of columns of all channels are multiples of
    for place in (p for g in groups for p in g.readers):
        blocks[place.node] = math.gcd(blocks.get(place.node, 0), *(_run_length(p) for p in place.positions))
    known_moments: dict[str, tuple[LinearLayer, Moments]] = {}
    visited: set[str] = set()
    for name, layer, moments in input_moments(evidence, [nodes[r] for r in readers], blocks, _WIDE):
        known_moments[name] = (layer, moments)
        visited.add(name)
        for group in groups:  # a group is done once all its readers are known; their moments are then released
            if group.name not in curves and readers_of_group[group.name] <= visited:
                curves[group.name] = data_criterion(group, known_moments) or importance.magnitude(group, weights)
        known_moments = {
            n: m
            for n, m in known_moments.items()
            if any(n in readers_of_group[g.name] for g in groups if g.name not in curves)
        }
    for group in groups:
        if group.name not in curves:
            curves[group.name] = data_criterion(group, known_moments) or importance.magnitude(group, weights)
    return {g.name: curves[g.name] for g in groups}


def _run_length(positions: np.ndarray) -> int:
    """The largest size of which all runs of neighbouring positions are aligned multiples."""
    found = np.sort(positions)
    starts = found[np.flatnonzero(np.diff(found, prepend=-2) != 1)]
    ends = found[np.flatnonzero(np.diff(found, append=found[-1] + 2) != 1)] + 1
    return int(np.gcd.reduce(np.concatenate([starts, ends])))

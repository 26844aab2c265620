"""Which channels of every group go first, and what that costs: one curve a group, by one of several criteria.

second-order: given that the survivors are refitted (`obs_selection.py`); activation: weights of the readers times the power of what they
read; magnitude, magnitude-l1: norms of the makers' weights; fpgm: distance to the other channels; random: a baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.gram import Moments, input_moments
from onnxpress.measure.linear import LinearLayer
from onnxpress.model import read
from onnxpress.model.channels import groups as ch
from onnxpress.passes.pruning import importance
from onnxpress.passes.pruning.importance import Weights
from onnxpress.passes.pruning.obs_selection import Curve, packed, second_order, unpacked

_ON_SAMPLES = {"second-order": second_order, "activation": importance.activation}
CRITERIA = (*_ON_SAMPLES, *importance.BY_WEIGHTS)


def curves(evidence: Evidence, scope: str = "all", criterion: str = "second-order") -> dict[str, Curve]:
    """The error-versus-width curve of every group in scope; without samples by magnitude."""
    groups = [g for g in evidence.channels.groups if scope == "all" or g.internal]
    nodes = {n.name: n for n in evidence.model.graph}
    makers = {(p.node, p.operand) for g in groups for p in g.slices if p.role == "out"}
    weights = {at: w for at in sorted(makers) if (w := read.constant(nodes[at[0]].inputs[at[1]])) is not None}
    plain = importance.BY_WEIGHTS.get(criterion, importance.magnitude if evidence.data is None else None)
    if plain is not None:
        return {g.name: plain(g, weights) for g in groups}
    what = f"curves {criterion} {[g.name for g in groups]}"
    kept = evidence.observed(
        what, lambda: packed(_on_samples(evidence, groups, nodes, weights, _ON_SAMPLES[criterion]))
    )
    return unpacked([g.name for g in groups], kept)


def _on_samples(
    evidence: Evidence,
    groups: Sequence[ch.ChannelGroup],
    nodes: Mapping[str | None, ir.Node],
    weights: Weights,
    curve: Callable[[ch.ChannelGroup, Mapping[str, tuple[LinearLayer, Moments]]], Curve | None],
) -> dict[str, Curve]:
    """By what the readers see of the samples; by magnitude where no reader is linear."""
    found: dict[str, Curve] = {}
    wanted = {g.name: {p.node for p in g.readers} for g in groups}
    readers = list(dict.fromkeys(p.node for g in groups for p in g.readers))
    blocks = {p.node: len(p.positions[0]) for g in groups for p in g.readers if _contiguous(p)}
    known: dict[str, tuple[LinearLayer, Moments]] = {}
    seen: set[str] = set()
    for name, layer, moments in input_moments(evidence, [nodes[r] for r in readers], blocks):
        known[name] = (layer, moments)
        seen.add(name)
        for group in groups:  # a group is done when all its readers are known; their matrices then make room
            if group.name not in found and wanted[group.name] <= seen:
                found[group.name] = curve(group, known) or importance.magnitude(group, weights)
        known = {n: m for n, m in known.items() if any(n in wanted[g.name] for g in groups if g.name not in found)}
    for group in groups:
        if group.name not in found:
            found[group.name] = curve(group, known) or importance.magnitude(group, weights)
    return {g.name: found[g.name] for g in groups}


def _contiguous(place: ch.ChannelSlice) -> bool:
    """Whether every channel owns one run of equally many neighbouring positions."""
    size = len(place.positions[0])
    return all(len(p) == size and int(p[-1]) - int(p[0]) == size - 1 and int(p[0]) % size == 0 for p in place.positions)

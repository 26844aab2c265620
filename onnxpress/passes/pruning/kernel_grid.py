"""Widths of channel groups on the grid of the CPU's kernels, and the actions that reach them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxpress.measure.evidence import Evidence
from onnxpress.model.channels import groups as ch
from onnxpress.passes.core.contract import Action
from onnxpress.passes.pruning.obs_selection import ErrorCurve


def widths(group: ch.ChannelGroup, evidence: Evidence) -> list[int]:
    """Widths of a group below its size that lie on the kernel grid, largest first."""
    step = step_of(group, evidence)
    return list(range((group.size - 1) // step * step, 0, -step))


def step_of(group: ch.ChannelGroup, evidence: Evidence) -> int:
    """How many of a group together make whole steps of the kernel grid: one of them may stand for several channels."""
    step = evidence.machine.grid(group.size * group.block)
    return step // math.gcd(step, group.block)


def action_of(curve: ErrorCurve, gone: int) -> Action:
    return {"group": curve.group, "remove": sorted(curve.order[:gone])}


def group_macs(group: ch.ChannelGroup, costs: Mapping[str, int]) -> float:
    return float(sum(costs.get(n, 0) for n in {p.node for p in group.slices}))

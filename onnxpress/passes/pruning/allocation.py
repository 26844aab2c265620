"""Allocation of channel removals to groups, from a goal to decisions.

A goal is the share of the channels to remove, or the share of the multiply-accumulates, weights or time that remains.
Uniform allocation removes the same share everywhere. Global allocation proceeds in steps of the kernel grid, by the
smallest predicted loss of the outputs per saved cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property, partial

import numpy as np

from onnxpress.measure.cache import Arrays
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.output_gain import predicted_loss
from onnxpress.measure.score import Scorer
from onnxpress.model.channels.groups import ChannelGroup
from onnxpress.model.channels.removal import remove
from onnxpress.model.counts import macs
from onnxpress.passes.core.contract import Action
from onnxpress.passes.core.loss_samples import loss_samples
from onnxpress.passes.core.refit import refit_readers
from onnxpress.passes.pruning.cost_model import CostModel, Costs, node_costs
from onnxpress.passes.pruning.error_curves import error_curves
from onnxpress.passes.pruning.kernel_grid import action_of, group_macs, step_of, widths
from onnxpress.passes.pruning.obs_selection import ErrorCurve
from onnxpress.passes.pruning.options import ALL, UNIFORM, PruneOptions

_GOAL_TOLERANCE = 1.001  # a cost of at most this multiple of its goal meets the goal
_UNIFORM_STEPS = 50  # uniform ratios that are tried for a goal other than a ratio


def plan_pruning(
    evidence: Evidence,
    options: PruneOptions,
    curves: Mapping[str, ErrorCurve] | None = None,
    loss_scales: Mapping[str, float] | None = None,
    costs: Costs | None = None,
) -> list[Action]:
    """Plan the channels to remove for a goal that is counted: ratio, multiply-accumulates or weights.

    Args:
        evidence: the model and its samples.
        options: the options, without a speed-up (see `prune_to_speedup`).
        curves: error curves by group name, if computed before.
        loss_scales: result of `loss_sensitivities`, if computed before.
        costs: for a ratio with global allocation, the kinds of cost that are to fall as far as with equal shares;
            default: multiply-accumulates and weights.

    Returns:
        Decisions; none where no group can be narrowed.

    Raises:
        InputProblem: for invalid options.
    """
    options.checked()
    picked = candidate_groups(evidence, options, curves)
    if options.ratio is not None:
        even = allocate_uniformly(evidence, picked, options.ratio)
        if options.allocation == UNIFORM or evidence.data is None:
            return to_actions(picked, even)
        costs = costs or node_costs(evidence)
        uniform = CostModel.from_evidence(evidence, picked, costs)
        uniform.set_all_removed(even)
        goals = {kind: uniform.total(kind) for kind in costs}
        scales = loss_scales or loss_sensitivities(evidence, picked, even)
        return to_actions(picked, allocate_globally(evidence, picked, scales, goals, costs))
    kind, share = ("params", options.params) if options.macs is None else ("macs", options.macs)
    if share is None:
        raise ValueError("a speed-up is measured, not planned")
    return plan_cost_share(evidence, options, picked, {kind: node_costs(evidence)[kind]}, share, loss_scales)


def plan_cost_share(
    evidence: Evidence,
    options: PruneOptions,
    picked: Mapping[str, ErrorCurve],
    costs: Costs,
    share: float,
    loss_scales: Mapping[str, float] | None = None,
) -> list[Action]:
    """Plan the channels to remove so that a share of one kind of cost remains, or as near as the widths allow.

    Args:
        evidence: the model and its samples.
        options: the options; only its allocation is used.
        picked: error curves of the groups that may be narrowed.
        costs: one kind of cost, by node name.
        share: share of the cost that is to remain, 0 to 1.
        loss_scales: result of `loss_sensitivities`, if computed before.
    """
    ((kind, by_node),) = costs.items()
    goals = {kind: share * sum(by_node.values())}
    if options.allocation == UNIFORM or evidence.data is None:
        even: dict[str, int] = {}
        for step in range(1, _UNIFORM_STEPS):
            even = allocate_uniformly(evidence, picked, step / _UNIFORM_STEPS)
            model = CostModel.from_evidence(evidence, picked, costs)
            model.set_all_removed(even)
            if model.total(kind) <= _GOAL_TOLERANCE * goals[kind]:
                break
        return to_actions(picked, even)
    if loss_scales is None:
        loss_scales = loss_sensitivities(evidence, picked, dict.fromkeys(picked, 0))
    return to_actions(picked, allocate_globally(evidence, picked, loss_scales, goals, costs))


def candidate_groups(
    evidence: Evidence, options: PruneOptions, curves: Mapping[str, ErrorCurve] | None = None
) -> dict[str, ErrorCurve]:
    """Select the groups in the scope of the options, without ignored nodes, with their error curves."""
    curves = curves if curves is not None else error_curves(evidence, options.scope, options.criterion)
    found = {}
    for name, curve in curves.items():
        group = evidence.channels.group(name)
        ignored = any(fnmatch(p.node, pattern) for p in group.slices if p.role == "out" for pattern in options.ignore)
        if not ignored and (options.scope == ALL or group.internal):
            found[name] = curve
    return found


def to_actions(picked: Mapping[str, ErrorCurve], removed: Mapping[str, int]) -> list[Action]:
    """Convert numbers of removed channels to decisions."""
    return [action_of(picked[name], count) for name, count in removed.items() if count]


def loss_sensitivities(
    evidence: Evidence,
    picked: Mapping[str, ErrorCurve],
    removed: Mapping[str, int],
    more_time: Callable[[], bool] = lambda: True,
) -> dict[str, float]:
    """Measure for each group the loss of the outputs per unit of its readers' error.

    Each group is narrowed alone and its readers are refitted. The relative squared error of the outputs on the
    calibration samples is divided by the error of the curve at this width. Where there is no time for that, the gains
    of the readers stand for it (`measure/output_gain.py`), scaled as those of the measured groups.

    Args:
        evidence: the model and its samples.
        picked: error curves by group name.
        removed: number of channels to remove from each group in its measurement; 0 for one step of the kernel grid.
        more_time: asked before every measurement. Groups with more multiply-accumulates are measured first.

    Returns:
        By group name, for the groups that can be narrowed.
    """
    costs = macs(evidence.model, evidence.trace)
    evaluator = _RemovalEvaluator(evidence)
    found: dict[str, float] = {}
    counts = {n: _trial_removal(evidence, n, removed.get(n, 0)) for n in picked}
    narrowable = [n for n, count in counts.items() if count]
    for name in sorted(narrowable, key=lambda n: -group_macs(evidence.channels.group(n), costs)):
        if not more_time():
            break
        removal = {name: sorted(picked[name].order[: counts[name]])}
        loss = evidence.observed(f"loss on {evaluator.samples} {removal}", partial(evaluator.loss, removal))
        found[name] = float(loss["nmse"]) / max(picked[name].error[counts[name]], 1e-9)
    if len(found) == len(narrowable):
        return found
    gains = {name: _gain(evidence, name) for name in narrowable}
    scale = float(np.median([loss / gains[name] for name, loss in found.items()])) if found else 1.0
    return {name: found.get(name, scale * gains[name]) for name in narrowable}


def _gain(evidence: Evidence, name: str) -> float:
    """Predicted loss of the outputs for a unit of error, shared by the readers of a group."""
    readers = sorted({p.node for p in evidence.channels.group(name).readers})
    return max(float(np.mean([predicted_loss(evidence, reader, 1.0) for reader in readers or [""]])), 1e-9)


def _trial_removal(evidence: Evidence, name: str, count: int) -> int:
    """The number of channels to remove from a group alone; 0 where the grid has no smaller width."""
    group = evidence.channels.group(name)
    steps = widths(group, evidence)
    return count or (group.size - steps[0] if steps else 0)


@dataclass
class _RemovalEvaluator:
    """Scores the model without some channels and with refitted readers, on some of the calibration samples: losses are
    compared with each other only."""

    evidence: Evidence
    scorer: Scorer | None = None

    @cached_property
    def samples(self) -> int:
        return loss_samples(self.evidence)

    @cached_property
    def _few(self) -> Evidence:
        return self.evidence.part(self.samples)

    def loss(self, removal: Mapping[str, list[int]]) -> Arrays:
        evidence = self._few
        self.scorer = self.scorer or Scorer(evidence.model, evidence.samples())
        channels = self.evidence.channels
        pruned = remove(evidence.model, channels, dict(removal))
        refit_readers(evidence, pruned, channels, dict(removal))
        return {"nmse": np.asarray(self.scorer.nmse(pruned))}


def allocate_uniformly(evidence: Evidence, picked: Mapping[str, ErrorCurve], ratio: float) -> dict[str, int]:
    """Remove the same share of every group, rounded to the kernel grid.

    Of groups that slice the same channels (heads, and their dimensions) only the finest is narrowed.

    Args:
        evidence: the model.
        picked: error curves by group name.
        ratio: share of the channels to remove, 0 to 1.

    Returns:
        Number of channels to remove by group name.
    """
    found = dict.fromkeys(picked, 0)
    covered: set[int] = set()
    for name in sorted(picked, key=lambda n: -evidence.channels.group(n).size):
        labels = {int(root) for unit in evidence.channels.members[name] for root in unit}
        if labels & covered:
            continue
        covered |= labels
        group = evidence.channels.group(name)
        channels = evidence.machine.nearest(group.size * group.block * (1 - ratio), group.size * group.block)
        step = step_of(group, evidence)
        found[name] = group.size - min(group.size, max(step, round(channels / group.block / step) * step))
    return found


def allocate_globally(
    evidence: Evidence,
    picked: Mapping[str, ErrorCurve],
    loss_scales: Mapping[str, float],
    goals: Mapping[str, float],
    costs: Costs,
) -> dict[str, int]:
    """Remove channels greedily, by the smallest predicted loss per saved cost, until all goals are met.

    Args:
        evidence: the model.
        picked: error curves by group name.
        loss_scales: result of `loss_sensitivities`.
        goals: maximum remaining cost by kind.
        costs: original costs by kind and node name.

    Returns:
        Number of channels to remove by group name; the goals may be missed if no steps of the grid are left.
    """
    state = CostModel.from_evidence(evidence, picked, costs)
    totals = {kind: max(sum(by_node.values()), 1e-30) for kind, by_node in costs.items()}
    steps = {n: _removal_steps(state.groups[n], picked[n], evidence) for n in picked}
    while True:
        unmet = [kind for kind, goal in goals.items() if state.total(kind) > _GOAL_TOLERANCE * goal]
        if not unmet:
            return _undo_surplus(picked, loss_scales, goals, state, steps)
        best: tuple[float, str, int] | None = None
        for name, curve in picked.items():
            count = next((c for c in steps[name] if c > state.removed[name]), None)
            if count is None:
                continue
            saving = sum(state.saving(name, count, kind) / totals[kind] for kind in unmet)
            loss = loss_scales.get(name, 1.0) * (curve.error[count] - curve.error[state.removed[name]])
            if saving > 0 and (best is None or loss / saving < best[0]):
                best = (loss / saving, name, count)
        if best is None:
            return state.removed
        state.set_removed(best[1], best[2])


def _removal_steps(group: ChannelGroup, curve: ErrorCurve, evidence: Evidence) -> list[int]:
    """Numbers of removed channels that leave a width on the kernel grid, in ascending order."""
    counts = (group.size - width for width in widths(group, evidence))
    return [count for count in counts if count < len(curve.error)]


def _undo_surplus(
    picked: Mapping[str, ErrorCurve],
    loss_scales: Mapping[str, float],
    goals: Mapping[str, float],
    state: CostModel,
    steps: Mapping[str, list[int]],
) -> dict[str, int]:
    """Undo the steps of greatest loss without which the goals are still met, since the last step overshoots them."""
    while True:
        undoable = []
        for name in (n for n, count in state.removed.items() if count):
            before = max((c for c in steps[name] if c < state.removed[name]), default=0)
            error = picked[name].error
            loss = loss_scales.get(name, 1.0) * (error[state.removed[name]] - error[before])
            undoable.append((loss, name, before))
        for _, name, before in sorted(undoable, reverse=True):
            trial = state.copy()
            trial.set_removed(name, before)
            if all(trial.total(kind) <= _GOAL_TOLERANCE * goal for kind, goal in goals.items()):
                state = trial
                break
        else:
            return state.removed

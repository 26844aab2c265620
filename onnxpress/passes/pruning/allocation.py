"""How many channels of which group go: from a wish to decisions.

A wish names a share of the channels, or what may be left of the multiply-accumulates, the weights or the time.  Uniform takes the
same share everywhere; by harm, step by step along the kernel grid, what harms the output least for what it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial

import numpy as np

from onnxpress.measure.cache import Arrays
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Scorer
from onnxpress.model.channels.removal import remove
from onnxpress.model.counts import macs
from onnxpress.passes.core.contract import Action
from onnxpress.passes.core.refit import repair
from onnxpress.passes.pruning.cost_model import Costs, Ledger, counted
from onnxpress.passes.pruning.error_curves import curves
from onnxpress.passes.pruning.kernel_grid import action_of, group_macs, step_of, widths
from onnxpress.passes.pruning.obs_selection import Curve
from onnxpress.passes.pruning.options import ALL, UNIFORM, PruneOptions

_ENOUGH = 1.001  # times a goal, from which on it is reached
_FINE = 50  # steps of a uniform share, where a goal names something else


def plan_pruning(
    evidence: Evidence,
    options: PruneOptions,
    known: Mapping[str, Curve] | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[Action]:
    """Decisions that carry out a wish by counting; empty where no group can be narrowed.

    known: curves computed before; weights: harm of the output a unit of a group's curve error (see `sensitivities`).  A
    speed-up is not counted but measured: see `plan_share`.
    """
    options.checked()
    picked = candidates(evidence, options, known)
    if options.ratio is not None:
        even = uniform(evidence, picked, options.ratio)
        if options.allocation == UNIFORM or evidence.data is None:
            return actions_of(picked, even)
        costs = counted(evidence)
        goal = Ledger.of(evidence, picked, costs)
        goal.take_all(even)
        goals = {what: goal.total(what) for what in costs}
        return actions_of(
            picked, spread(evidence, picked, weights or sensitivities(evidence, picked, even), goals, costs)
        )
    what, share = ("params", options.params) if options.macs is None else ("macs", options.macs)
    if share is None:
        raise ValueError("a speed-up is measured, not planned")
    return plan_share(evidence, options, picked, {what: counted(evidence)[what]}, share, weights)


def plan_share(
    evidence: Evidence,
    options: PruneOptions,
    picked: Mapping[str, Curve],
    costs: Costs,
    share: float,
    weights: Mapping[str, float] | None = None,
) -> list[Action]:
    """Decisions that leave this share of the costs (of one kind), or as near as the widths allow."""
    ((what, own),) = costs.items()
    goals = {what: share * sum(own.values())}
    if options.allocation == UNIFORM or evidence.data is None:
        even: dict[str, int] = {}
        for step in range(1, _FINE):
            even = uniform(evidence, picked, step / _FINE)
            ledger = Ledger.of(evidence, picked, costs)
            ledger.take_all(even)
            if ledger.total(what) <= _ENOUGH * goals[what]:
                break
        return actions_of(picked, even)
    scales = weights if weights is not None else sensitivities(evidence, picked, dict.fromkeys(picked, 0))
    return actions_of(picked, spread(evidence, picked, scales, goals, costs))


def candidates(evidence: Evidence, options: PruneOptions, known: Mapping[str, Curve] | None = None) -> dict[str, Curve]:
    """The groups that a wish speaks of, with their curves."""
    shapes = known if known is not None else curves(evidence, options.scope, options.criterion)
    found = {}
    for name, curve in shapes.items():
        group = evidence.channels.group(name)
        ignored = any(fnmatch(p.node, pattern) for p in group.slices if p.role == "out" for pattern in options.ignore)
        if not ignored and (options.scope == ALL or group.internal):
            found[name] = curve
    return found


def actions_of(picked: Mapping[str, Curve], gone: Mapping[str, int]) -> list[Action]:
    return [action_of(picked[name], count) for name, count in gone.items() if count]


def sensitivities(
    evidence: Evidence,
    picked: Mapping[str, Curve],
    gone: Mapping[str, int],
    more_time: Callable[[], bool] = lambda: True,
) -> dict[str, float]:
    """For each group, how much a unit of its readers' error harms the model's output, measured.

    The group alone is narrowed (to its uniform width, or by one step of the grid) and repaired; the rise of the output's
    nmse on the calibration samples is divided by the curve's error there.  Dear groups come first; those for which there
    is no time left get the median.
    """
    costs = macs(evidence.model, evidence.trace)
    judge = _LazyJudge(evidence)
    found: dict[str, float] = {}
    steps = {n: _first_step(evidence, n, gone.get(n, 0)) for n in picked}
    narrowable = [n for n, count in steps.items() if count]
    for name in sorted(narrowable, key=lambda n: -group_macs(evidence.channels.group(n), costs)):
        if not more_time():
            break
        removal = {name: sorted(picked[name].order[: steps[name]])}
        harm = evidence.observed(f"harm {removal}", partial(judge.harm, removal))
        found[name] = float(harm["nmse"]) / max(picked[name].error[steps[name]], 1e-9)
    middle = float(np.median(list(found.values()))) if found else 1.0
    return {name: found.get(name, middle) for name in narrowable}


def _first_step(evidence: Evidence, name: str, wish: int) -> int:
    """How many channels of a group go when it is tried alone; 0 where the grid has no smaller width."""
    group = evidence.channels.group(name)
    steps = widths(group, evidence)
    return wish or (group.size - steps[0] if steps else 0)


@dataclass
class _LazyJudge:
    """Scores the model with some channels removed and repaired, on the calibration samples."""

    evidence: Evidence
    judge: Scorer | None = None

    def harm(self, removal: Mapping[str, list[int]]) -> Arrays:
        evidence = self.evidence
        self.judge = self.judge or Scorer(evidence.model, evidence.samples())
        pruned = remove(evidence.model, evidence.channels, dict(removal))
        repair(evidence, pruned, evidence.channels, dict(removal))
        return {"nmse": np.asarray(self.judge.score(pruned).nmse)}


def uniform(evidence: Evidence, picked: Mapping[str, Curve], ratio: float) -> dict[str, int]:
    """The same share of every group; of groups that are slices of the same channels (heads, their dimensions) the finest."""
    found = dict.fromkeys(picked, 0)
    taken: set[int] = set()
    for name in sorted(picked, key=lambda n: -evidence.channels.group(n).size):
        mine = {int(root) for unit in evidence.channels.members[name] for root in unit}
        if mine & taken:
            continue
        taken |= mine
        group = evidence.channels.group(name)
        per = group.block
        channels = evidence.machine.nearest(group.size * per * (1 - ratio), group.size * per)
        step = step_of(group, evidence)
        found[name] = group.size - min(group.size, max(step, round(channels / per / step) * step))
    return found


def spread(
    evidence: Evidence,
    picked: Mapping[str, Curve],
    scales: Mapping[str, float],
    goals: Mapping[str, float],
    costs: Costs,
) -> dict[str, int]:
    """Step by step along the grid take what harms least for what it saves, until no cost is above its goal, or no step is left."""
    now = Ledger.of(evidence, picked, costs)
    totals = {what: max(sum(own.values()), 1e-30) for what, own in costs.items()}
    ladder = {
        n: [g for w in widths(now.groups[n], evidence) if (g := now.groups[n].size - w) < len(picked[n].error)]
        for n in picked
    }
    while True:
        needs = [what for what, goal in goals.items() if now.total(what) > _ENOUGH * goal]
        if not needs:
            return _given_back(picked, scales, goals, now, ladder)
        best: tuple[float, str, int] | None = None
        for name, curve in picked.items():
            following = next((g for g in ladder[name] if g > now.gone[name]), None)
            if following is None:
                continue
            gain = sum(now.gain(name, following, what) / totals[what] for what in needs)
            harm = scales.get(name, 1.0) * (curve.error[following] - curve.error[now.gone[name]])
            if gain > 0 and (best is None or harm / gain < best[0]):
                best = (harm / gain, name, following)
        if best is None:
            return now.gone
        now.take(best[1], best[2])


def _given_back(
    picked: Mapping[str, Curve],
    scales: Mapping[str, float],
    goals: Mapping[str, float],
    now: Ledger,
    ladder: Mapping[str, list[int]],
) -> dict[str, int]:
    """The last step went beyond the goals, by as much as the widest group's step is worth: of all steps those are taken back that
    harm most and of which the goals are kept all the same."""
    while True:
        able = []
        for name in (n for n, count in now.gone.items() if count):
            before = max((g for g in ladder[name] if g < now.gone[name]), default=0)
            able.append(
                (
                    scales.get(name, 1.0) * (picked[name].error[now.gone[name]] - picked[name].error[before]),
                    name,
                    before,
                )
            )
        for _, name, before in sorted(able, reverse=True):
            trial = now.copy()
            trial.take(name, before)
            if all(trial.total(what) <= _ENOUGH * goal for what, goal in goals.items()):
                now = trial
                break
        else:
            return now.gone

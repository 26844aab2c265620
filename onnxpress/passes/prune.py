"""prune: whole channels of Conv, Gemm and MatMul taken out, and the readers refitted.

Units are channel groups (`model/channels.py`): inner widths, residual spines, stems.  Which channels go is decided
by second-order selection on calibration data (`downdate.py`), how many by a uniform ratio or by harm for saving, on
the widths that this CPU's kernels like; what remains is repaired by least squares (`repair.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.cache import Arrays
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.gram import Moments, input_moments
from onnxpress.measure.linear import Linear
from onnxpress.measure.score import Judge
from onnxpress.model import channels as ch
from onnxpress.model import edit, read
from onnxpress.model.counts import macs
from onnxpress.model.removal import remove
from onnxpress.passes.base import Applied, Decision, Option, Refused, Saving
from onnxpress.passes.downdate import Curve, Weights, magnitude, packed, second_order, unpacked
from onnxpress.passes.repair import repair

SCOPES = ("all", "hidden")
SPREADS = ("harm", "uniform")
CRITERIA = ("second-order", "magnitude")


@dataclass(frozen=True)
class Wish:
    """What a user asks for.  ratio: share of the channels to remove, 0 < ratio < 1.

    scope: "all" groups, or "hidden" (inner widths only; residual spines and bottlenecks stay whole)
    spread: "uniform" (every group loses the same share) or "harm" (as many multiply-accumulates and weights go as
    with uniform, but from where it harms the output least)
    """

    ratio: float
    scope: str = "all"
    spread: str = "harm"
    criterion: str = "second-order"

    def check(self) -> None:
        if not 0 < self.ratio < 1:
            raise InputProblem("the pruning ratio must lie between 0 and 1", "--ratio", f"got {self.ratio}", "try 0.3")
        for name, value, known in (
            ("scope", self.scope, SCOPES),
            ("spread", self.spread, SPREADS),
            ("criterion", self.criterion, CRITERIA),
        ):
            if value not in known:
                raise InputProblem(f"unknown {name}", value, "", f"one of {', '.join(known)}")


class Prune:
    name = "prune"
    exact = False
    needs_data = True

    def options(self, model: ir.Model, evidence: Evidence) -> list[Option]:
        """One option a group and width on the kernel grid. harm: relative error of the readers; saving: MACs."""
        found = []
        costs = macs(evidence.model, evidence.trace)
        for curve in curves(evidence).values():
            group = evidence.channels.group(curve.group)
            cost = _group_macs(group, costs)
            for width in widths(group, evidence):
                gone = group.size - width
                saving = Saving(
                    cost * gone / group.size, 4.0 * _group_weights(evidence.model, group) * gone / group.size
                )
                found.append(Option(self.name, group.name, _decision(curve, gone), saving, curve.error[gone]))
        return found

    def apply(self, model: ir.Model, decisions: Sequence[Decision], evidence: Evidence) -> Applied:
        """decisions: [{"group": name, "remove": [channels]}, …, {"repair": "least-squares" | "none"}]."""
        if not decisions:
            return Applied(model.clone())
        facts = evidence.channels
        removal = _removal(facts, decisions)
        refused = [Refused(r.node, r.reason) for r in facts.refused]
        if not removal:
            return Applied(evidence.model.clone(), [], refused)
        pruned = remove(evidence.model, facts, removal)
        mode = next((d["repair"] for d in decisions if "repair" in d), "least-squares")
        notes = [f"removed {sum(len(v) for v in removal.values())} channels of {len(removal)} groups"]
        if mode != "none" and evidence.data is not None:
            fits = repair(evidence, pruned, facts, removal)
            if fits:
                notes.append(
                    f"refitted {len(fits)} layers, held-out error "
                    f"{np.mean([f.before for f in fits]):.4f} -> {np.mean([f.after for f in fits]):.4f}"
                )
        edit.drop_dead(pruned)
        return Applied(pruned, notes, refused)


def _removal(facts: ch.Channels, decisions: Sequence[Decision]) -> dict[str, list[int]]:
    sizes = {g.name: g.size for g in facts.groups}
    removal: dict[str, list[int]] = {}
    for decision in decisions:
        if "group" not in decision:
            continue
        name, gone = decision["group"], sorted({int(c) for c in decision["remove"]})
        if name not in sizes:
            raise InputProblem(
                "the plan names a channel group the model does not have",
                name,
                "",
                "use the plan with the model it was made for",
            )
        if gone and (gone[0] < 0 or gone[-1] >= sizes[name] or len(gone) >= sizes[name]):
            raise InputProblem(
                "the plan removes channels that do not exist, or all of them",
                name,
                f"{len(gone)} of {sizes[name]}",
                "leave at least one channel",
            )
        if gone:
            removal[name] = gone
    return removal


def widths(group: ch.Group, evidence: Evidence) -> list[int]:
    """Widths of a group below its size that lie on the kernel grid, largest first."""
    step = _step(group, evidence)
    return list(range((group.size - 1) // step * step, 0, -step))


def _step(group: ch.Group, evidence: Evidence) -> int:
    """How many of a group together make whole steps of the kernel grid: one of them may stand for several channels."""
    step = evidence.machine.grid(group.size * group.block)
    return step // math.gcd(step, group.block)


def curves(evidence: Evidence, scope: str = "all", criterion: str = "second-order") -> dict[str, Curve]:
    """The error-versus-width curve of every group in scope."""
    groups = [g for g in evidence.channels.groups if scope == "all" or g.hidden]
    nodes = {n.name: n for n in evidence.model.graph}
    makers = {(p.node, p.operand) for g in groups for p in g.places if p.role == "out"}
    weights = {at: w for at in sorted(makers) if (w := read.constant(nodes[at[0]].inputs[at[1]])) is not None}
    if criterion == "magnitude" or evidence.data is None:
        return {g.name: magnitude(g, weights) for g in groups}
    what = f"curves {criterion} {[g.name for g in groups]}"
    kept = evidence.observed(what, lambda: packed(_second_order(evidence, groups, nodes, weights)))
    return unpacked([g.name for g in groups], kept)


def _second_order(
    evidence: Evidence, groups: Sequence[ch.Group], nodes: Mapping[str | None, ir.Node], weights: Weights
) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    wanted = {g.name: {p.node for p in g.readers} for g in groups}
    readers = list(dict.fromkeys(p.node for g in groups for p in g.readers))
    blocks = {p.node: len(p.positions[0]) for g in groups for p in g.readers if _contiguous(p)}
    known: dict[str, tuple[Linear, Moments]] = {}
    seen: set[str] = set()
    for name, layer, moments in input_moments(evidence, [nodes[r] for r in readers], blocks):
        known[name] = (layer, moments)
        seen.add(name)
        for group in groups:  # a group is done when all its readers are known; their matrices then make room
            if group.name not in found and wanted[group.name] <= seen:
                found[group.name] = second_order(group, known) or magnitude(group, weights)
        known = {n: m for n, m in known.items() if any(n in wanted[g.name] for g in groups if g.name not in found)}
    for group in groups:
        if group.name not in found:
            found[group.name] = second_order(group, known) or magnitude(group, weights)
    return {g.name: found[g.name] for g in groups}


def _contiguous(place: ch.Place) -> bool:
    """Whether every channel owns one run of equally many neighbouring positions."""
    size = len(place.positions[0])
    return all(len(p) == size and int(p[-1]) - int(p[0]) == size - 1 and int(p[0]) % size == 0 for p in place.positions)


def plan_pruning(
    evidence: Evidence, wish: Wish, known: Mapping[str, Curve] | None = None, weights: Mapping[str, float] | None = None
) -> list[Decision]:
    """Decisions that carry out a wish; empty where no group can be narrowed.

    known: curves computed before; weights: harm of the output a unit of a group's curve error (see `sensitivities`).
    """
    wish.check()
    shapes = known if known is not None else curves(evidence, wish.scope, wish.criterion)
    picked = {n: c for n, c in shapes.items() if wish.scope == "all" or evidence.channels.group(n).hidden}
    gone = _uniform(evidence, picked, wish.ratio)
    if wish.spread == "harm" and evidence.data is not None:
        scales = weights if weights is not None else sensitivities(evidence, picked, gone)
        gone = spread_by_harm(evidence, picked, scales, gone)
    return [_decision(picked[name], count) for name, count in gone.items() if count]


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
    for name in sorted(narrowable, key=lambda n: -_group_macs(evidence.channels.group(n), costs)):
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
    judge: Judge | None = None

    def harm(self, removal: Mapping[str, list[int]]) -> Arrays:
        evidence = self.evidence
        self.judge = self.judge or Judge(evidence.model, evidence.samples())
        pruned = remove(evidence.model, evidence.channels, dict(removal))
        repair(evidence, pruned, evidence.channels, dict(removal))
        return {"nmse": np.asarray(self.judge.score(pruned).nmse)}


def _decision(curve: Curve, gone: int) -> Decision:
    return {"group": curve.group, "remove": sorted(curve.order[:gone])}


def _uniform(evidence: Evidence, picked: Mapping[str, Curve], ratio: float) -> dict[str, int]:
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
        step = _step(group, evidence)
        found[name] = group.size - min(group.size, max(step, round(channels / per / step) * step))
    return found


@dataclass
class _Ledger:
    """Running cost of every node (multiply-accumulates and weights) as groups get narrower."""

    groups: Mapping[str, ch.Group]
    macs: dict[str, float]
    sizes: dict[str, float]
    gone: dict[str, int]

    def nodes(self, name: str) -> list[str]:
        return list(dict.fromkeys(p.node for p in self.groups[name].places))

    def share(self, name: str, following: int) -> float:
        return (following - self.gone[name]) / (self.groups[name].size - self.gone[name])

    def gain(self, name: str, following: int, costs: Mapping[str, float]) -> float:
        return self.share(name, following) * sum(costs.get(n, 0.0) for n in self.nodes(name))

    def take(self, name: str, following: int) -> None:
        left = 1 - self.share(name, following)
        for node in self.nodes(name):
            self.macs[node] = self.macs.get(node, 0.0) * left
            self.sizes[node] = self.sizes.get(node, 0.0) * left
        self.gone[name] = following


def _ledger(evidence: Evidence, picked: Mapping[str, Curve]) -> _Ledger:
    operands = sorted({(s.node, s.operand) for s in evidence.channels.flow.slots if s.role in ("in", "out")})
    nodes = {n.name: n for n in evidence.model.graph}
    sizes: dict[str, float] = {}
    for node, operand in operands:
        weight = read.constant(nodes[node].inputs[operand])
        sizes[node] = sizes.get(node, 0.0) + (0.0 if weight is None else float(weight.size))
    costs = {k: float(v) for k, v in macs(evidence.model, evidence.trace).items()}
    return _Ledger({n: evidence.channels.group(n) for n in picked}, costs, sizes, dict.fromkeys(picked, 0))


def spread_by_harm(
    evidence: Evidence, picked: Mapping[str, Curve], scales: Mapping[str, float], uniform: Mapping[str, int]
) -> dict[str, int]:
    """Step by step along the grid take what harms least for what it saves, until as much is saved as by `uniform`."""
    goal = _ledger(evidence, picked)
    for name, count in uniform.items():
        if count:
            goal.take(name, count)
    macs_goal, size_goal = sum(goal.macs.values()), sum(goal.sizes.values())
    now = _ledger(evidence, picked)
    macs_all, size_all = sum(now.macs.values()), sum(now.sizes.values())
    ladder = {
        n: [g for w in widths(now.groups[n], evidence) if (g := now.groups[n].size - w) < len(picked[n].error)]
        for n in picked
    }
    while True:
        need_macs, need_size = sum(now.macs.values()) > macs_goal * 1.001, sum(now.sizes.values()) > size_goal * 1.001
        if not need_macs and not need_size:
            return now.gone
        best: tuple[float, str, int] | None = None
        for name, curve in picked.items():
            following = next((g for g in ladder[name] if g > now.gone[name]), None)
            if following is None:
                continue
            gain = (
                now.gain(name, following, now.macs) / max(macs_all, 1.0) * need_macs
                + now.gain(name, following, now.sizes) / max(size_all, 1.0) * need_size
            )
            harm = scales.get(name, 1.0) * (curve.error[following] - curve.error[now.gone[name]])
            if gain > 0 and (best is None or harm / gain < best[0]):
                best = (harm / gain, name, following)
        if best is None:
            return now.gone
        now.take(best[1], best[2])


def _group_macs(group: ch.Group, costs: Mapping[str, int]) -> float:
    return float(sum(costs.get(n, 0) for n in {p.node for p in group.places}))


def _group_weights(model: ir.Model, group: ch.Group) -> float:
    nodes = {n.name: n for n in model.graph}
    total = 0
    for place in group.places:
        array = read.constant(nodes[place.node].inputs[place.operand])
        total += 0 if array is None else array.size
    return float(total)


PRUNE = Prune()

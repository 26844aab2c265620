"""lowrank: weights as products of two thinner ones, where the work really falls and the clock agrees.

Forms and errors are those of `factors.py`.  How far which layer goes: the same rank, the same kept share of its output's
power, or (ratio) step by step what harms the outputs least for what it saves, a form's harm being scaled by one
measurement of the whole model.  Ranks lie on the CPU's kernel grid.  For latency a form counts only at ranks where the
layer alone, timed beside its factors, is slower than they.  The second factors are then refitted by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Scorer
from onnxpress.model import edit, submodels
from onnxpress.passes.core.contract import Applied, Decision, Option, Refused, Saving
from onnxpress.passes.core.refit import refit
from onnxpress.passes.structure import factors
from onnxpress.passes.structure.factors import Curve, Site
from onnxpress.runtime.latency import Effort, compare_latency

GOALS = ("latency", "size")
_LOOK = Effort(seconds=0.3, precision=0.02, rebuilds=2, resamples=200)
_REPAIRS = ("least-squares", "none")


@dataclass(frozen=True)
class Wish:
    """What a user asks for, one of: `ratio`, the share of the factorable layers' work (size: weights) to save; `rank`, the
    same for every layer; `energy`, the share of each layer's output power to keep.

    goal: "latency" (only where the clock agrees) or "size" (wherever bytes fall)
    """

    ratio: float | None = None
    rank: int | None = None
    energy: float | None = None
    goal: str = "latency"

    def check(self) -> None:
        if sum(v is not None for v in (self.ratio, self.rank, self.energy)) != 1:
            raise InputProblem(
                "say how far to factor", "--ratio, --rank, --energy", "exactly one is needed", "try --ratio 0.3"
            )
        for name, value in (("ratio", self.ratio), ("energy", self.energy)):
            if value is not None and not 0 < value < 1:
                raise InputProblem(f"the {name} must lie between 0 and 1", f"--{name}", f"got {value}", "try 0.5")
        if self.rank is not None and self.rank < 1:
            raise InputProblem("the rank must be at least 1", "--rank", f"got {self.rank}", "try 16")
        if self.goal not in GOALS:
            raise InputProblem("unknown goal", self.goal, "", f"one of {', '.join(GOALS)}")


class LowRank:
    name = "lowrank"
    exact = False
    needs_data = True

    def options(self, model: ir.Model, evidence: Evidence) -> list[Option]:
        """One option a layer, form and rank of the grid that saves work. harm: lost share of its output's power."""
        found = []
        for curve in known_curves(evidence).values():
            for rank in ranks(evidence, curve, "latency"):
                decision = _decision(curve, rank)
                harm = float(curve.error[rank])
                found.append(Option(self.name, curve.site.name, decision, _saving(evidence, curve, rank), harm))
        return found

    def apply(self, model: ir.Model, decisions: Sequence[Decision], evidence: Evidence) -> Applied:
        """decisions: [{"node": name, "rank": r, "form": "matrix" | "pointwise" | "spatial"}, …, {"repair": mode}].

        repair: "least-squares" (of the second factors; those of shared weights stay shared) or "none".
        """
        if not decisions:
            return Applied(model.clone())
        refused = factors.find_sites(evidence.model)[1]
        mode = next((d["repair"] for d in decisions if "repair" in d), _REPAIRS[0])
        if mode not in _REPAIRS:
            raise InputProblem("unknown repair", str(mode), "", f"one of {', '.join(_REPAIRS)}")
        chosen = _named(evidence, decisions)
        if not chosen:
            return Applied(evidence.model.clone(), [], refused)
        result = evidence.model.clone()
        for curve, rank in chosen:
            factors.factor(result, curve, rank)
        edit.drop_dead(result)
        edit.forget_shapes(result)
        notes = [f"factored {len(chosen)} layers, {np.mean([c.error[r] for c, r in chosen]):.4f} of their power lost"]
        if mode != "none" and evidence.data is not None:
            single = {c.site.name for c, _ in chosen if len(c.site.nodes) == 1}
            fits = refit(evidence, result, single)
            if fits:
                notes.append(
                    f"refitted {len(fits)} layers, held-out error "
                    f"{np.mean([f.before for f in fits]):.4f} -> {np.mean([f.after for f in fits]):.4f}"
                )
        return Applied(result, notes, refused)


def _decision(curve: Curve, rank: int) -> Decision:
    return {"node": curve.site.name, "rank": rank, "form": curve.form}


def _named(evidence: Evidence, decisions: Sequence[Decision]) -> list[tuple[Curve, int]]:
    """What the decisions speak of; of several for one layer the last counts."""
    wanted = {d["node"]: (d.get("form"), d.get("rank")) for d in decisions if "node" in d}
    curves = known_curves(evidence, wanted) if wanted else {}
    found = []
    for name, (form, rank) in wanted.items():
        curve = curves.get((name, str(form)))
        if curve is None:
            raise InputProblem(
                "the plan factors a layer the model does not have, or not in this form",
                f"{name}, {form}",
                "",
                "use the plan with the model it was made for",
            )
        if not isinstance(rank, int) or not 1 <= rank <= curve.full:
            raise InputProblem(
                "the plan gives a layer a rank it cannot have", name, f"{rank} of {curve.full}", "mend the plan"
            )
        found.append((curve, rank))
    return found


def known_curves(evidence: Evidence, names: Mapping[str, object] | None = None) -> Mapping[tuple[str, str], Curve]:
    """The curves of the named sites (None: of all), kept with the evidence."""
    kept: dict[tuple[str, str], Curve] = evidence.kept.setdefault("lowrank", {})
    sites = [s for s in factors.find_sites(evidence.model)[0] if names is None or s.name in names]
    new = [s for s in sites if not any((s.name, form) in kept for form in s.forms)]
    if new:
        kept.update(factors.by_key(factors.curves(evidence, new)))
    wanted = {s.name for s in sites}
    return {key: curve for key, curve in kept.items() if key[0] in wanted}


def _saving(evidence: Evidence, curve: Curve, rank: int) -> Saving:
    site = curve.site
    work = factors.macs_of(evidence, site) - factors.factored_macs(evidence, site, curve.form, rank)
    return Saving(float(work), 4.0 * (site.weight.size - factors.weights_of(site, curve.form, rank)))


def _gain(evidence: Evidence, curve: Curve, rank: int, goal: str) -> float:
    saving = _saving(evidence, curve, rank)
    return saving.macs if goal == "latency" else saving.weight_bytes


def ranks(evidence: Evidence, curve: Curve, goal: str) -> list[int]:
    """Ranks on the kernel grid that save work (size: bytes), smallest first."""
    step = evidence.machine.grid(curve.full)
    return [r for r in range(step, curve.full, step) if _gain(evidence, curve, r, goal) > 0]


def plan_lowrank(evidence: Evidence, wish: Wish) -> tuple[list[Decision], list[Refused]]:
    """Decisions that carry out a wish, and the layers left alone with the reason."""
    wish.check()
    curves = known_curves(evidence)
    clock = Clock(evidence) if wish.goal == "latency" else None
    refused = list(factors.find_sites(evidence.model)[1])
    if wish.ratio is None:
        chosen = _each(evidence, curves, wish, clock)
    else:
        chosen = _spread(evidence, curves, wish.ratio, wish.goal, clock)
    picked = {c.site.name for c, _ in chosen}
    for name in dict.fromkeys(n for n, _ in curves):
        if name in picked:
            continue
        mine = [c for c in curves.values() if c.site.name == name]
        able = any(ranks(evidence, c, wish.goal) for c in mine)
        slow = clock is not None and any(clock.refused(c) for c in mine)
        reason = "its factors are not faster" if slow else "what it would lose is better saved elsewhere"
        refused.append(Refused(name, reason if able else "too narrow: no rank saves anything"))
    order = {n.name: i for i, n in enumerate(evidence.model.graph)}
    chosen.sort(key=lambda pair: order[pair[0].site.name])
    return [_decision(c, r) for c, r in chosen], refused


def _each(
    evidence: Evidence, curves: Mapping[tuple[str, str], Curve], wish: Wish, clock: Clock | None
) -> list[tuple[Curve, int]]:
    """Every layer to the wished rank or energy; of its forms the one that saves most (rank: that loses least)."""
    found = []
    for name in dict.fromkeys(n for n, _ in curves):
        able = []
        for curve in (c for c in curves.values() if c.site.name == name):
            rank = wish.rank
            if wish.energy is not None:
                enough = (r for r in ranks(evidence, curve, wish.goal) if curve.error[r] <= 1 - wish.energy)
                rank = next(enough, None)
            if rank is None or rank >= curve.full or _gain(evidence, curve, rank, wish.goal) <= 0:
                continue
            if clock is None or clock.faster(curve, rank):
                able.append((curve, rank))
        if able:
            lost = min if wish.rank is not None else max
            found.append(
                lost(
                    able,
                    key=lambda pair: (
                        float(pair[0].error[pair[1]])
                        if wish.rank is not None
                        else _gain(evidence, pair[0], pair[1], wish.goal)
                    ),
                )
            )
    return found


def _spread(
    evidence: Evidence, curves: Mapping[tuple[str, str], Curve], ratio: float, goal: str, clock: Clock | None
) -> list[tuple[Curve, int]]:
    """Step by step what harms least for what it saves, until the share of what all these layers cost is saved."""
    judge = Scorer(evidence.model, evidence.samples())
    points: dict[str, list[tuple[float, float, Curve, int]]] = {}  # saving, harm, curve, rank
    whole = {c.site.name: _cost(evidence, c.site, goal) for c in curves.values()}
    for curve in curves.values():
        ladder = ranks(evidence, curve, goal)
        if clock is not None:
            ladder = clock.up_to(curve, ladder)
        if not ladder:
            continue
        scale = _sensitivity(evidence, judge, curve, ladder[len(ladder) // 2])
        points.setdefault(curve.site.name, []).extend(
            (_gain(evidence, curve, r, goal), scale * float(curve.error[r]), curve, r) for r in ladder
        )
    goal_saving = ratio * sum(whole.values())
    now: dict[str, tuple[float, float, Curve, int]] = {}
    while (missing := goal_saving - sum(p[0] for p in now.values())) > 0:
        best: tuple[float, str, tuple[float, float, Curve, int]] | None = None
        for name, found in points.items():
            saved, harm = now[name][:2] if name in now else (0.0, 0.0)
            for point in found:
                if point[0] > saved:
                    price = max(point[1] - harm, 1e-12) / min(point[0] - saved, missing)
                    if best is None or price < best[0]:
                        best = (price, name, point)
        if best is None:
            break
        now[best[1]] = best[2]
    return [(curve, rank) for _, _, curve, rank in now.values()]


def _cost(evidence: Evidence, site: Site, goal: str) -> float:
    return float(factors.macs_of(evidence, site)) if goal == "latency" else 4.0 * site.weight.size


def _sensitivity(evidence: Evidence, judge: Scorer, curve: Curve, rank: int) -> float:
    """How much a unit of a form's lost power harms the outputs: measured with this layer alone at one rank."""
    trial = evidence.model.clone()
    factors.factor(trial, curve, rank)
    edit.drop_dead(trial)
    return judge.score(trial).nmse / max(float(curve.error[rank]), 1e-9)


class Clock:
    """Times layers alone against their factors, on the activations of one sample; remembers what it saw."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._nodes = {n.name: n for n in evidence.model.graph}
        self._seen: dict[tuple[str, str, int], bool] = {}
        self._inputs: dict[str, np.ndarray] = {}

    def faster(self, curve: Curve, rank: int) -> bool:
        key = (curve.site.name, curve.form, rank)
        if key not in self._seen:
            node = self._nodes[curve.site.name]
            base = submodels.single_node_model(self._evidence.model, node, ir.DataType.FLOAT)
            other = base.clone()
            site = Site(node.name or "", (node.name or "",), curve.site.op, curve.site.kernel, curve.site.weight)
            factors.factor(other, Curve(site, curve.form, curve.basis, curve.error), rank)
            edit.drop_dead(other)
            models: dict[str, ir.Model | bytes | str] = {"layer": base, "factors": other}
            ratio = compare_latency(models, [{"input": self._input(node)}], _LOOK).ratios[0]
            self._seen[key] = ratio.low > 1.0
        return self._seen[key]

    def _input(self, node: ir.Node) -> np.ndarray:
        name = node.inputs[0].name or "" if node.inputs[0] is not None else ""
        if name not in self._inputs:
            self._inputs[name] = next(iter(self._evidence.stream([name], 1)))[name]
        return self._inputs[name]

    def refused(self, curve: Curve) -> bool:
        return any(not good for key, good in self._seen.items() if key[:2] == (curve.site.name, curve.form))

    def up_to(self, curve: Curve, ladder: Sequence[int]) -> list[int]:
        """The part of a ladder of ranks, smallest first, that is faster than the layer; found by bisection."""
        low, high = 0, len(ladder)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.faster(curve, ladder[middle - 1]) else (low, middle - 1)
        return list(ladder[:low])


LOWRANK = LowRank()

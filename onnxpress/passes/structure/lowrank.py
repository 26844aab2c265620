"""lowrank: weights as products of two thinner ones, where the work really falls and the clock agrees.

Forms and errors are those of `factors.py`.  How far which layer goes: the same rank, the same kept share of its
output's power, or (ratio) step by step what harms the outputs least for what it saves, a form's harm being scaled by
one measurement of the whole model.  Ranks lie on the CPU's kernel grid.  For latency a form counts only at ranks where
the layer alone, timed beside its factors, is slower than they.  The second factors are then refitted by least squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, EvidenceKey
from onnxpress.measure.output_gain import predicted_loss
from onnxpress.measure.score import Scorer
from onnxpress.model import edit, submodels
from onnxpress.passes.core.bisection import largest_allowed
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving
from onnxpress.passes.core.options import PassOptions, check_between, only_one, option
from onnxpress.passes.core.refit import refit_layers
from onnxpress.passes.core.refit_option import refit_mode, refit_note, with_refit
from onnxpress.passes.structure import factors
from onnxpress.passes.structure.factors import FactorizableLayer, RankCurve
from onnxpress.runtime.latency import Effort, compare_latency

GOALS = ("latency", "size")
_LOOK = Effort(seconds=0.3, precision=0.02, rebuilds=2, resamples=200)

_CURVES: EvidenceKey[dict[tuple[str, str], RankCurve]] = EvidenceKey("error by rank")


@dataclass(frozen=True)
class LowRankOptions(PassOptions):
    """How far to factorize, by exactly one of ratio, rank and energy.

    Factorize weights into products of two smaller ones where that is measured to be faster.
    """

    example: ClassVar[dict[str, Any]] = {"ratio": 0.2, "goal": "size"}

    ratio: float | None = option(
        None, help="Share of the factorizable layers' work to save (goal size: of their weights)."
    )
    rank: int | None = option(None, help="The same rank for every layer.")
    energy: float | None = option(None, help="Share of each layer's output power to keep, such as 0.95.")
    goal: str = option(
        "latency",
        help="latency: only where the factors are measured to be faster; size: wherever bytes are saved.",
        choices=GOALS,
    )
    refit: bool = option(True, help="Refit the second factors by least squares.")

    def check(self) -> None:
        only_one(("ratio", "rank", "energy"), (self.ratio, self.rank, self.energy), "`ratio` 0.3")
        check_between("ratio", "the ratio", self.ratio, "0.5")
        check_between("energy", "the energy", self.energy, "0.95")
        if self.rank is not None and self.rank < 1:
            raise InputProblem("the rank must be at least 1", "`rank`", f"got {self.rank}", "give 16")


class LowRank:
    """Low-rank factorization of weights: truncated SVD in the metric of the layer's inputs."""

    name = "lowrank"
    exact = False
    needs_data = True
    extra = None
    Options = LowRankOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """One proposal for each layer, form and rank of the kernel grid that saves work."""
        for curve in known_curves(evidence).values():
            touches = frozenset((curve.layer.name, *curve.layer.nodes))
            for rank in ranks(evidence, curve, "latency"):
                loss = predicted_loss(evidence, curve.layer.nodes[0], float(curve.error[rank]))
                saving = _saving(evidence, curve, rank)
                yield Proposal(curve.layer.name, _action(curve, rank), touches, saving, loss)
        yield from factors.find_layers(evidence.model)[1]

    def plan(self, evidence: Evidence, options: LowRankOptions) -> Planned:
        """Layers with their forms and ranks."""
        actions, refused = plan_lowrank(evidence, options)
        notes = [] if actions else ["no layer gains from being factorized this far on this CPU"]
        return Planned(with_refit(actions, options.refit), notes, refused)

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"node": name, "rank": r, "form": "matrix" | "pointwise" | "spatial"}, …, {"refit": mode}].

        refit: "least-squares" (of the second factors; those of shared weights stay shared) or "none".
        """
        if not actions:
            return Applied(evidence.model.clone())
        refused = factors.find_layers(evidence.model)[1]
        mode = refit_mode(actions)
        chosen = _named(evidence, actions)
        if not chosen:
            return Applied(evidence.model.clone(), [], refused)
        result = evidence.model.clone()
        for curve, rank in chosen:
            factors.write_factors(result, curve, rank)
        edit.drop_dead(result)
        edit.forget_shapes(result)
        notes = [f"factored {len(chosen)} layers, {np.mean([c.error[r] for c, r in chosen]):.4f} of their power lost"]
        if mode != "none" and evidence.data is not None:
            single = {c.layer.name for c, _ in chosen if len(c.layer.nodes) == 1}
            notes += refit_note(refit_layers(evidence, result, single))
        return Applied(result, notes, refused)


def _action(curve: RankCurve, rank: int) -> Action:
    return {"node": curve.layer.name, "rank": rank, "form": curve.form}


def _named(evidence: Evidence, actions: Sequence[Action]) -> list[tuple[RankCurve, int]]:
    """What the decisions speak of; of several for one layer the last counts."""
    wanted = {d["node"]: (d.get("form"), d.get("rank")) for d in actions if "node" in d}
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
        if not isinstance(rank, int) or not 1 <= rank <= curve.full_rank:
            raise InputProblem(
                "the plan gives a layer a rank it cannot have", name, f"{rank} of {curve.full_rank}", "mend the plan"
            )
        found.append((curve, rank))
    return found


def known_curves(evidence: Evidence, names: Mapping[str, object] | None = None) -> Mapping[tuple[str, str], RankCurve]:
    """The curves of the named sites (None: of all), kept with the evidence."""
    kept = evidence.derive(_CURVES, dict)
    sites = [s for s in factors.find_layers(evidence.model)[0] if names is None or s.name in names]
    new = [s for s in sites if not any((s.name, form) in kept for form in s.forms)]
    if new:
        kept.update(factors.curves_by_form(factors.rank_curves(evidence, new)))
    wanted = {s.name for s in sites}
    return {key: curve for key, curve in kept.items() if key[0] in wanted}


def _saving(evidence: Evidence, curve: RankCurve, rank: int) -> Saving:
    site = curve.layer
    work = factors.layer_macs(evidence, site) - factors.factored_macs(evidence, site, curve.form, rank)
    return Saving(float(work), 4.0 * (site.weight.size - factors.factored_weights(site, curve.form, rank)))


def _gain(evidence: Evidence, curve: RankCurve, rank: int, goal: str) -> float:
    saving = _saving(evidence, curve, rank)
    return saving.macs if goal == "latency" else saving.weight_bytes


def ranks(evidence: Evidence, curve: RankCurve, goal: str) -> list[int]:
    """Ranks on the kernel grid that save work (size: bytes), smallest first."""
    step = evidence.machine.grid(curve.full_rank)
    return [r for r in range(step, curve.full_rank, step) if _gain(evidence, curve, r, goal) > 0]


def plan_lowrank(evidence: Evidence, options: LowRankOptions) -> tuple[list[Action], list[Refusal]]:
    """Decisions that carry out a wish, and the layers left alone with the reason."""
    options.checked()
    curves = known_curves(evidence)
    clock = Clock(evidence) if options.goal == "latency" else None
    refused = list(factors.find_layers(evidence.model)[1])
    if options.ratio is None:
        chosen = _each(evidence, curves, options, clock)
    else:
        chosen = _spread(evidence, curves, options.ratio, options.goal, clock)
    picked = {c.layer.name for c, _ in chosen}
    for name in dict.fromkeys(n for n, _ in curves):
        if name in picked:
            continue
        mine = [c for c in curves.values() if c.layer.name == name]
        able = any(ranks(evidence, c, options.goal) for c in mine)
        slow = clock is not None and any(clock.refused(c) for c in mine)
        reason = "its factors are not faster" if slow else "what it would lose is better saved elsewhere"
        refused.append(Refusal(name, reason if able else "too narrow: no rank saves anything"))
    order = {n.name: i for i, n in enumerate(evidence.model.graph)}
    chosen.sort(key=lambda pair: order[pair[0].layer.name])
    return [_action(c, r) for c, r in chosen], refused


def _each(
    evidence: Evidence, curves: Mapping[tuple[str, str], RankCurve], options: LowRankOptions, clock: Clock | None
) -> list[tuple[RankCurve, int]]:
    """Every layer to the wished rank or energy; of its forms the one that saves most (rank: that loses least)."""
    found = []
    for name in dict.fromkeys(n for n, _ in curves):
        able = []
        for curve in (c for c in curves.values() if c.layer.name == name):
            rank = options.rank
            if options.energy is not None:
                enough = (r for r in ranks(evidence, curve, options.goal) if curve.error[r] <= 1 - options.energy)
                rank = next(enough, None)
            if rank is None or rank >= curve.full_rank or _gain(evidence, curve, rank, options.goal) <= 0:
                continue
            if clock is None or clock.faster(curve, rank):
                able.append((curve, rank))
        if able:
            lost = min if options.rank is not None else max
            found.append(
                lost(
                    able,
                    key=lambda pair: (
                        float(pair[0].error[pair[1]])
                        if options.rank is not None
                        else _gain(evidence, pair[0], pair[1], options.goal)
                    ),
                )
            )
    return found


def _spread(
    evidence: Evidence, curves: Mapping[tuple[str, str], RankCurve], ratio: float, goal: str, clock: Clock | None
) -> list[tuple[RankCurve, int]]:
    """Step by step what harms least for what it saves, until the share of what all these layers cost is saved."""
    scorer = Scorer(evidence.model, evidence.samples())
    points: dict[str, list[tuple[float, float, RankCurve, int]]] = {}  # saving, harm, curve, rank
    whole = {c.layer.name: _cost(evidence, c.layer, goal) for c in curves.values()}
    for curve in curves.values():
        ladder = ranks(evidence, curve, goal)
        if clock is not None:
            ladder = clock.up_to(curve, ladder)
        if not ladder:
            continue
        scale = _sensitivity(evidence, scorer, curve, ladder[len(ladder) // 2])
        points.setdefault(curve.layer.name, []).extend(
            (_gain(evidence, curve, r, goal), scale * float(curve.error[r]), curve, r) for r in ladder
        )
    goal_saving = ratio * sum(whole.values())
    now: dict[str, tuple[float, float, RankCurve, int]] = {}
    while (missing := goal_saving - sum(p[0] for p in now.values())) > 0:
        best: tuple[float, str, tuple[float, float, RankCurve, int]] | None = None
        for name, found in points.items():
            saved, loss = now[name][:2] if name in now else (0.0, 0.0)
            for point in found:
                if point[0] > saved:
                    price = max(point[1] - loss, 1e-12) / min(point[0] - saved, missing)
                    if best is None or price < best[0]:
                        best = (price, name, point)
        if best is None:
            break
        now[best[1]] = best[2]
    return [(curve, rank) for _, _, curve, rank in now.values()]


def _cost(evidence: Evidence, site: FactorizableLayer, goal: str) -> float:
    return float(factors.layer_macs(evidence, site)) if goal == "latency" else 4.0 * site.weight.size


def _sensitivity(evidence: Evidence, scorer: Scorer, curve: RankCurve, rank: int) -> float:
    """How much a unit of a form's lost power harms the outputs: measured with this layer alone at one rank."""
    trial = evidence.model.clone()
    factors.write_factors(trial, curve, rank)
    edit.drop_dead(trial)
    return scorer.nmse(trial) / max(float(curve.error[rank]), 1e-9)


class Clock:
    """Times layers alone against their factors, on the activations of one sample; remembers what it saw."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._nodes = {n.name: n for n in evidence.model.graph}
        self._seen: dict[tuple[str, str, int], bool] = {}
        self._inputs: dict[str, np.ndarray] = {}

    def faster(self, curve: RankCurve, rank: int) -> bool:
        key = (curve.layer.name, curve.form, rank)
        if key not in self._seen:
            node = self._nodes[curve.layer.name]
            base = submodels.single_node_model(self._evidence.model, node, ir.DataType.FLOAT)
            other = base.clone()
            site = FactorizableLayer(
                node.name or "", (node.name or "",), curve.layer.op, curve.layer.kernel, curve.layer.weight
            )
            factors.write_factors(other, RankCurve(site, curve.form, curve.basis, curve.error), rank)
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

    def refused(self, curve: RankCurve) -> bool:
        return any(not good for key, good in self._seen.items() if key[:2] == (curve.layer.name, curve.form))

    def up_to(self, curve: RankCurve, ladder: Sequence[int]) -> list[int]:
        """The part of a ladder of ranks, smallest first, that is faster than the layer."""
        return list(ladder[: largest_allowed(0, len(ladder), lambda count: self.faster(curve, ladder[count - 1]))])


LOWRANK = LowRank()

"""The end of a search: the finalists timed together, and looked at on the validation samples until one holds the contract.

Without a goal in time the fastest comes first; with one ("at least twice as fast") those that reach it come first, the least
harmed before the others.  Where none of them holds, the fastest that does is taken, and the goal is told to be missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Splits
from onnxpress.errors import Problem
from onnxpress.evaluate.profile_comparison import ProfileComparison, profile_compare
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import to_bytes
from onnxpress.passes.core.contract import Refusal
from onnxpress.passes.int8.static_int8 import refusals
from onnxpress.plan import result_contract
from onnxpress.plan.candidate_store import Candidate, model_of
from onnxpress.plan.plan import Plan, new_plan
from onnxpress.runtime.latency import Effort, LatencyComparison, Ratio, compare_latency
from onnxpress.runtime.session import SessionSettings
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.request import OptimizeOptions
from onnxpress.search.search import Search, allowed

_FINALISTS = 5
_PROFILED, _PROFILE_SHARE = (
    1.0,
    0.01,
)  # seconds of looking where the time goes (reading it takes twice as long); of the time, if less
_PROFILED_RUNS = 24  # of both models at least: too many for one that takes seconds
_ROUGHLY = 0.97  # of a wished speed-up, in a short timing: the last timing decides


@dataclass
class OptimizeResult:
    """What a run found.

    chosen:             the accepted candidate's name, or "original"
    score, speedup:     final ones
    profile_comparison: layers and operators before and after; None where nothing was accepted
    """

    chosen: str
    met: bool
    reasons: list[str]
    data: bytes
    plan: Plan
    original_size: int
    score: Score | None
    speedup: Ratio | None
    final: LatencyComparison | None
    candidates: list[Candidate]
    rejected: dict[str, list[str]]
    looks: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    interrupted: bool = False
    profile_comparison: ProfileComparison | None = None
    refused: list[Refusal] = field(default_factory=list)


def finalists(
    original: ir.Model, splits: Splits, search: Search, request: OptimizeOptions, seconds: float
) -> OptimizeResult:
    """Time the finalists together, then look at the validation samples from the best down."""
    say, shop, found, clock = search.say, search.shop, search.found, search.clock
    say("timing the finalists", 0.75)
    able = [c for c in found if allowed(c, request.max_drop) and c.name != "exact"]
    quick = {c.name: c.quick or 0.0 for c in found}
    ranked = _ranked(able, quick, request.goal, _ROUGHLY * search.target)
    sure = _ranked(able, quick, request.goal, search.target / _ROUGHLY)[:1]  # where the others' times were lucky
    ranked = ranked[:_FINALISTS] + [c for c in sure if c not in ranked[:_FINALISTS]]
    finalists = ranked + [c for c in found if c.name == "exact"]
    final = compare_latency(
        {"original": original, **{c.name: c.data for c in finalists}},
        shop.feeds,
        Effort(seconds=seconds, precision=0.004, threads=request.threads, seed=request.seed),
        progress=lambda done: say("timing the finalists", 0.75 + 0.15 * done),
    )
    speeds = {c.name: final.ratio(c.name).low if search.target else final.ratio(c.name).speedup for c in finalists}
    order = _ranked(finalists, speeds, request.goal, search.target)
    say("validating", 0.92)
    judge = Scorer(original, splits.validate, "validation samples")
    rejected: dict[str, list[str]] = {}
    looks = 0
    outcome: OptimizeResult | None = None
    for candidate in order:
        score = judge.score(candidate.data)
        looks += 1
        problems = result_contract.same_shape_behaviour(original, candidate.data, splits.validate)
        exact = candidate.name == "exact"
        goal = "size" if exact else request.goal
        verdict = result_contract.judge(score, final.ratio(candidate.name), request.max_drop, goal, problems)
        if verdict.accepted:
            met = not exact or _exact_meets(candidate, final, original, request)
            if search.target:
                met = final.ratio(candidate.name).low >= search.target
            outcome = OptimizeResult(
                candidate.name,
                met,
                [],
                candidate.data,
                candidate.plan,
                len(to_bytes(original)),
                score,
                final.ratio(candidate.name),
                final,
                found,
                rejected,
                looks,
                clock.used,
                candidate.notes,
            )
            break
        rejected[candidate.name] = list(verdict.reasons)
    if outcome is None:
        outcome = OptimizeResult(
            "original",
            False,
            [],
            to_bytes(original),
            new_plan(original, shop.calibrate, request.seed),
            len(to_bytes(original)),
            None,
            None,
            final,
            found,
            rejected,
            looks,
            clock.used,
        )
    if not outcome.met:
        outcome.reasons = _goal(outcome, search.target) + _why(outcome, request)
        outcome.reasons += [f"{name} failed: {why}" for name, why in search.failed.items()]
        outcome.advice = (["ask for less speed"] if search.target else []) + _advice(outcome, splits, request)
    outcome.notes = outcome.notes + [f"{name} failed: {why}" for name, why in search.failed.items()]
    if outcome.chosen != "original":
        say("looking where the time goes", 0.97)
        taken = next(c for c in found if c.name == outcome.chosen)
        if _PROFILED_RUNS * final.timings[0].median < 2 * _PROFILE_SHARE * request.time_budget:
            outcome.profile_comparison = _sides(original, model_of(taken), shop.feeds[0], request)
    outcome.refused = _refused(shop)
    say("done", 1.0)
    return outcome


def _refused(shop: CandidateFactory) -> list[Refusal]:
    """Nodes with weights that a lever cannot act on, and why."""
    evidence = shop.exact_evidence
    if evidence is None:
        return []
    try:
        narrow = evidence.channels.refused
    except Problem:  # what cannot be traced is not pruned either
        narrow = ()
    whole = [Refusal(r.unit, f"int8: {r.reason}") for r in refusals(evidence)]
    return whole + [Refusal(r.node, f"pruning: {r.reason}") for r in narrow]


def _sides(
    original: ir.Model, other: ir.Model, feeds: Mapping[str, np.ndarray], request: OptimizeOptions
) -> ProfileComparison | None:
    """For the record alone: a model that cannot be profiled is as good, whatever the profiler stumbles over."""
    settings = SessionSettings(threads=request.threads)
    try:
        return profile_compare(original, other, feeds, min(_PROFILED, _PROFILE_SHARE * request.time_budget), settings)
    except Exception:
        return None


def _ranked(some: list[Candidate], speeds: dict[str, float], goal: str, target: float) -> list[Candidate]:
    """The best first: the smallest, or the fastest; with a target those that reach it, the least harmed first, and then the
    others."""
    if goal == "size":
        return sorted(some, key=lambda c: c.size)
    fast = sorted(some, key=lambda c: -speeds[c.name])
    if not target:
        return fast
    reached = sorted((c for c in fast if speeds[c.name] >= target), key=lambda c: (c.score.drop, c.score.nmse))
    return reached + [c for c in fast if c not in reached]


def _exact_meets(candidate: Candidate, final: LatencyComparison, original: ir.Model, request: OptimizeOptions) -> bool:
    if request.goal == "size":
        return candidate.size < len(to_bytes(original))
    return final.ratio(candidate.name).low > 1.0


def _goal(outcome: OptimizeResult, target: float) -> list[str]:
    """That a goal in time was missed, and by how much."""
    if not target:
        return []
    fastest = (
        "nothing faster held"
        if outcome.speedup is None
        else f"the fastest that holds is {outcome.speedup.speedup:.2f}x"
    )
    return [f"{target:.2f}x the original's speed was not reached: {fastest}"]


def _why(outcome: OptimizeResult, request: OptimizeOptions) -> list[str]:
    reasons = [f"{name}: {'; '.join(why)}" for name, why in outcome.rejected.items()]
    lost = [c for c in outcome.candidates if not allowed(c, request.max_drop)]
    reasons += [f"{c.name}: loses {c.score.drop:.4f} on the selection samples" for c in lost]
    return reasons


def _advice(outcome: OptimizeResult, splits: Splits, request: OptimizeOptions) -> list[str]:
    found = []
    if any(c.score.drop > request.max_drop for c in outcome.candidates):
        found.append("allow a larger --max-drop")
    if len(splits.calibrate) < 64:
        found.append(f"give more samples (calibration had {len(splits.calibrate)})")
    if len(splits.validate) < 200:
        found.append(
            f"give more validation samples ({len(splits.validate)} tell drops of {1 / max(len(splits.validate), 1):.3f} apart at best)"
        )
    found.append("give a longer --time-budget")
    return found


def summary(outcome: OptimizeResult) -> dict[str, object]:
    return {
        "chosen": outcome.chosen,
        "met": outcome.met,
        "reasons": outcome.reasons,
        "advice": outcome.advice,
        "bytes": len(outcome.data),
        "original_bytes": outcome.original_size,
        "validate": outcome.score,
        "speedup": outcome.speedup,
        "timings": outcome.final.timings if outcome.final else [],
        "ratios": outcome.final.ratios if outcome.final else [],
        "warnings": outcome.final.warnings if outcome.final else [],
        "rejected": outcome.rejected,
        "validation_looks": outcome.looks,
        "seconds": outcome.seconds,
        "notes": outcome.notes,
        "interrupted": outcome.interrupted,
        "profile_comparison": outcome.profile_comparison,
        "refused": outcome.refused,
    }

"""optimize: tries what could be done, measures all of it on the whole file, keeps what the contract allows.

Order: exact reductions; int8 of everything, then the mix that the clock prefers, then (if it loses too much) the mix
that harms least; pruning at ratios that are raised while the samples allow it; int8 of the pruned models.  Choices are
made on the selection samples and short timings; the finalists are timed together, longer, and looked at on the
validation samples from the fastest down, until one holds the contract.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from onnxpress.data.dataset import Dataset, Splits
from onnxpress.errors import InputProblem
from onnxpress.measure.cache import key_of
from onnxpress.measure.score import Judge, Score
from onnxpress.model.files import check_target, load, model_hash, to_bytes, write_atomic
from onnxpress.optimize import contract, training
from onnxpress.optimize.plan import Plan, new_plan, write_plan
from onnxpress.optimize.run import Run
from onnxpress.optimize.search import SEARCH_ENDS, Clock, Report, Search, allowed
from onnxpress.optimize.shelf import Candidate
from onnxpress.optimize.workshop import Workshop
from onnxpress.runtime.latency import Comparison, Effort, Ratio, compare_latency
from onnxpress.runtime.machine import Machine, this_machine
from onnxpress.train.torch_extra import require_torch

GOALS = ("latency", "size")
_FINALISTS = 5


@dataclass(frozen=True)
class Request:
    """max_drop: in the metric's unit (0.01 = one point); time_budget: seconds; goal: latency or size.

    train_budget: seconds of training on top (0: none), which needs torch.
    """

    max_drop: float = 0.01
    goal: str = "latency"
    time_budget: float = 300.0
    threads: int = 1
    seed: int = 0
    train_budget: float = 0.0

    def check(self) -> None:
        if self.goal not in GOALS:
            raise InputProblem("unknown goal", self.goal, "", f"one of {', '.join(GOALS)}")
        if not 0 <= self.max_drop < 1:
            raise InputProblem(
                "max-drop must lie between 0 and 1", "--max-drop", f"got {self.max_drop}", "0.01 is one point"
            )
        if self.time_budget < 5:
            raise InputProblem(
                "the time budget is too short", "--time-budget", f"{self.time_budget:g} s", "give at least 5s"
            )
        if self.train_budget < 0:
            raise InputProblem(
                "the training budget is negative", "--train-budget", f"{self.train_budget:g} s", "give 0, or 10m"
            )
        if self.train_budget:
            require_torch("--train-budget")


@dataclass
class Outcome:
    """What a run found.  chosen: the accepted candidate's name, or "original"; score and speedup are the final ones."""

    chosen: str
    met: bool
    reasons: list[str]
    data: bytes
    plan: Plan
    original_size: int
    score: Score | None
    speedup: Ratio | None
    final: Comparison | None
    candidates: list[Candidate]
    rejected: dict[str, list[str]]
    looks: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    interrupted: bool = False


def optimize(
    model: str | Path | ir.Model,
    data: Dataset | Splits,
    request: Request | None = None,
    output: str | Path | None = None,
    run_folder: str | Path | None = None,
    report: Report | None = None,
    machine: Machine | None = None,
) -> Outcome:
    """Optimize a model; with `output` the file is written atomically, plan.json and run.json go to the run folder.

    Raises InputProblem on bad input; nothing is written then.
    """
    request = request or Request()
    request.check()
    machine = machine or this_machine()
    path = model if isinstance(model, (str, Path)) else None
    original = load(path) if path is not None else model
    assert isinstance(original, ir.Model)
    if output is not None:
        check_target(output, *([path] if path is not None else []))
    splits = data if isinstance(data, Splits) else data.split()
    say = report or (lambda stage, fraction: None)
    run = None
    if output is not None:
        run = Run(
            run_folder or Path(output).with_suffix(".run"),
            _identity(original, splits, request, machine),
            model=str(path or ""),
            request=request.__dict__,
            machine=machine.as_dict(),
            samples={
                "calibrate": len(splits.calibrate),
                "select": len(splits.select),
                "validate": len(splits.validate),
            },
        )
    try:
        outcome = _search(original, splits, request, machine, say, run)
        if output is not None and run is not None:
            write_atomic(output, outcome.data)
            write_plan(outcome.plan, run.folder / "plan.json")
            run.set(outcome=summary(outcome))
            run.shelf.finish()
    finally:
        if run is not None:
            run.close()
    return outcome


def _search(
    original: ir.Model, splits: Splits, request: Request, machine: Machine, say: Report, run: Run | None
) -> Outcome:
    clock = Clock(request.time_budget)
    search_part = request.time_budget / (request.time_budget + request.train_budget)

    def told(stage: str, fraction: float) -> None:
        """The search's own progress, around which the training lies."""
        say(stage, fraction * search_part if fraction <= SEARCH_ENDS else 1 - (1 - fraction) * search_part)

    def taught(stage: str, fraction: float) -> None:
        say(stage, SEARCH_ENDS * search_part + fraction * (1 - search_part))

    told("measuring the original", 0.0)
    judge = Judge(original, splits.select, "selection samples")
    shelf = run.shelf if run is not None else None
    shop = Workshop(original, splits.calibrate, judge, machine, request.seed, shelf)
    search = Search(shop, request.max_drop, request.goal, clock, told, run)
    interrupted = False
    try:
        search.go()
        if request.train_budget and search.found:
            training.train(search, request.train_budget, taught)
    except KeyboardInterrupt:  # the best so far is still timed and validated; a second one ends the run
        if not search.found:
            raise
        interrupted = True
    outcome = _finals(original, splits, search, request, 4.0 if interrupted else _timing_seconds(request))
    if interrupted:
        outcome.interrupted = True
        outcome.notes.append("interrupted: the best of what had been found by then")
    return outcome


def _identity(original: ir.Model, splits: Splits, request: Request, machine: Machine) -> str:
    """Of everything that decides what a run finds."""
    parts = [s.hash for s in (splits.calibrate, splits.select, splits.validate)]
    return key_of(model_hash(original), *parts, repr(request), repr(machine))


def _timing_seconds(request: Request) -> float:
    return max(4.0, min(40.0, 0.15 * request.time_budget))


def _finals(original: ir.Model, splits: Splits, search: Search, request: Request, seconds: float) -> Outcome:
    """Time the finalists together, then look at the validation samples from the best down."""
    say, shop, found, clock = search.say, search.shop, search.found, search.clock
    say("timing the finalists", 0.75)
    rank = (lambda c: -(c.quick or 0.0)) if request.goal == "latency" else (lambda c: c.size)
    ranked = sorted((c for c in found if allowed(c, request.max_drop) and c.name != "exact"), key=rank)[:_FINALISTS]
    finalists = ranked + [c for c in found if c.name == "exact"]
    final = compare_latency(
        {"original": original, **{c.name: c.data for c in finalists}},
        shop.feeds,
        Effort(seconds=seconds, precision=0.004, threads=request.threads, seed=request.seed),
        progress=lambda done: say("timing the finalists", 0.75 + 0.15 * done),
    )
    order = sorted(
        finalists, key=(lambda c: -final.ratio(c.name).speedup) if request.goal == "latency" else (lambda c: c.size)
    )
    say("validating", 0.92)
    judge = Judge(original, splits.validate, "validation samples")
    rejected: dict[str, list[str]] = {}
    looks = 0
    outcome: Outcome | None = None
    for candidate in order:
        score = judge.score(candidate.data)
        looks += 1
        problems = contract.same_shape_behaviour(original, candidate.data, splits.validate)
        exact = candidate.name == "exact"
        goal = "size" if exact else request.goal
        verdict = contract.judge(score, final.ratio(candidate.name), request.max_drop, goal, problems)
        if verdict.accepted:
            met = not exact or _exact_meets(candidate, final, original, request)
            outcome = Outcome(
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
        outcome = Outcome(
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
        outcome.reasons = _why(outcome, request) + [f"{name} failed: {why}" for name, why in search.failed.items()]
        outcome.advice = _advice(outcome, splits, request)
    outcome.notes = outcome.notes + [f"{name} failed: {why}" for name, why in search.failed.items()]
    say("done", 1.0)
    return outcome


def _exact_meets(candidate: Candidate, final: Comparison, original: ir.Model, request: Request) -> bool:
    if request.goal == "size":
        return candidate.size < len(to_bytes(original))
    return final.ratio(candidate.name).low > 1.0


def _why(outcome: Outcome, request: Request) -> list[str]:
    reasons = [f"{name}: {'; '.join(why)}" for name, why in outcome.rejected.items()]
    lost = [c for c in outcome.candidates if not allowed(c, request.max_drop)]
    reasons += [f"{c.name}: loses {c.score.drop:.4f} on the selection samples" for c in lost]
    return reasons


def _advice(outcome: Outcome, splits: Splits, request: Request) -> list[str]:
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


def summary(outcome: Outcome) -> dict[str, object]:
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
    }

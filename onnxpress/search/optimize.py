"""optimize: tries what could be done, measures all of it on the whole file, keeps what the contract allows.

Order: exact reductions; int8 of everything, then the mix that the clock prefers, then (if it loses too much) the mix
that harms least; pruning at ratios that are raised while the samples allow it; int8 of the pruned models.  Choices are
made on the selection samples and short timings; the finalists are timed together, longer, and looked at on the
validation samples from the fastest down, until one holds the contract.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from onnxpress.data.dataset import Dataset, Splits
from onnxpress.measure.cache import cache_key
from onnxpress.measure.score import Scorer
from onnxpress.model.files import check_size, check_target, load, model_hash, write_atomic
from onnxpress.plan.plan import write_plan
from onnxpress.plan.run_record import RunRecord
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import Machine, this_machine
from onnxpress.search import candidate_training
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.finalists import OptimizeResult, finalists, summary
from onnxpress.search.request import OptimizeOptions
from onnxpress.search.search import SEARCH_ENDS, Report, Search, TimeBudget

Explore = Callable[[Search], None]
Train = Callable[[Search, float, Report], None]


def optimize(
    model: str | Path | ir.Model,
    data: Dataset | Splits,
    request: OptimizeOptions | None = None,
    output: str | Path | None = None,
    run_folder: str | Path | None = None,
    report: Report | None = None,
    machine: Machine | None = None,
    explore: Explore = Search.go,
    train: Train = candidate_training.train,
) -> OptimizeResult:
    """Optimize a model; with `output` the file is written atomically, plan.json and run.json go to the run folder.

    explore: finds candidates; train: adds trained ones, where there is a budget for it.  Raises InputProblem on bad input;
    nothing is written then.
    """
    request = request or OptimizeOptions()
    request.check()
    machine = machine or this_machine()
    path = model if isinstance(model, (str, Path)) else None
    original = load(path) if path is not None else model
    assert isinstance(original, ir.Model)
    check_size(original)
    if output is not None:
        check_target(output, *([path] if path is not None else []))
    splits = data if isinstance(data, Splits) else data.split()
    say = report or (lambda stage, fraction: None)
    run = None
    if output is not None:
        run = RunRecord(
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
        outcome = _search(original, splits, request, machine, say, run, (explore, train))
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
    original: ir.Model,
    splits: Splits,
    request: OptimizeOptions,
    machine: Machine,
    say: Report,
    run: RunRecord | None,
    ways: tuple[Explore, Train],
) -> OptimizeResult:
    clock = TimeBudget(request.time_budget)
    search_part = request.time_budget / (request.time_budget + request.train_budget)

    def told(stage: str, fraction: float) -> None:
        """The search's own progress, around which the training lies."""
        say(stage, fraction * search_part if fraction <= SEARCH_ENDS else 1 - (1 - fraction) * search_part)

    def taught(stage: str, fraction: float) -> None:
        say(stage, SEARCH_ENDS * search_part + fraction * (1 - search_part))

    told("measuring the original", 0.0)
    judge = Scorer(original, splits.select, "selection samples")
    shelf = run.shelf if run is not None else None
    shop = CandidateFactory(original, splits.calibrate, judge, machine, request.seed, shelf)
    target = _target(original, shop, request)
    search = Search(shop, request.max_drop, request.goal, clock, told, run, target=target)
    interrupted = False
    try:
        ways[0](search)
        if request.train_budget and search.found:
            ways[1](search, request.train_budget, taught)
    except KeyboardInterrupt:  # the best so far is still timed and validated; a second one ends the run
        if not search.found:
            raise
        interrupted = True
    outcome = finalists(original, splits, search, request, 4.0 if interrupted else _timing_seconds(request))
    if interrupted:
        outcome.interrupted = True
        outcome.notes.append("interrupted: the best of what had been found by then")
    return outcome


def _target(original: ir.Model, shop: CandidateFactory, request: OptimizeOptions) -> float:
    """Times the original's speed that are wanted; 0: as many as can be."""
    if not request.latency:
        return request.speedup
    seen = compare_latency({"original": original}, shop.feeds, Effort(seconds=1.0, threads=request.threads))
    return max(seen.timings[0].median / request.latency, 0.0)


def _identity(original: ir.Model, splits: Splits, request: OptimizeOptions, machine: Machine) -> str:
    """Of everything that decides what a run finds."""
    parts = [s.hash for s in (splits.calibrate, splits.select, splits.validate)]
    return cache_key(model_hash(original), *parts, repr(request), repr(machine))


def _timing_seconds(request: OptimizeOptions) -> float:
    return max(4.0, min(40.0, 0.15 * request.time_budget))

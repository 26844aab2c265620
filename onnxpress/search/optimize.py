"""optimize: candidates of all passes, measured on the whole file; the best that keeps the contract is written.

The exact rewrites are the base; int8, channels, blocks, every other pass, and int8 of what those gave work in turn, so
that each was tried before one takes long. Candidates are selected on the selection samples and by short timings; the
finalists are timed together, longer, and checked on the validation samples from the fastest down, until one keeps the
contract.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxpress.data.any_data import DataSource, as_parts
from onnxpress.data.dataset import Splits
from onnxpress.errors import InputProblem
from onnxpress.measure.cache import cache_key
from onnxpress.measure.sample_doubts import first_doubts
from onnxpress.measure.score import Scorer
from onnxpress.model.files import check_size, check_target, model_hash, write_atomic
from onnxpress.model.source import ModelSource, open_model, path_of
from onnxpress.plan.plan import write_plan
from onnxpress.plan.run_record import RunRecord
from onnxpress.progress import Progress, no_progress
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import Machine, this_machine
from onnxpress.runtime.session import sessions_with
from onnxpress.search import techniques
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.finalists import OptimizeResult, finalists, summary
from onnxpress.search.front import check_front_folder, write_front
from onnxpress.search.request import OptimizeOptions
from onnxpress.search.sample_counts import splits_within
from onnxpress.search.search import Search, TimeBudget

_LEAST_SEARCHING, _MOST_SEARCHING = 0.5, 0.8  # shares of the time budget
_VALIDATIONS = 3  # of models: the original, and about two finalists
_END_SHARE = 0.05  # of the time budget: the result is written, and profiled


@dataclass(frozen=True)
class _Judged:
    """The original, what scores candidates against it, the drop that is allowed, and the time, which runs already."""

    original: ir.Model
    scorer: Scorer
    max_drop: float
    budget: TimeBudget


def optimize(
    model: ModelSource,
    data: DataSource | Splits,
    options: OptimizeOptions | None = None,
    *,
    output: str | Path | None = None,
    run: str | Path | None = None,
    progress: Progress = no_progress,
    front: str | Path | None = None,
    **settings: Any,
) -> OptimizeResult:
    """Find the fastest (or smallest) form of a model that is measured to be as good on samples.

    model: a path, the bytes of a file, an onnx.ModelProto or an onnx_ir.Model. data: samples (a path, arrays by input
    name, an iterable or a Dataset), which are split into parts for calibration, selection and validation; or Splits.
    options: see OptimizeOptions; single options can be given by name instead, such as `max_drop=0.01`. output: the
    file to write, atomically.
    run: folder of the run record (default: beside the output, with the suffix .run), which holds plan.json and
    run.json.
    progress: called with the stage and the share that is done. front: new folder for all models on the Pareto front,
    with their plans.

    Raises InputProblem on bad input; nothing is written then.

    >>> result = onnxpress.optimize("model.onnx", "samples.npz", max_drop=0.5, time_budget=6, output="fast.onnx")
    """
    chosen = _options(options, settings)
    path = path_of(model)
    _check_targets(path, output, front)
    original = open_model(model)
    check_size(original)
    everything = as_parts(data, original)
    doubts = [] if isinstance(data, Splits) else first_doubts(original, everything.select)
    progress("measuring the original", 0.0)
    with sessions_with(chosen.sessions):
        budget = TimeBudget(chosen.time_budget)
        splits, validating, fewer = splits_within(original, everything, chosen.time_budget)
        budget.searching = _search_share(chosen, validating)
        scorer = Scorer(original, splits.select, "selection samples", chosen.quality)
        # Before there is a record: a metric that does not fit leaves nothing behind.
        judged = _Judged(original, scorer, scorer.allowed_drop(chosen.max_drop), budget)
        record = _record(original, everything, chosen, output, run, str(path or "")) if output is not None else None
        try:
            result = _search(judged, splits, chosen, progress, record)
            result.notes[:0] = doubts + fewer
            if output is not None and record is not None:
                if result.improved:
                    write_atomic(output, result.data)
                write_plan(result.plan, record.folder / "plan.json")
                record.set(outcome=summary(result))
                record.store.finish()
        finally:
            if record is not None:
                record.close()
    if front is not None:
        write_front(result, front)
    return result


def _check_targets(path: str | Path | None, output: str | Path | None, front: str | Path | None) -> None:
    if output is not None:
        check_target(output, *([path] if path is not None else []))
    if front is not None:
        check_front_folder(front)


def _options(options: OptimizeOptions | None, settings: dict[str, Any]) -> OptimizeOptions:
    known = [f.name for f in fields(OptimizeOptions)]
    strange = [name for name in settings if name not in known]
    if strange:
        raise TypeError(f"optimize() got an unexpected argument {strange[0]!r}; its options are {', '.join(known)}")
    if options is not None and not isinstance(options, OptimizeOptions):
        raise InputProblem(
            "not options of optimize", "`options`", f"got {type(options).__name__}", "give OptimizeOptions"
        )
    chosen = replace(options or OptimizeOptions(), **settings)
    chosen.check()
    return chosen


def _record(
    original: ir.Model, splits: Splits, options: OptimizeOptions, output: str | Path, run: str | Path | None, model: str
) -> RunRecord:
    """The record of a run with an output, in its folder."""
    machine = this_machine()
    parts = ("calibrate", "select", "validate")
    return RunRecord(
        run or Path(output).with_suffix(".run"),
        _identity(original, splits, options, machine),
        model=model,
        request=options.to_dict(),
        machine=machine.as_dict(),
        samples={part: len(getattr(splits, part)) for part in parts},
    )


def _search(
    judged: _Judged,
    splits: Splits,
    options: OptimizeOptions,
    progress: Progress,
    record: RunRecord | None,
) -> OptimizeResult:
    original, scorer, budget = judged.original, judged.scorer, judged.budget
    more = options.train_budget or 0.0
    search_part = options.time_budget / (options.time_budget + more)

    def search_progress(stage: str, share: float) -> None:
        """The progress of the search, in whose middle the training lies."""
        progress(stage, share * search_part if share <= budget.searching else 1 - (1 - share) * search_part)

    def train_progress(stage: str, share: float) -> None:
        progress(stage, budget.searching * search_part + share * (1 - search_part))

    store = record.store if record is not None else None
    factory = CandidateFactory(
        original, splits.calibrate, scorer, this_machine(), options.seed, store, options.time_budget,
        options.goal == "latency",
    )  # fmt: skip
    target = _target(original, factory, options)
    search = Search(factory, judged.max_drop, options.goal, budget, search_progress, record, target=target)
    interrupted = False
    try:
        techniques.explore(search, trains=options.trains)
        if more and search.found:
            techniques.train(search, more, train_progress)
    except KeyboardInterrupt:  # the best so far is still timed and validated; a second one ends the run
        if not search.found:
            raise
        interrupted = True
    result = finalists(original, splits, search, options, 4.0 if interrupted else _timing_seconds(options))
    if interrupted:
        result.interrupted = True
        result.notes.append("interrupted: the best of what had been found by then")
    return result


def _target(original: ir.Model, factory: CandidateFactory, options: OptimizeOptions) -> float:
    """The target speed-up; 0: as fast as possible."""
    if not options.latency_ms:
        return options.speedup
    seen = compare_latency({"original": original}, factory.feeds, Effort(seconds=1.0))
    return max(seen.timings[0].median * 1e3 / options.latency_ms, 0.0)


def _identity(original: ir.Model, splits: Splits, options: OptimizeOptions, machine: Machine) -> str:
    """The key of everything that decides what a run finds."""
    parts = [s.hash for s in (splits.calibrate, splits.select, splits.validate)]
    return cache_key(model_hash(original), *parts, repr(options.to_dict()), repr(machine))


def _timing_seconds(options: OptimizeOptions) -> float:
    return max(3.0, min(40.0, 0.1 * options.time_budget))


def _search_share(options: OptimizeOptions, validating: float) -> float:
    """Share of the time budget until which candidates are made.  validating: seconds of validating one model."""
    rest = _timing_seconds(options) + _VALIDATIONS * validating + _END_SHARE * options.time_budget
    return min(max(1 - rest / options.time_budget, _LEAST_SEARCHING), _MOST_SEARCHING)

"""Latency gate: models against an allowed slowdown, or one model against a stored baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.evaluate.baseline import (
    Baseline,
    check_baseline,
    file_hash,
    machine_fingerprint,
    ratio_to_baseline,
    read_baseline,
    write_baseline,
)
from onnxpress.evaluate.bench import REBUILDS, BenchConditions, BenchOptions, BenchResult, bench
from onnxpress.evaluate.slowdown import BY_REFERENCE, INTERLEAVED, SlowdownDecision, decide_slowdown
from onnxpress.model.files import check_target
from onnxpress.model.source import ModelSource, path_of
from onnxpress.runtime.latency import Effort, Ratio


@dataclass(frozen=True)
class GateOptions:
    """What to decide and to store.

    fail_slower:   additional time over the baseline at which a model fails (0.05: 5 %); None: no decision
    baseline:      file that `save_baseline` wrote in an earlier run
    force:         accept a baseline of another machine
    save_baseline: file to write this model's baseline to
    """

    fail_slower: float | None = None
    baseline: Path | None = None
    force: bool = False
    save_baseline: Path | None = None

    def check(self, models: Mapping[str, ModelSource], conditions: BenchConditions) -> None:
        """Raises InputProblem where options contradict each other or the models."""
        baseline_file = self.baseline or self.save_baseline
        if self.baseline and self.save_baseline:
            raise InputProblem(
                "`baseline` and `save_baseline` are mutually exclusive", self.save_baseline, "", "give one of them"
            )
        if self.force and not self.baseline:
            raise InputProblem(
                "`force` has no effect without `baseline`", "", "no `baseline` was given", "leave out `force`"
            )
        if baseline_file and len(models) != 1:
            raise InputProblem(
                "a baseline holds one model", baseline_file, f"{len(models)} models were given", "give one model"
            )
        if baseline_file and (len(conditions.threads) > 1 or len(conditions.batch) > 1):
            raise InputProblem(
                "a baseline has one number of threads and one batch size",
                baseline_file,
                "`threads` or `batch` is a list",
                "give one number",
            )
        if self.fail_slower is not None and not self.baseline and len(models) < 2:
            raise InputProblem(
                "`fail_slower` needs a model to compare with",
                "",
                "there is one model",
                "give the old model first, or give `baseline`",
            )
        if self.save_baseline:
            check_target(self.save_baseline, *(p for m in models.values() if (p := path_of(m)) is not None))


@dataclass(frozen=True)
class GateResult:
    """The result of `run_gate`.

    bench:          all measurements
    decisions:      one per ratio
    baseline_ratio: the model against a baseline whose file is gone
    """

    bench: BenchResult
    decisions: tuple[SlowdownDecision, ...] = ()
    baseline_ratio: Ratio | None = None

    @property
    def passed(self) -> bool:
        return all(d.passed for d in self.decisions)


def run_gate(
    models: Mapping[str, ModelSource],
    data: Dataset | None = None,
    effort: Effort | None = None,
    progress: Callable[[float], None] | None = None,
    options: BenchOptions | None = None,
    conditions: BenchConditions | None = None,
    gate: GateOptions | None = None,
) -> GateResult:
    """`bench` with decisions: see there for the arguments, and GateOptions for `gate`.

    >>> models = {"old": "model.onnx", "new": "other.onnx"}
    >>> gate = onnxpress.GateOptions(fail_slower=0.5)
    >>> result = onnxpress.run_gate(models, effort=onnxpress.Effort(seconds=0.2, rebuilds=1), gate=gate)

    Raises InputProblem.  A gate that is not met raises nothing: see GateResult.passed.
    """
    effort, options, conditions, gate = (
        effort or Effort(rebuilds=REBUILDS),
        options or BenchOptions(),
        conditions or BenchConditions(),
        gate or GateOptions(),
    )
    gate.check(models, conditions)
    known = _conditions_record(conditions, effort, data) if gate.baseline or gate.save_baseline else {}
    if gate.baseline:
        kept = read_baseline(gate.baseline)
        check_baseline(kept, gate.baseline, known, gate.force)
        return _run_against_baseline(kept, models, data, effort, progress, options, conditions, gate)
    if gate.save_baseline:
        options = replace(options, reference=True)
    found = bench(models, data=data, effort=effort, progress=progress, options=options, conditions=conditions)
    if gate.save_baseline:
        _save_baseline(found, models, known, gate.save_baseline)
    ratios = [r for point in found.all_points for r in point.ratios]
    return GateResult(found, _decisions(ratios, gate, INTERLEAVED))


def _run_against_baseline(
    kept: Baseline,
    models: Mapping[str, ModelSource],
    data: Dataset | None,
    effort: Effort,
    progress: Callable[[float], None] | None,
    options: BenchOptions,
    conditions: BenchConditions,
    gate: GateOptions,
) -> GateResult:
    old = kept.same_file()
    if old is not None:
        found = bench(
            {kept.name: old, **models},
            data=data, effort=effort, progress=progress, options=options, conditions=conditions,
        )  # fmt: skip
        return GateResult(found, _decisions(found.ratios, gate, INTERLEAVED))
    found = bench(
        models,
        data=data,
        effort=effort,
        progress=progress,
        options=replace(options, reference=True),
        conditions=conditions,
    )
    assert found.reference is not None
    ratio = ratio_to_baseline(kept, found.reference)
    return GateResult(found, _decisions([ratio], gate, BY_REFERENCE), ratio)


def _decisions(ratios: list[Ratio] | tuple[Ratio, ...], gate: GateOptions, how: str) -> tuple[SlowdownDecision, ...]:
    return () if gate.fail_slower is None else tuple(decide_slowdown(r, gate.fail_slower, how) for r in ratios)


def _conditions_record(conditions: BenchConditions, effort: Effort, data: Dataset | None) -> dict[str, Any]:
    """The conditions that must agree for the ratios of two runs to be comparable."""
    settings = conditions.settings
    return {
        "threads": list(conditions.threads or (effort.threads or 1,)),
        "batch": list(conditions.batch),
        "shapes": {name: list(shape) for name, shape in conditions.shape.items()},
        "pin": list(conditions.pin),
        "graph optimizations": settings.level,
        "spinning": settings.spinning,
        "session entries": [f"{key}={value}" for key, value in settings.config],
        "provider": settings.provider,
        "inputs": "synthetic" if data is None else data.take(8).hash,
    }


def _save_baseline(found: BenchResult, models: Mapping[str, ModelSource], known: dict[str, Any], target: Path) -> None:
    source = path_of(next(iter(models.values())))
    if source is None:
        raise InputProblem(
            "a baseline needs a model file", "", "the model is an object in memory", "save it, and give its path"
        )
    assert found.reference is not None
    path, own = source.resolve(), found.reference
    kept = Baseline(
        str(path),
        file_hash(path),
        found.timings[0].median,
        own.speedup,
        own.low,
        own.high,
        machine_fingerprint(),
        known,
    )
    write_baseline(kept, target)

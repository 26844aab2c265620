"""`bench` as a gate: models against an allowed slowdown, or one model against what was kept of an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

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
from onnxpress.evaluate.bench import REBUILDS, BenchConditions, BenchOptions, BenchResult, ModelLike, bench
from onnxpress.evaluate.slowdown import BESIDE, BY_REFERENCE, SlowdownDecision, decide_slowdown
from onnxpress.model.files import check_target
from onnxpress.runtime.latency import Effort, Ratio


@dataclass(frozen=True)
class GateOptions:
    """fail_slower: how much longer than the baseline a model may take (0.05: 5 %), None for no decision.

    baseline: a file that `save` wrote in an earlier run, force: also from another machine.
    """

    fail_slower: float | None = None
    baseline: Path | None = None
    force: bool = False
    save: Path | None = None

    def check(self, models: Mapping[str, ModelLike], conditions: BenchConditions) -> None:
        """Raises InputProblem where the parts do not go together."""
        alone = self.baseline or self.save
        if self.baseline and self.save:
            raise InputProblem("--baseline and --save-baseline are two runs", self.save, "", "give one of them")
        if self.force and not self.baseline:
            raise InputProblem("--force belongs to --baseline", "", "no --baseline was given", "leave --force out")
        if alone and len(models) != 1:
            raise InputProblem("a baseline is of one model", alone, f"there are {len(models)}", "name one MODEL")
        if alone and (len(conditions.threads) > 1 or len(conditions.batches) > 1):
            raise InputProblem(
                "a baseline is of one condition", alone, "--threads or --batch is a list", "give one number"
            )
        if self.fail_slower is not None and not self.baseline and len(models) < 2:
            raise InputProblem(
                "--fail-slower needs something to compare with",
                "",
                "there is one model",
                "name the old model first, or give --baseline",
            )
        if self.save:
            check_target(self.save, *(m for m in models.values() if not isinstance(m, ir.Model)))


@dataclass(frozen=True)
class GateResult:
    """bench: what was measured; against: the model against a baseline whose file is gone; decisions: one a ratio."""

    bench: BenchResult
    decisions: tuple[SlowdownDecision, ...] = ()
    baseline_ratio: Ratio | None = None

    @property
    def passed(self) -> bool:
        return all(d.passed for d in self.decisions)


def run_gate(
    models: Mapping[str, ModelLike],
    data: Dataset | None = None,
    effort: Effort | None = None,
    progress: Callable[[float], None] | None = None,
    ask: BenchOptions | None = None,
    conditions: BenchConditions | None = None,
    gate: GateOptions | None = None,
) -> GateResult:
    """Measure as `bench` does, then decide.  Raises InputProblem; a gate that is not met is no error but a decision."""
    effort, ask, conditions, gate = (
        effort or Effort(rebuilds=REBUILDS),
        ask or BenchOptions(),
        conditions or BenchConditions(),
        gate or GateOptions(),
    )
    gate.check(models, conditions)
    known = _conditions_record(conditions, effort, data) if gate.baseline or gate.save else {}
    if gate.baseline:
        kept = read_baseline(gate.baseline)
        check_baseline(kept, gate.baseline, known, gate.force)
        return _run_against_baseline(kept, models, data, effort, progress, ask, conditions, gate)
    if gate.save:
        ask = replace(ask, reference=True)
    found = bench(models, data, effort, progress, ask, conditions)
    if gate.save:
        _save_baseline(found, models, known, gate.save)
    ratios = [r for point in found.every for r in point.ratios]
    return GateResult(found, _decisions(ratios, gate, BESIDE))


def _run_against_baseline(
    kept: Baseline,
    models: Mapping[str, ModelLike],
    data: Dataset | None,
    effort: Effort,
    progress: Callable[[float], None] | None,
    ask: BenchOptions,
    conditions: BenchConditions,
    gate: GateOptions,
) -> GateResult:
    old = kept.same_file()
    if old is not None:
        found = bench({kept.name: old, **models}, data, effort, progress, ask, conditions)
        return GateResult(found, _decisions(found.ratios, gate, BESIDE))
    found = bench(models, data, effort, progress, replace(ask, reference=True), conditions)
    assert found.reference is not None
    ratio = ratio_to_baseline(kept, found.reference)
    return GateResult(found, _decisions([ratio], gate, BY_REFERENCE), ratio)


def _decisions(ratios: list[Ratio] | tuple[Ratio, ...], gate: GateOptions, how: str) -> tuple[SlowdownDecision, ...]:
    return () if gate.fail_slower is None else tuple(decide_slowdown(r, gate.fail_slower, how) for r in ratios)


def _conditions_record(conditions: BenchConditions, effort: Effort, data: Dataset | None) -> dict[str, Any]:
    """What must be the same for two runs' ratios to be comparable."""
    settings = conditions.settings
    return {
        "threads": list(conditions.threads or (effort.threads,)),
        "batch": list(conditions.batches),
        "shapes": {name: list(shape) for name, shape in conditions.shapes.items()},
        "pin": list(conditions.pin),
        "graph optimizations": settings.level,
        "spinning": settings.spinning,
        "session entries": [f"{key}={value}" for key, value in settings.config],
        "provider": settings.provider,
        "inputs": "synthetic" if data is None else data.take(8).hash,
    }


def _save_baseline(found: BenchResult, models: Mapping[str, ModelLike], known: dict[str, Any], target: Path) -> None:
    model = next(iter(models.values()))
    if isinstance(model, ir.Model):
        raise InputProblem(
            "a baseline is of a file", "", "the model was given as an object", "save it, and give its path"
        )
    assert found.reference is not None
    path, own = Path(model).resolve(), found.reference
    kept = Baseline(
        str(path), file_hash(path), found.timings[0].median, own.speedup, own.low, own.high, machine_fingerprint(), known
    )  # fmt: skip
    write_baseline(kept, target)

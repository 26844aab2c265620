"""distill as a function: a student, a teacher and samples become a better student, if the selection samples agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxpress.api.distillation_session import (
    DistillationOptions,
    DistillationOutcome,
    TeacherStudentPair,
    refit_closed_form,
    run_distillation,
)
from onnxpress.api.run_pass import PassResult, opened, write_checked
from onnxpress.data.any_data import DataSource, as_dataset
from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import check_size, model_hash, model_size, to_bytes
from onnxpress.model.source import ModelSource, open_model, source_name
from onnxpress.passes.distillation.distill import Source, teacher_evidence
from onnxpress.passes.pruning.allocation import plan_pruning
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.plan.exact_base import exact_base
from onnxpress.plan.plan import CALIBRATION, SPLITS, Plan, PlanStep, new_plan, take_step
from onnxpress.progress import Progress, no_progress
from onnxpress.runtime.machine import this_machine
from onnxpress.train.distillation.feature_matching import KeptChannels
from onnxpress.train.settings import TrainingSettings

if TYPE_CHECKING:
    from onnxpress.train.trainer import CurvePoint

TRAIN_SPLIT = SPLITS[3]
_POOR = 0.05  # drop of a student from which training starts from its closed form, if that is closer to the teacher


@dataclass(repr=False)
class DistillResult(PassResult):
    """start, score: on the selection samples, against the teacher; improved: whether the new weights were taken.

    curve: evaluations on the selection samples; settings: as trained (None for the closed form); best: the step kept.
    """

    start: Score | None = None
    score: Score | None = None
    improved: bool = False
    curve: list[CurvePoint] = field(default_factory=list)
    settings: TrainingSettings | None = None
    best: int = 0


@dataclass
class _Start:
    """The student before: the plan so far, its model and what the plan's model is; what a removal left (kept)."""

    original: ir.Model
    plan: Plan
    model: ir.Model
    source: Source
    notes: list[str]
    kept: KeptChannels | None = None


def distill(
    student: ModelSource | None,
    teacher: ModelSource,
    data: DataSource,
    options: DistillationOptions | None = None,
    *,
    select: DataSource | None = None,
    output: str | Path | None = None,
    plan: str | Path | None = None,
    progress: Progress = no_progress,
) -> DistillResult:
    """Train a student towards a teacher on samples; labels are not needed.

    student: None makes one from the teacher (`options.shrink`). select: samples that the weights are selected on
    (default: a fifth of the data). output: the file to write; checkpoints and the record of the run lie beside it, in
    `options.run` or a folder with the suffix .run. plan: a file for the plan. progress: called with the stage and the
    share that is done.

    >>> options = onnxpress.DistillationOptions(closed_form=True)
    >>> result = onnxpress.distill("other.onnx", "model.onnx", "samples.npz", options)

    The result is the student as it was where no better weights were found (`improved`). Raises InputProblem on bad
    input and EnvironmentProblem where training is asked for and torch is missing.
    """
    options = options or DistillationOptions()
    options.check()
    if (student is None) == (options.shrink is None):
        raise InputProblem("there must be one student", "`student`", "", "give a student, or `shrink` 0.5 to make one")
    machine, seed = this_machine(), options.settings.seed
    teacher_model = _teacher(teacher)
    samples = as_dataset(data, teacher_model)
    if select is None:
        parts = samples.split(TRAIN_SPLIT)
        learn, judged = parts.calibrate, parts.select
    else:
        learn, judged = samples, as_dataset(select, teacher_model, "select")
    begin = _begin(student, teacher, learn, options, output)
    now = evidence_for(begin.model, learn, machine, seed)
    pair = TeacherStudentPair(now, teacher_evidence(teacher_model, now), begin.source, begin.kept)
    scorer = Scorer(pair.teacher.model, judged, quality=options.quality)
    first = scorer.score(to_bytes(begin.model))
    if options.closed_form:
        made = refit_closed_form(pair, options)
    else:
        refitted = refit_closed_form(pair, options) if student is not None and first.equivalent_drop > _POOR else None
        if refitted is not None and scorer.nmse(to_bytes(refitted.model)) < first.nmse:
            pair = replace(pair, student=evidence_for(refitted.model, learn, machine, seed))
        else:
            refitted = None
        made = run_distillation(pair, options, scorer, first.equivalent_drop, _folder(options.run, output), progress)
        if refitted is not None:
            made.actions, made.notes = refitted.actions + made.actions, refitted.notes + made.notes
    result = _choose(begin, made, scorer, first)
    result.judged_by = scorer.judge.text()
    write_checked(begin.original, result, learn, output, plan)
    return result


def _teacher(model: ModelSource) -> ir.Model:
    found = open_model(model, "teacher")
    check_size(found)
    return found


def _folder(run: str | Path | None, output: str | Path | None) -> Path | None:
    if run is not None:
        return Path(run)
    return None if output is None else Path(output).with_suffix(".run")


def _begin(
    student: ModelSource | None,
    teacher: ModelSource,
    data: Dataset,
    options: DistillationOptions,
    output: str | Path | None,
) -> _Start:
    machine, seed = this_machine(), options.settings.seed
    if student is not None:
        own = opened(student, output)
        master = _teacher(teacher)
        source = Source(source_name(teacher), model_hash(master))
        return _Start(own, new_plan(own, data, seed), own, source, [])
    own = opened(teacher, output)
    part = data.take(CALIBRATION)
    base = exact_base(own, part, machine, seed)
    evidence, notes = base.evidence, base.notes
    assert options.shrink is not None
    actions = plan_pruning(evidence, PruneOptions(options.shrink))
    if not actions:
        raise InputProblem(
            "no channel group can be narrowed by this much", "`shrink`", f"got {options.shrink}", "try a larger share"
        )
    plan = base.plan.then("prune", [*actions, {"refit": "least-squares"}])
    done = take_step(plan.steps[-1], evidence)
    steps = tuple(PlanStep(s.pass_name, s.actions, CALIBRATION) for s in plan.steps)
    removal = {d["group"]: d["remove"] for d in actions}
    return _Start(
        own,
        replace(plan, steps=steps, data_hash=data.hash),
        done.model,
        Source(),
        notes + done.notes,
        lambda value: evidence.channels.kept(value, removal),
    )


def _choose(begin: _Start, made: DistillationOutcome, scorer: Scorer, first: Score) -> DistillResult:
    """The new weights where they are at least as good on the selection samples, else the student as it was."""
    second = scorer.score(to_bytes(made.model))
    better = math.isfinite(second.nmse) and (second.used(), second.nmse) <= (first.used(), first.nmse)
    notes = begin.notes + made.notes
    model, plan, score = begin.model, begin.plan, first
    if better:
        model, score = made.model, second
        plan = begin.plan.then("distill", made.actions)
    else:
        how = "worse" if second.used() > first.used() else "not better"
        notes.append(
            f"the new weights are {how} on the selection samples (drop {second.drop:+.4f}, before {first.drop:+.4f}; "
            f"error {second.nmse:.3g}, before {first.nmse:.3g}): the student stays as it was"
        )
    history = made.history
    if history is not None and history.overfitted:
        notes.append(f"it began to overfit: the weights of step {history.best_step} are kept")
    return DistillResult(
        "distill",
        model,
        plan,
        model_size(begin.original),
        model_size(model),
        notes,
        start=first,
        score=score,
        improved=better,
        curve=history.curve if history else [],
        settings=made.settings,
        best=history.best_step if history else 0,
    )

"""distill as a function: a student, a teacher and samples become a better student, if the selection samples agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxpress.api.distillation_session import (
    DistillationOutcome,
    DistillSettings,
    TeacherStudentPair,
    refit_closed_form,
    run_distillation,
)
from onnxpress.api.run_pass import PassResult, opened, write_checked
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
from onnxpress.runtime.machine import Machine, this_machine
from onnxpress.train.distillation.feature_matching import KeptChannels
from onnxpress.train.progress import Progress
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
    data: Dataset,
    wish: DistillSettings | None = None,
    *,
    select: Dataset | None = None,
    output: str | Path | None = None,
    plan_file: str | Path | None = None,
    run_folder: str | Path | None = None,
    resume: bool = False,
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> DistillResult:
    """Bring a student's answers to a teacher's on the given samples.

    student: None makes one from the teacher (wish.shrink); select: samples that choose the weights to keep (default: a
    fifth of data); run_folder: checkpoints and the record of the run (default: beside the output), which resume goes on from.
    The result is the student as it was where nothing better was found (`improved` tells).  Raises Problem.
    """
    wish = wish or DistillSettings()
    wish.check()
    if (student is None) == (wish.shrink is None):
        raise InputProblem(
            "there must be one student", "", "a student file, or --shrink to make one from the teacher",
            "give STUDENT, or --shrink 0.5",
        )  # fmt: skip
    machine = machine or this_machine()
    learn, judged = data, select
    if judged is None:
        parts = data.split(TRAIN_SPLIT)
        learn, judged = parts.calibrate, parts.select
    begin = _begin(student, teacher, learn, wish, output, machine)
    now = evidence_for(begin.model, learn, machine, wish.settings.seed)
    couple = TeacherStudentPair(now, teacher_evidence(_loaded(teacher), now), begin.source, begin.kept)
    judge = Scorer(couple.teacher.model, judged)
    first = judge.score(to_bytes(begin.model))
    if wish.closed_form:
        return _choose(begin, refit_closed_form(couple, wish), judge, first, output, plan_file, learn)
    ahead = refit_closed_form(couple, wish) if student is not None and first.drop > _POOR else None
    if ahead is not None and judge.score(to_bytes(ahead.model)).nmse < first.nmse:
        couple = replace(couple, student=evidence_for(ahead.model, learn, machine, wish.settings.seed))
    else:
        ahead = None
    made = run_distillation(couple, wish, judge, first.drop, _folder(run_folder, output), resume, progress)
    if ahead is not None:
        made.actions, made.notes = ahead.actions + made.actions, ahead.notes + made.notes
    return _choose(begin, made, judge, first, output, plan_file, learn)


def _loaded(model: ModelSource) -> ir.Model:
    found = open_model(model, "teacher")
    check_size(found)
    return found


def _folder(run_folder: str | Path | None, output: str | Path | None) -> Path | None:
    if run_folder is not None:
        return Path(run_folder)
    return None if output is None else Path(output).with_suffix(".run")


def _begin(
    student: ModelSource | None,
    teacher: ModelSource,
    data: Dataset,
    wish: DistillSettings,
    output: str | Path | None,
    machine: Machine,
) -> _Start:
    seed = wish.settings.seed
    if student is not None:
        own = opened(student, output)
        master = _loaded(teacher)
        source = Source(source_name(teacher), model_hash(master))
        return _Start(own, new_plan(own, data, seed), own, source, [])
    own = opened(teacher, output)
    part = data.take(CALIBRATION)
    base = exact_base(own, part, machine, seed)
    evidence, notes = base.evidence, base.notes
    assert wish.shrink is not None
    actions = plan_pruning(evidence, PruneOptions(wish.shrink))
    if not actions:
        raise InputProblem(
            "no channel group can be narrowed by this much", "--shrink", f"got {wish.shrink}", "try a larger share"
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


def _choose(
    begin: _Start,
    made: DistillationOutcome,
    judge: Scorer,
    first: Score,
    output: str | Path | None,
    plan_file: str | Path | None,
    data: Dataset,
) -> DistillResult:
    """The new weights where the selection samples like them at least as well, else the student as it was."""
    second = judge.score(to_bytes(made.model))
    better = math.isfinite(second.nmse) and (second.drop, second.nmse) <= (first.drop, first.nmse)
    notes = begin.notes + made.notes
    model, plan, score = begin.model, begin.plan, first
    if better:
        model, score = made.model, second
        plan = begin.plan.then("distill", made.actions)
    else:
        notes.append(
            f"the new weights are worse on the selection samples (drop {second.drop:+.4f}, before {first.drop:+.4f}):"
            " the student stays as it was"
        )
    history = made.history
    if history is not None and history.overfitted:
        notes.append(f"it began to overfit: the weights of step {history.best_step} are kept")
    result = DistillResult(
        "distill", model, plan, model_size(begin.original), model_size(model), notes, start=first, score=score,
        improved=better, curve=history.curve if history else [], settings=made.settings, best=history.best_step if history else 0,
    )  # fmt: skip
    write_checked(begin.original, result, data, output, plan_file)
    return result

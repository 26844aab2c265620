"""One student taught by one teacher: pairs matched, settings fixed, trained with evaluations on the selection samples.

`distill` drives it for a file, `training` for the students of a search.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.quality import QualityOptions
from onnxpress.measure.score import Scorer
from onnxpress.model.files import to_bytes, write_atomic
from onnxpress.passes.core.contract import Action
from onnxpress.passes.distillation.distill import CLOSED, Source, closed_form, fitted, training
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.plan.run_record import RunRecord
from onnxpress.progress import Progress, no_progress
from onnxpress.train.distillation.feature_matching import FeaturePair, KeptChannels, match_by_name, match_features
from onnxpress.train.distillation.teacher_batches import TeacherCache
from onnxpress.train.optional_torch import require_torch
from onnxpress.train.settings import TrainingSettings, settings_from_dict

if TYPE_CHECKING:
    from onnxpress.train.distillation.runner import Distillation, RunOptions
    from onnxpress.train.trainer import CurvePoint, TrainingHistory

SECONDS = 600.0  # of training where neither steps nor a budget are given
_CLOSED_SAMPLES = 128
_ENOUGH = 200  # steps: where the time does not allow them, batches are halved, down to _SMALLEST
_SMALLEST = 16
_TRIALS = 0.1  # of the steps, spent on trying learning rates
_SEEN = (
    30  # times that drawn weights must see a sample before mixed and distorted ones help more than they ask too much
)
_UNSEEN = 8  # times that trained weights see a sample at most, for which nothing is gained by changing the samples
_SETTINGS, _CHECKPOINT = "settings.json", "checkpoint.pt"


@dataclass(frozen=True)
class DistillationOptions:
    """How a student is distilled.

    settings:    of the training.
    steps:       of training; 0: as many as fit in the time budget.
    time_budget: seconds of training.
    augment:     "auto", "none", or names of augmentations, separated by commas.
    match:       pairs of values (teacher, student) whose features are compared; empty: found by name and correlation.
    shrink:      share of the channels to remove from the teacher to make the student.
    closed_form: refit the layers by least squares, without training.
    run:         folder of checkpoints and of the record (default: beside the output).
    resume:      go on from the checkpoint of an interrupted run in that folder.
    quality:     how the student is judged.
    limit:       seconds after which training ends with the best so far, whatever steps are left.
    """

    settings: TrainingSettings = field(default_factory=lambda: TrainingSettings(threads=available_cores()))
    steps: int = 0
    time_budget: float = SECONDS
    augment: str = "auto"
    match: tuple[tuple[str, str], ...] = ()
    shrink: float | None = None
    closed_form: bool = False
    run: str | Path | None = None
    resume: bool = False
    quality: QualityOptions = field(default_factory=QualityOptions)
    limit: float = math.inf

    def check(self) -> None:
        """Raises InputProblem; and EnvironmentProblem where training is asked for and torch is missing."""
        if self.steps < 0:
            raise InputProblem("the number of steps is negative", "`steps`", f"got {self.steps}", "give 1000")
        if self.time_budget <= 0:
            raise InputProblem(
                "the time budget is nothing", "`time_budget`", f"got {self.time_budget:g} s", "give 10 minutes"
            )
        self.settings.check()
        self.quality.check()
        if self.shrink is not None:
            PruneOptions(self.shrink).checked()
        if self.augment not in ("auto", "none"):
            from onnxpress.train.augment import check_augmentations

            check_augmentations([w.strip() for w in self.augment.split(",")])
        if not self.closed_form:
            require_torch("distill")


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class TeacherStudentPair:
    """student and teacher on the samples to learn from, ports under the same names; source: the teacher as a plan names
    it; kept: for a value of the teacher the channels that the student has left, where its maker knows them; cache:
    shared with other students of the teacher that learn from the same samples."""

    student: Evidence
    teacher: Evidence
    source: Source
    kept: KeptChannels | None = None
    cache: TeacherCache | None = None

    def matched(self, options: DistillationOptions) -> list[FeaturePair]:
        """Inner values that are compared: as wished, or found."""
        if options.match:
            return match_by_name(options.match, self.student, self.teacher)
        return match_features(self.student, self.teacher, self.kept)


@dataclass
class DistillationOutcome:
    """The student's model with its new weights, the decisions that make it, and how the training went."""

    model: ir.Model
    actions: list[Action]
    notes: list[str]
    history: TrainingHistory | None = None
    settings: TrainingSettings | None = None


def refit_closed_form(pair: TeacherStudentPair, options: DistillationOptions) -> DistillationOutcome:
    """In closed form: every layer with a twin by least squares, on a part of the samples."""
    action: Action = {"mode": CLOSED, "teacher": pair.source.plain(), "samples": _CLOSED_SAMPLES}
    part = pair.student.samples().take(_CLOSED_SAMPLES)
    given = None
    if options.match:
        given = match_by_name(options.match, pair.student, pair.teacher)
        action["pairs"] = [p.as_dict() for p in given]
    few = [evidence_for(e.model, part, e.machine, e.seed) for e in (pair.student, pair.teacher)]
    model, fits = closed_form(few[0], few[1], given)
    return DistillationOutcome(model, [action], [fitted(fits)])


def run_distillation(
    pair: TeacherStudentPair,
    options: DistillationOptions,
    scorer: Scorer,
    start: float = math.inf,
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> DistillationOutcome:
    """Train a student.

    start: the student's drop before. folder: of checkpoints and the record of the run (None: neither), from which
    `options.resume` goes on.
    """
    from onnxpress.train.distillation.runner import Distillation, RunOptions

    end = time.monotonic() + options.limit
    matched = pair.matched(options)
    notes = _pair_notes(matched, options)
    settings = _stored(folder) if options.resume else None
    job = Distillation(
        pair.student, pair.teacher, pair.student.samples(), settings or options.settings, matched, pair.cache
    )
    if settings is None:
        job.settings = _final_settings(job, options, scorer, progress)
        notes.append(f"loss {job.settings.loss}, inner values {job.settings.features}, rate {job.settings.lr:g}")
    watch = RunOptions(
        _evaluation(scorer, job.settings.loss == "none"),
        _progress_of(progress, scorer),
        resume=options.resume,
        initial_drop=start,
        more_time=lambda: time.monotonic() < end,
    )
    model, history = job.run(watch) if folder is None else _recorded(job, watch, pair.source, folder)
    action = training(job.settings, pair.source, matched, history.best_step)
    return DistillationOutcome(model, [action], notes, history, job.settings)


def _recorded(job: Distillation, watch: RunOptions, source: Source, folder: Path) -> tuple[ir.Model, TrainingHistory]:
    """Run with checkpoints, and a record, in the folder."""
    from onnxpress.train.trainer import read_checkpoint

    watch.checkpoint = folder / _CHECKPOINT
    if watch.resume and job.settings.mode == "end-to-end":
        read_checkpoint(watch.checkpoint, job.fingerprint)  # one that is no good is refused before anything is written
    run = RunRecord(folder, command="distill", teacher=source.plain(), settings=job.settings.as_dict())
    try:
        write_atomic(folder / _SETTINGS, (json.dumps(job.settings.as_dict(), indent=1) + "\n").encode())
        model, history = job.run(watch)
        run.set(curve=history.curve, best=history.best_step, ended=history.stop_reason)
        for left in folder.glob("checkpoint*"):
            left.unlink()
    finally:
        run.close()
    return model, history


def has_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a training run to resume."""
    return (folder / _SETTINGS).is_file() and (folder / _CHECKPOINT).is_file()


def _stored(folder: Path | None) -> TrainingSettings:
    """The settings of the run that is resumed."""
    path = None if folder is None else folder / _SETTINGS
    if path is None or not path.is_file():
        raise InputProblem("there is no run to resume", path or "", "", "run without `resume`")
    try:
        body: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputProblem("the run's settings cannot be read", path, str(error), "run without `resume`") from error
    return settings_from_dict(body)


def _final_settings(
    job: Distillation, options: DistillationOptions, scorer: Scorer, progress: Progress
) -> TrainingSettings:
    """Settings with the changes of samples, the batch, the learning rate and the loss chosen, and the steps fixed:
    budget by time of a step."""
    from onnxpress.train.augment import GENTLE
    from onnxpress.train.distillation import loss_selection
    from onnxpress.train.distillation.runner import select_augmentations

    batch = min(options.settings.batch, len(job.data))
    settings = replace(options.settings, batch=batch)
    if settings.mode == "end-to-end":
        settings = replace(settings, augment=select_augmentations(options.augment, job.data, job))
    job.settings = settings
    began = time.monotonic()
    if options.steps and settings.lr and "auto" not in (settings.loss, settings.features):
        return replace(settings, steps=options.steps)
    while (
        not options.steps
        and settings.batch >= 2 * _SMALLEST
        and (fit := job.steps_within(options.time_budget)) < _ENOUGH
    ):
        least = math.ceil(
            math.log2(_ENOUGH / fit)
        )  # half a batch takes half of the time or more: so many halvings are needed
        job.settings = settings = replace(settings, batch=max(_SMALLEST, settings.batch // 2**least))
    steps = options.steps or job.steps_within(options.time_budget)
    if not settings.from_scratch and options.augment == "auto" and steps * settings.batch < _UNSEEN * len(job.data):
        job.settings = settings = replace(settings, augment=())
        steps = options.steps or job.steps_within(options.time_budget)
    if settings.from_scratch and options.augment == "auto" and steps * settings.batch < _SEEN * len(job.data):
        gentle = tuple(n for n in settings.augment if n in GENTLE)
        job.settings = settings = replace(settings, augment=gentle)
    if not settings.lr:
        rate = job.find_learning_rate(steps, _TRIALS, progress)
        job.settings = settings = replace(settings, lr=rate)
    if settings.mode == "end-to-end":

        def drop(model: ir.Model) -> float:
            return scorer.nmse(to_bytes(model))

        job.settings = settings = loss_selection.select_loss(job, steps, drop, progress)
    left = max(options.time_budget - (time.monotonic() - began), 0.2 * options.time_budget)
    return replace(settings, steps=options.steps or job.steps_within(left))


def _pair_notes(matched: Sequence[FeaturePair], options: DistillationOptions) -> list[str]:
    if options.settings.features == "none" and options.settings.mode == "end-to-end":
        return []
    narrow = sum(p.kept is not None for p in matched)
    learned = sum(p.project for p in matched)
    if not matched:
        return ["no inner value of the student has a twin in the teacher: outputs alone are compared"]
    return [f"{len(matched)} inner values matched ({narrow} by their channels, {learned} through a learned projection)"]


def _evaluation(scorer: Scorer, labels_alone: bool) -> Callable[[ir.Model], tuple[float, float, float, float]]:
    """(drop, nmse, value, one standard error of the drop); with labels alone closeness to the teacher is no aim."""

    def evaluate(model: ir.Model) -> tuple[float, float, float, float]:
        score = scorer.score(to_bytes(model))
        doubt = 0.0 if labels_alone else (score.high - score.low) / 4
        return score.equivalent_drop, score.nmse if math.isfinite(score.nmse) else math.inf, score.value, doubt

    return evaluate


def _progress_of(progress: Progress, scorer: Scorer) -> Callable[[int, int, float, CurvePoint | None], None]:
    def report_step(step: int, steps: int, loss: float, point: CurvePoint | None) -> None:
        metric = "" if point is None else f", {scorer.metric} {point.value:.4f}"
        progress(f"loss {loss:.4f}{metric}", step / steps)

    return report_step

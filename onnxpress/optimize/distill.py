"""distill as a function: a student, a teacher and samples become a better student, if the selection samples agree."""

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

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Judge, Score
from onnxpress.model.files import load, model_hash, to_bytes, write_atomic
from onnxpress.optimize.plan import CALIBRATION, SPLITS, Plan, Step, new_plan, take_step
from onnxpress.optimize.run import Run
from onnxpress.optimize.single import ModelLike, Result, _exact, _finish, _opened
from onnxpress.passes.base import Decision
from onnxpress.passes.distill import CLOSED, Source, closed_form, fitted, teacher_evidence, training
from onnxpress.passes.prune import Wish as PruneWish
from onnxpress.passes.prune import plan_pruning
from onnxpress.runtime.machine import Machine, this_machine
from onnxpress.train.match import Kept, Pair, chosen, pairs
from onnxpress.train.settings import Settings, read_settings
from onnxpress.train.torch_extra import require_torch

if TYPE_CHECKING:
    from onnxpress.train.distillation import Distillation
    from onnxpress.train.trainer import Course, Point

TRAIN_SPLIT = SPLITS[3]
SECONDS = 600.0  # of training where neither steps nor a budget are given
_CLOSED_SAMPLES = 128
_POOR = 0.05  # drop of a student from which training starts from its closed form, if that is closer to the teacher

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Wish:
    """What a user asks for.  settings: of the training; steps 0: as many as fit in `seconds`.

    augment: auto, none, or names; match: (teacher value, student value); shrink: share of the channels to remove from
    the teacher to make the student; closed_form: no training, layers refitted one by one.
    """

    settings: Settings = field(default_factory=lambda: Settings(threads=cores()))
    steps: int = 0
    seconds: float = SECONDS
    augment: str = "auto"
    match: tuple[tuple[str, str], ...] = ()
    shrink: float | None = None
    closed_form: bool = False

    def check(self) -> None:
        """Raises InputProblem; and EnvironmentProblem where training is asked for and torch is missing."""
        if self.steps < 0:
            raise InputProblem("the number of steps is negative", "--steps", f"got {self.steps}", "try 1000")
        if self.seconds <= 0:
            raise InputProblem("the time budget is nothing", "--time-budget", f"got {self.seconds:g} s", "try 10m")
        self.settings.check()
        if self.shrink is not None:
            PruneWish(self.shrink).check()
        if self.augment not in ("auto", "none"):
            from onnxpress.train.augment import check

            check([w.strip() for w in self.augment.split(",")])
        if not self.closed_form:
            require_torch("distill")


@dataclass
class Distilled(Result):
    """start, score: on the selection samples, against the teacher; improved: whether the new weights were taken.

    curve: looks at the selection samples; settings: as trained (None for the closed form); best: the step kept.
    """

    start: Score | None = None
    score: Score | None = None
    improved: bool = False
    curve: list[Point] = field(default_factory=list)
    settings: Settings | None = None
    best: int = 0


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Start:
    """The student before: the plan so far, its model and what the plan's model is; what a removal left (kept)."""

    original: ir.Model
    plan: Plan
    model: ir.Model
    source: Source
    notes: list[str]
    kept: Kept | None = None


def distill(
    student: ModelLike | None,
    teacher: ModelLike,
    data: Dataset,
    wish: Wish | None = None,
    *,
    select: Dataset | None = None,
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    run_folder: str | Path | None = None,
    resume: bool = False,
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Bring a student's answers to a teacher's on the given samples.

    student: None makes one from the teacher (wish.shrink); select: samples that choose the weights to keep (default: a
    fifth of data); run_folder: checkpoints and the record of the run (default: beside the output), which resume goes on from.
    The result is the student as it was where nothing better was found (`improved` tells).  Raises Problem.
    """
    wish = wish or Wish()
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
    master = teacher_evidence(_loaded(teacher), now)
    judge = Judge(master.model, judged)
    first = judge.score(to_bytes(begin.model))
    if wish.closed_form:
        made = _closed(begin, now, master, wish)
        return _choose(begin, made, judge, first, output, plan_path, learn)
    ahead = _closed(begin, now, master, wish) if student is not None and first.drop > _POOR else None
    if ahead is not None and judge.score(to_bytes(ahead.model)).nmse < first.nmse:
        now = evidence_for(ahead.model, learn, machine, wish.settings.seed)
    else:
        ahead = None
    made = _trained(begin, now, master, learn, wish, judge, first.drop, _folder(run_folder, output), resume, progress)
    if ahead is not None:
        made.decisions, made.notes = ahead.decisions + made.decisions, ahead.notes + made.notes
    return _choose(begin, made, judge, first, output, plan_path, learn)


def _loaded(model: ModelLike) -> ir.Model:
    return model if isinstance(model, ir.Model) else load(model)


def _folder(run_folder: str | Path | None, output: str | Path | None) -> Path | None:
    if run_folder is not None:
        return Path(run_folder)
    return None if output is None else Path(output).with_suffix(".run")


def _begin(
    student: ModelLike | None, teacher: ModelLike, data: Dataset, wish: Wish, output: str | Path | None, machine: Machine
) -> _Start:
    seed = wish.settings.seed
    if student is not None:
        own = _opened(student, output)
        master = _loaded(teacher)
        source = Source(str(teacher) if not isinstance(teacher, ir.Model) else "in memory", model_hash(master))
        return _Start(own, new_plan(own, data, seed), own, source, [])
    own = _opened(teacher, output)
    part = data.take(CALIBRATION)
    plan, base, notes, evidence = _exact(own, part, machine, seed)
    assert wish.shrink is not None
    decisions = plan_pruning(evidence, PruneWish(wish.shrink))
    if not decisions:
        raise InputProblem(
            "no channel group can be narrowed by this much", "--shrink", f"got {wish.shrink}", "try a larger share"
        )
    plan = plan.then("prune", [*decisions, {"repair": "least-squares"}])
    done = take_step(plan.steps[-1], evidence, base)
    steps = tuple(Step(s.pass_name, s.decisions, CALIBRATION) for s in plan.steps)
    removal = {d["group"]: d["remove"] for d in decisions}
    return _Start(
        own,
        replace(plan, steps=steps, data_hash=data.hash),
        done.model,
        Source(),
        notes + done.notes,
        lambda value: evidence.channels.kept(value, removal),
    )


@dataclass
class _Made:
    model: ir.Model
    decisions: list[Decision]
    notes: list[str]
    course: Course | None = None
    settings: Settings | None = None


def _matched(begin: _Start, now: Evidence, master: Evidence, wish: Wish) -> list[Pair]:
    if wish.match:
        return chosen(wish.match, now, master)
    return pairs(now, master, begin.kept)


def _closed(begin: _Start, now: Evidence, master: Evidence, wish: Wish) -> _Made:
    decision: Decision = {"mode": CLOSED, "teacher": begin.source.plain(), "samples": _CLOSED_SAMPLES}
    part = now.samples().take(_CLOSED_SAMPLES)
    given = None
    if wish.match:
        given = chosen(wish.match, now, master)
        decision["pairs"] = [p.plain() for p in given]
    few = [evidence_for(e.model, part, e.machine, e.seed) for e in (now, master)]
    model, fits = closed_form(few[0], few[1], given)
    return _Made(model, [decision], [fitted(fits)])


def _trained(
    begin: _Start,
    now: Evidence,
    master: Evidence,
    data: Dataset,
    wish: Wish,
    judge: Judge,
    start: float,
    folder: Path | None,
    resume: bool,
    progress: Progress | None,
) -> _Made:
    from onnxpress.train.distillation import Distillation, Watch
    from onnxpress.train.trainer import read_checkpoint

    say = progress or (lambda stage, share: None)
    matched = _matched(begin, now, master, wish)
    notes = _pair_notes(matched, wish)
    settings = _stored(folder) if resume else None
    job = Distillation(now, master, data, settings or wish.settings, matched)
    if settings is None:
        job.settings = _settled(job, data, wish, say)
    watch = Watch(_look(judge, job.settings.loss == "none"), _teller(say, judge), resume=resume, start=start)
    if folder is None:
        model, course = job.run(watch)
        return _Made(model, [_decision(begin, job, matched, course)], notes, course, job.settings)
    place = folder / "checkpoint.pt"
    if resume and job.settings.mode == "end-to-end":
        read_checkpoint(place, job.mark)  # a checkpoint that is no good is refused before anything is written
    run = Run(folder, command="distill", teacher=begin.source.plain(), settings=job.settings.plain())
    try:
        write_atomic(folder / "settings.json", (json.dumps(job.settings.plain(), indent=1) + "\n").encode())
        watch.checkpoint = place
        model, course = job.run(watch)
        run.set(curve=course.curve, best=course.best, ended=course.ended)
        for left in folder.glob("checkpoint*"):
            left.unlink()
    finally:
        run.close()
    return _Made(model, [_decision(begin, job, matched, course)], notes, course, job.settings)


def _decision(begin: _Start, job: Distillation, matched: Sequence[Pair], course: Course) -> Decision:
    return training(job.settings, begin.source, matched, course.best)


def _stored(folder: Path | None) -> Settings:
    """The settings of the run that is resumed."""
    path = None if folder is None else folder / "settings.json"
    if path is None or not path.is_file():
        raise InputProblem("there is no run to resume", path or "", "", "run without --resume")
    try:
        body: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputProblem("the run's settings cannot be read", path, str(error), "run without --resume") from error
    return read_settings(body)


def _settled(job: Distillation, data: Dataset, wish: Wish, say: Progress) -> Settings:
    """Settings with the changes of samples and the learning rate chosen, and the steps fixed: budget by time of a step."""
    from onnxpress.train.distillation import choose_augment

    batch = min(wish.settings.batch, len(data))
    settings = replace(wish.settings, batch=batch)
    if settings.mode == "end-to-end":
        settings = replace(settings, augment=choose_augment(wish.augment, data, job))
    job.settings = settings
    began = time.monotonic()
    if not settings.lr:
        job.settings = settings = replace(settings, lr=job.find_rate(lambda share: say("trying learning rates", share)))
    left = max(wish.seconds - (time.monotonic() - began), 0.2 * wish.seconds)
    steps = wish.steps or max(1, int(left / max(job.step_seconds(), 1e-4)))
    return replace(settings, steps=steps)


def _pair_notes(matched: Sequence[Pair], wish: Wish) -> list[str]:
    if wish.settings.features == "none" and wish.settings.mode == "end-to-end":
        return []
    narrow = sum(p.kept is not None for p in matched)
    learned = sum(p.project for p in matched)
    if not matched:
        return ["no inner value of the student has a twin in the teacher: outputs alone are compared"]
    return [f"{len(matched)} inner values matched ({narrow} by their channels, {learned} through a learned projection)"]


def _look(judge: Judge, labels_alone: bool) -> Callable[[ir.Model], tuple[float, float, float, float]]:
    """(drop, nmse, value, one standard error of the drop); with labels alone closeness to the teacher is no aim."""

    def look(model: ir.Model) -> tuple[float, float, float, float]:
        score = judge.score(to_bytes(model))
        doubt = 0.0 if labels_alone else (score.high - score.low) / 4
        return score.drop, score.nmse if math.isfinite(score.nmse) else math.inf, score.value, doubt

    return look


def _teller(say: Progress, judge: Judge) -> Callable[[int, int, float, Point | None], None]:
    def tell(step: int, steps: int, loss: float, point: Point | None) -> None:
        metric = "" if point is None else f", {judge.metric} {point.value:.4f}"
        say(f"loss {loss:.4f}{metric}", step / steps)

    return tell


def _choose(
    begin: _Start,
    made: _Made,
    judge: Judge,
    first: Score,
    output: str | Path | None,
    plan_path: str | Path | None,
    data: Dataset,
) -> Distilled:
    """The new weights where the selection samples like them at least as well, else the student as it was."""
    second = judge.score(to_bytes(made.model))
    better = math.isfinite(second.nmse) and (second.drop, second.nmse) <= (first.drop, first.nmse)
    notes = begin.notes + made.notes
    model, plan, score = begin.model, begin.plan, first
    if better:
        model, score = made.model, second
        plan = begin.plan.then("distill", made.decisions)
    else:
        notes.append(
            f"the new weights are worse on the selection samples (drop {second.drop:+.4f}, before {first.drop:+.4f}):"
            " the student stays as it was"
        )
    course = made.course
    if course is not None and course.overfitted:
        notes.append(f"it began to overfit: the weights of step {course.best} are kept")
    done = _finish(begin.original, model, plan, notes, [], output, plan_path, data)
    return Distilled(
        done.model, done.plan, done.before, done.after, done.notes, [], first, score, better,
        course.curve if course else [], made.settings, course.best if course else 0,
    )  # fmt: skip


"""Training of candidates from random weights towards a teacher or labels, with evaluation on the selection samples.

Successive halving (Jamieson and Talwalkar 2016): all candidates are trained for a short time, then the better half, and
so on, each round from the weights of the one before.  Half of the time is that of the last round, whose students are
the result; the other rounds share the rest equally.  All trainings use the same batches, so that the teacher runs once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxpress.api.distillation_session import (
    DistillationOptions,
    TeacherStudentPair,
    available_cores,
    run_distillation,
)
from onnxpress.data.dataset import Dataset
from onnxpress.errors import EnvironmentProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import to_bytes
from onnxpress.model.structural_hash import structural_hash
from onnxpress.nas.request import SCHEDULES
from onnxpress.passes.core.contract import Action
from onnxpress.passes.distillation.distill import DISTILL, Source, teacher_evidence
from onnxpress.passes.exact.reduce import REDUCTIONS, reduce
from onnxpress.progress import Progress, sub_progress
from onnxpress.runtime.machine import Machine
from onnxpress.search.pareto import dominance_ranks
from onnxpress.train.distillation.teacher_batches import TeacherCache
from onnxpress.train.settings import TrainingSettings

if TYPE_CHECKING:
    from onnxpress.train.exec_mode import ExecMode

_EVALUATIONS = 8
_THROUGHPUT_BATCH = 64  # samples of the batch that measures the throughput
_LEARNING_RATE = 2e-3  # fixed: trials of learning rates would take too much of a short training
_LEARNING_RATE_BATCH_NORM = 6e-3  # batch normalization tolerates large steps, which short trainings need
_MIN_FRACTION = 0.2  # of its planned time, which a late training gets nevertheless
_LAST_ROUND_FRACTION = 0.5  # of the time, where there are several rounds


@dataclass(frozen=True)
class CandidateTrainer:
    """Trains candidates.

    data: training samples.
    judge: scores on the selection samples, against the teacher or by labels.
    teacher: None where only labels are used.
    machine: this machine.
    seed: of the trainings.
    cache: of the teacher's values.
    """

    data: Dataset
    judge: Scorer
    teacher: ir.Model | None
    machine: Machine
    seed: int = 0
    cache: TeacherCache = field(default_factory=TeacherCache)
    _exec_modes: dict[str, tuple[ExecMode, float]] = field(default_factory=dict)

    def train(self, model: ir.Model, seconds: float, progress: Progress) -> tuple[ir.Model, Score, list[Action]]:
        """Train a model, which must have the teacher's inputs and outputs.

        Returns the trained model, its score on the selection samples, and the decisions that repeat the training.
        """
        student = evidence_for(model, self.data, self.machine, self.seed)
        teacher = teacher_evidence(self.teacher or model, student)
        labels_only = self.teacher is None
        mode = self.fastest_exec_mode(model)[0]
        settings = TrainingSettings(
            from_scratch=True, progressive_resizing=True, features="none", loss="none" if labels_only else "mse",
            labels_weight=1.0 if labels_only else 0.0, lr=_learning_rate(model), evaluations=_EVALUATIONS,
            threads=available_cores(), seed=self.seed, precision=mode.precision, layout=mode.layout,
        )  # fmt: skip
        done = run_distillation(
            TeacherStudentPair(student, teacher, Source(), cache=self.cache),
            DistillationOptions(settings, time_budget=seconds),
            self.judge,
            progress=progress,
        )
        return done.model, self.judge.score(to_bytes(done.model)), done.actions

    def fastest_exec_mode(self, model: ir.Model) -> tuple[ExecMode, float]:
        """The fastest execution mode for training the model, and its seconds per sample without the teacher."""
        from onnxpress.train.throughput import fastest_exec_mode

        key = structural_hash(model)
        if key not in self._exec_modes:
            batches = self.data.take(_THROUGHPUT_BATCH).batches(_THROUGHPUT_BATCH)
            batch = max((b.inputs for b in batches), key=lambda b: len(next(iter(b.values()))))
            self._exec_modes[key] = fastest_exec_mode(model, batch, available_cores())
        return self._exec_modes[key]

    def repeat(self, model: ir.Model, trainings: Sequence[Action]) -> ir.Model:
        """The model after trainings that were recorded before: the same weights."""
        evidence = evidence_for(model, self.data, self.machine, self.seed, self.teacher or model)
        return DISTILL.apply(evidence, trainings).model


@dataclass
class Trainee:
    """A candidate in training.

    number: of its trial.
    model: with its current weights.
    costs: latency in seconds, and the facts to minimize.
    level: of latency; scores are compared within a level.
    score: after its last round.
    trainings: decisions that repeat its trainings.
    seconds: of its trainings.
    failed: why it has no score.
    """

    number: int
    model: ir.Model
    costs: tuple[float, ...]
    level: int = 0
    score: Score | None = None
    trainings: list[Action] = field(default_factory=list)
    seconds: float = 0.0
    failed: EnvironmentProblem | None = None


def successive_halving(
    trainer: CandidateTrainer,
    trainees: Sequence[Trainee],
    seconds: float,
    last: int,
    progress: Progress,
    by_score: bool = False,
) -> list[Trainee]:
    """Train all trainees, then the better half of them, and so on until at most `last` are left.

    The better ones are those with the best score within their level, if `by_score`, else those with the lowest rank of
    dominance in (score, costs), then by score.  Trainees whose training diverges are left out.

    Returns the trainees of the last round, the best first.  Raises EnvironmentProblem where none is left.
    """
    fractions = round_fractions(len(trainees), last)
    remaining = list(trainees)
    start = time.monotonic()
    for number, round_fraction in enumerate(fractions):
        for place, trainee in enumerate(remaining):
            fraction = round_fraction / len(remaining)
            done = sum(fractions[:number]) + place * fraction
            share = fraction * _remaining_seconds(seconds, time.monotonic() - start, done)
            name = f"round {number + 1} of {len(fractions)}, candidate {trainee.number}"
            try:
                trainee.model, trainee.score, actions = trainer.train(
                    trainee.model, share, sub_progress(progress, name, done, fraction)
                )
                trainee.trainings += actions
                trainee.seconds += share
            except EnvironmentProblem as problem:
                trainee.failed = problem
        failed = [t.failed for t in remaining if t.failed is not None]
        remaining = [t for t in remaining if t.failed is None]
        if not remaining:
            raise failed[0]
        remaining = _best_first(remaining, by_score)
        if number < len(fractions) - 1:
            remaining = remaining[: max(last, (len(remaining) + 1) // 2)]
    return remaining


def _remaining_seconds(seconds: float, used: float, done: float) -> float:
    """The total time to plan with from now on: less where trainings took longer than planned.  done: fraction done."""
    return seconds * min(1.0, max((seconds - used) / (seconds * (1 - done)), _MIN_FRACTION))


def hyperband(
    trainer: CandidateTrainer,
    trainees: Sequence[Trainee],
    seconds: float,
    last: int,
    progress: Progress,
    by_score: bool = False,
) -> list[Trainee]:
    """Hyperband (Li et al. 2018): brackets of successive halving share the time.

    The first bracket trains the most promising trainees to the end, the others start with more trainees of shorter
    trainings.

    trainees: the most promising first.
    """
    sizes = bracket_sizes(len(trainees), last)
    found: list[Trainee] = []
    begin, failed = 0, None
    for number, size in enumerate(sizes):
        fraction = 1 / len(sizes)
        bracket, begin = trainees[begin : begin + size], begin + size
        within = sub_progress(progress, f"bracket {number + 1} of {len(sizes)}", number * fraction, fraction)
        try:
            found += successive_halving(trainer, bracket, seconds * fraction, last, within, by_score)
        except EnvironmentProblem as problem:  # all trainings of this bracket diverged
            failed = problem
    if not found and failed is not None:
        raise failed
    return _best_first(found, by_score)[:last]


def bracket_sizes(trainees: int, last: int) -> list[int]:
    """Number of trainees of each bracket: twice that of the bracket before, while there are trainees."""
    sizes: list[int] = []
    while sum(sizes) < trainees:
        sizes.append(min(trainees - sum(sizes), last * 2 ** len(sizes)))
    return sizes


def round_fractions(trainees: int, last: int) -> list[float]:
    """Fraction of the time of each round, where each keeps half of the trainees until `last` are left."""
    halvings = max(0, int(np.ceil(np.log2(max(trainees, 1) / max(last, 1)))))
    return [(1 - _LAST_ROUND_FRACTION) / halvings] * halvings + [_LAST_ROUND_FRACTION] if halvings else [1.0]


def _best_first(trainees: Sequence[Trainee], by_score: bool) -> list[Trainee]:
    losses = np.array([_loss(t) for t in trainees])
    if by_score:
        rank = np.array([sum(o.level == t.level and _loss(o) < _loss(t) for o in trainees) for t in trainees])
    else:
        rank = dominance_ranks(np.array([[_loss(t), *t.costs] for t in trainees]))
    return [trainees[i] for i in np.lexsort((losses, rank))]


SCHEDULERS = dict(zip(SCHEDULES, (successive_halving, hyperband), strict=True))


def _learning_rate(model: ir.Model) -> float:
    """Learning rate of an untrained network."""
    return _LEARNING_RATE_BATCH_NORM if any(n.op_type == "BatchNormalization" for n in model.graph) else _LEARNING_RATE


def _loss(trainee: Trainee) -> float:
    """The drop against the reference model: comparable for all metrics, lower is better."""
    return trainee.score.equivalent_drop if trainee.score is not None else np.inf


def fold_for_inference(model: ir.Model, data: Dataset, machine: Machine) -> ir.Model:
    """The model with what only training needs (batch normalization) folded into the weights."""
    evidence = evidence_for(model, data, machine)
    return reduce(evidence, REDUCTIONS)[0]

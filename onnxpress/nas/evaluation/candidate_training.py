"""Candidates trained: from drawn weights towards a teacher's answers, or to the labels, and judged on the selection samples.

Many are trained a little, the better half of them on, and so forth (successive halving, Jamieson and Talwalkar 2016), each
round from the weights of the one before.  Half of the time is the last round's, whose students are the result; the others have
the same time each.  All learn by the same lessons, so the teacher is asked once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxpress.api.distillation_session import DistillSettings, TeacherStudentPair, available_cores, run_distillation
from onnxpress.data.dataset import Dataset
from onnxpress.errors import EnvironmentProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import to_bytes
from onnxpress.model.structural_hash import structural_hash
from onnxpress.nas.request import SCHEDULES
from onnxpress.nas.strategies.pareto import ranks
from onnxpress.passes.core.contract import Action
from onnxpress.passes.distillation.distill import DISTILL, Source, teacher_evidence
from onnxpress.passes.exact.reduce import REDUCTIONS, reduce
from onnxpress.runtime.machine import Machine
from onnxpress.train.distillation.teacher_batches import Memory
from onnxpress.train.settings import Settings

if TYPE_CHECKING:
    from onnxpress.train.exec_mode import Way

Tell = Callable[[str, float], None]
_LOOKS = 8
_PACED = 64  # samples of the batch that tells how fast a network trains
_RATE = 2e-3  # of weights just drawn; trying rates would cost a short training's time
_RATE_BY_BATCH = 6e-3  # where batches normalize, which makes steep steps safe; short trainings need them
_LEAST = 0.2  # of the time that was meant for it, which a training gets however late it is
_LAST = 0.5  # of the time, for the last of several rounds


@dataclass(frozen=True)
class School:
    """learn: the samples trained on; judge: on the selection samples, against the teacher or by labels; teacher: None where
    labels alone teach."""

    learn: Dataset
    judge: Scorer
    teacher: ir.Model | None
    machine: Machine
    seed: int = 0
    memory: Memory = field(default_factory=Memory)
    _paces: dict[str, tuple[Way, float]] = field(default_factory=dict)

    def train(self, model: ir.Model, seconds: float, tell: Tell) -> tuple[ir.Model, Score, list[Action]]:
        """The model after so many seconds, its score, and what was done, to be done again; the model must have the teacher's
        ports."""
        student = evidence_for(model, self.learn, self.machine, self.seed)
        teacher = teacher_evidence(self.teacher or model, student)
        alone = self.teacher is None
        way = self.pace(model)[0]
        settings = Settings(
            from_scratch=True, growing=True, features="none", loss="none" if alone else "mse", labels=1.0 if alone else 0.0,
            lr=_rate(model), looks=_LOOKS, threads=available_cores(), seed=self.seed, precision=way.precision, layout=way.layout,
        )  # fmt: skip
        done = run_distillation(
            TeacherStudentPair(student, teacher, Source(), memory=self.memory),
            DistillSettings(settings, seconds=seconds),
            self.judge,
            progress=tell,
        )
        return done.model, self.judge.score(to_bytes(done.model)), done.actions

    def pace(self, model: ir.Model) -> tuple[Way, float]:
        """In which way the model trains fastest here, and seconds a sample takes then, the teacher's part apart."""
        from onnxpress.train.throughput import fastest

        key = structural_hash(model)
        if key in self._paces:
            return self._paces[key]
        batch = max(
            (b.inputs for b in self.learn.take(_PACED).batches(_PACED)), key=lambda b: len(next(iter(b.values())))
        )
        self._paces[key] = fastest(model, batch, available_cores())
        return self._paces[key]

    def repeat(self, model: ir.Model, lessons: Sequence[Action]) -> ir.Model:
        """The model after trainings that were done before: the same weights."""
        evidence = evidence_for(model, self.learn, self.machine, self.seed, self.teacher or model)
        return DISTILL.apply(evidence, lessons).model


@dataclass
class Pupil:
    """A candidate in training.  costs: seconds of a run, and what else is an aim, which it keeps; level: of time, where scores are
    compared within one; score: after its last round; lessons: its trainings so far, which took `seconds`; failed: why it has no
    score."""

    number: int
    model: ir.Model
    costs: tuple[float, ...]
    level: int = 0
    score: Score | None = None
    lessons: list[Action] = field(default_factory=list)
    seconds: float = 0.0
    failed: EnvironmentProblem | None = None


def halving(
    school: School, pupils: Sequence[Pupil], seconds: float, last: int, tell: Tell, by_score: bool = False
) -> list[Pupil]:
    """All pupils trained, then half of them, and so on until at most `last` are left.

    The best of each round go on: by score where `by_score`, those of every level alike, else by rank of dominance in (score,
    costs) and then by score.  One whose training diverges is left out.  Returns those of the last round, the best first; raises the
    problem where none is left.
    """
    parts = rounds(len(pupils), last)
    going = list(pupils)
    start = time.monotonic()
    for number, whole in enumerate(parts):
        for place, pupil in enumerate(going):
            part = whole / len(going)
            begun = sum(parts[:number]) + place * part
            share = part * _left(seconds, time.monotonic() - start, begun)
            name = f"round {number + 1} of {len(parts)}, candidate {pupil.number}"
            try:
                pupil.model, pupil.score, lesson = school.train(pupil.model, share, _within(tell, name, begun, part))
                pupil.lessons += lesson
                pupil.seconds += share
            except EnvironmentProblem as problem:
                pupil.failed = problem
        failed = [p.failed for p in going if p.failed is not None]
        going = [p for p in going if p.failed is None]
        if not going:
            raise failed[0]
        going = _ordered(going, by_score)
        if number < len(parts) - 1:
            going = going[: max(last, (len(going) + 1) // 2)]
    return going


def _left(seconds: float, used: float, begun: float) -> float:
    """Seconds that stand for the whole from now on, where `begun` of it is done: fewer where trainings took longer than they were
    given (steps are counted before the first, on a machine that may be busy later)."""
    return seconds * min(1.0, max((seconds - used) / (seconds * (1 - begun)), _LEAST))


def hyperband(
    school: School, pupils: Sequence[Pupil], seconds: float, last: int, tell: Tell, by_score: bool = False
) -> list[Pupil]:
    """As `halving`, hedged (Li et al. 2018): whether many short trainings tell the best, or few long ones, is not known, so that
    brackets of both kinds share the time: the first trains the most promising pupils all along, the others halve more.

    pupils: the most promising first.
    """
    parts = brackets(len(pupils), last)
    found: list[Pupil] = []
    begun, failed = 0, None
    for number, size in enumerate(parts):
        part = 1 / len(parts)
        some, begun = pupils[begun : begun + size], begun + size
        within = _within(tell, f"bracket {number + 1} of {len(parts)}", number * part, part)
        try:
            found += halving(school, some, seconds * part, last, within, by_score)
        except EnvironmentProblem as problem:  # none of this bracket is left
            failed = problem
    if not found and failed is not None:
        raise failed
    return _ordered(found, by_score)[:last]


def brackets(pupils: int, last: int) -> list[int]:
    """Pupils of each bracket: twice as many as in the one before it, as far as there are."""
    sizes: list[int] = []
    while sum(sizes) < pupils:
        sizes.append(min(pupils - sum(sizes), last * 2 ** len(sizes)))
    return sizes


def rounds(pupils: int, last: int) -> list[float]:
    """The shares of the time that the rounds have, in order, when half of the pupils go on from each until `last` are left."""
    halvings = max(0, int(np.ceil(np.log2(max(pupils, 1) / max(last, 1)))))
    return [(1 - _LAST) / halvings] * halvings + [_LAST] if halvings else [1.0]


def _ordered(pupils: Sequence[Pupil], by_score: bool) -> list[Pupil]:
    """The best first."""
    losses = np.array([_loss(p) for p in pupils])
    if by_score:
        rank = np.array([sum(q.level == p.level and _loss(q) < _loss(p) for q in pupils) for p in pupils])
    else:
        rank = ranks(np.array([[_loss(p), *p.costs] for p in pupils]))
    return [pupils[i] for i in np.lexsort((losses, rank))]


SCHEDULE = dict(zip(SCHEDULES, (halving, hyperband), strict=True))


def _rate(model: ir.Model) -> float:
    """Learning rate of a network whose weights were drawn."""
    return _RATE_BY_BATCH if any(n.op_type == "BatchNormalization" for n in model.graph) else _RATE


def _within(tell: Tell, name: str, begun: float, part: float) -> Tell:
    """Progress of one training as a part of the whole."""
    return lambda stage, share: tell(f"{name}: {stage}", begun + part * share)


def _loss(pupil: Pupil) -> float:
    """The drop against the model whose ports are kept: comparable whatever the metric, lower is better."""
    return pupil.score.drop if pupil.score is not None else np.inf


def finished(model: ir.Model, data: Dataset, machine: Machine) -> ir.Model:
    """What training needed and running does not, folded: normalizations."""
    evidence = evidence_for(model, data, machine)
    return reduce(evidence, REDUCTIONS)[0]

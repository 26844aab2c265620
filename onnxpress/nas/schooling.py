"""Candidates trained: from drawn weights towards a teacher's answers, or to the labels, and judged on the selection samples.

Many are trained a little, the better half of them on, and so forth (successive halving, Jamieson and Talwalkar 2016): every
round has the same time, and goes on from the weights of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Judge, Score
from onnxpress.model.files import to_bytes
from onnxpress.nas.front import best
from onnxpress.optimize.teach import Couple, Wish, cores, taught
from onnxpress.passes.distill import Source, teacher_evidence
from onnxpress.passes.reduce import REDUCE
from onnxpress.runtime.machine import Machine
from onnxpress.train.settings import Settings

Tell = Callable[[str, float], None]
_LOOKS = 8
_RATE = 2e-3  # normalized networks stand it; trying rates would cost a short training's time


@dataclass(frozen=True)
class School:
    """learn: the samples trained on; judge: on the selection samples, against the teacher or by labels; teacher: None where
    labels alone teach."""

    learn: Dataset
    judge: Judge
    teacher: ir.Model | None
    machine: Machine
    seed: int = 0

    def train(self, model: ir.Model, seconds: float, tell: Tell) -> tuple[ir.Model, Score]:
        """The model after so many seconds, and its score; the model must have the teacher's ports."""
        student = evidence_for(model, self.learn, self.machine, self.seed)
        teacher = teacher_evidence(self.teacher or model, student)
        alone = self.teacher is None
        settings = Settings(
            from_scratch=True, features="none", loss="none" if alone else "auto", labels=1.0 if alone else 0.0,
            lr=_RATE, looks=_LOOKS, threads=cores(), seed=self.seed,
        )  # fmt: skip
        done = taught(Couple(student, teacher, Source()), Wish(settings, seconds=seconds), self.judge, progress=tell)
        return done.model, self.judge.score(to_bytes(done.model))


@dataclass
class Pupil:
    """A candidate in training.  latency: seconds, which it keeps; score: after its last round."""

    number: int
    model: ir.Model
    latency: float
    score: Score | None = None
    trained: float = 0.0


def halving(school: School, pupils: Sequence[Pupil], seconds: float, last: int, tell: Tell) -> list[Pupil]:
    """All pupils trained, then half of them, and so on until at most `last` are left; the best of each round go on, by
    rank of dominance in (score, latency).  Returns those of the last round, the best first."""
    rounds = 1 + max(0, int(np.ceil(np.log2(max(len(pupils), 1) / max(last, 1)))))
    going = list(pupils)
    for number in range(rounds):
        share = seconds / rounds / max(len(going), 1)
        for place, pupil in enumerate(going):
            begun, part = (number + place / len(going)) / rounds, 1 / rounds / len(going)
            name = f"round {number + 1} of {rounds}, candidate {pupil.number}"
            pupil.model, pupil.score = school.train(pupil.model, share, _within(tell, name, begun, part))
            pupil.trained += share
        order = best(np.array([[-_value(p), p.latency] for p in going]), len(going))
        going = [going[i] for i in order]
        if number < rounds - 1:
            going = going[: max(last, (len(going) + 1) // 2)]
    return going


def _within(tell: Tell, name: str, begun: float, part: float) -> Tell:
    """Progress of one training as a part of the whole."""
    return lambda stage, share: tell(f"{name}: {stage}", begun + part * share)


def _value(pupil: Pupil) -> float:
    return pupil.score.value if pupil.score is not None else -np.inf


def finished(model: ir.Model, data: Dataset, machine: Machine) -> ir.Model:
    """What training needed and running does not, folded: normalizations."""
    evidence = evidence_for(model, data, machine)
    decisions = [o.decision for o in REDUCE.options(model, evidence)]
    return REDUCE.apply(evidence.model, decisions, evidence).model

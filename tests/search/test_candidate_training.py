"""--train-budget: students in the loop, on a small network."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from onnxpress.data.dataset import Splits
from onnxpress.errors import EnvironmentProblem
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import to_bytes
from onnxpress.plan.candidate_store import Candidate, Stage
from onnxpress.plan.plan import apply_plan, new_plan
from onnxpress.runtime.machine import this_machine
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.candidate_training import TrainingTechnique
from onnxpress.search.finalists import OptimizeResult
from onnxpress.search.optimize import optimize
from onnxpress.search.request import OptimizeOptions
from onnxpress.search.search import Search, TimeBudget
from onnxpress.train import optional_torch
from tests import nets


def splits() -> Splits:
    model = nets.residual(width=32)
    return Splits(*(nets.samples(model, count, seed) for seed, count in enumerate((96, 48, 48))))


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(optional_torch, "has_torch", lambda: False)
    with pytest.raises(EnvironmentProblem, match="onnxpress\\[train\\]"):
        optimize(nets.residual(width=32), splits(), OptimizeOptions(train_budget=60), output=tmp_path / "o.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained() -> OptimizeResult:
    pytest.importorskip("torch")
    return optimize(nets.residual(width=32), splits(), OptimizeOptions(max_drop=0.3, time_budget=6, train_budget=12))


@pytest.mark.slow
@pytest.mark.alone
def test_students_are_trained(trained: OptimizeResult) -> None:
    names = [c.name for c in trained.candidates]
    students = [n for n in names if n.endswith(", trained") and "int8" not in n]
    assert students
    assert len(students) == len(set(students))


@pytest.mark.slow
@pytest.mark.alone
def test_the_selection_curve_is_in_the_notes(trained: OptimizeResult) -> None:
    student = next(c for c in trained.candidates if c.name.endswith(", trained") and "int8" not in c.name)
    assert any("on the selection samples" in note for note in student.notes)


@pytest.mark.slow
@pytest.mark.alone
def test_a_trained_candidate_replays_to_the_same_bytes(trained: OptimizeResult) -> None:
    student = next(c for c in trained.candidates if c.name.endswith(", trained"))
    again = apply_plan(student.plan, nets.residual(width=32), splits().calibrate)
    assert to_bytes(again.model) == student.data


@pytest.fixture
def search() -> Search:
    model = nets.residual(width=64)
    data = nets.samples(model, 300)
    factory = CandidateFactory(model, data, Scorer(model, data.take(24)), this_machine())
    made = Search(factory, 0.01, "latency", TimeBudget(60), lambda stage, share: None, None)
    made.original_seconds = 1e-4
    return made


def add(search: Search, name: str, stage: Stage, speed: float, drop: float = 0.0) -> Candidate:
    score = Score("r2", 1 - drop, 1.0, drop, drop, drop, 100)
    made = Candidate(name, name, stage, new_plan(search.factory.original, None, 0), b"", score, quick=speed)
    search.found.append(made)
    return made


@pytest.mark.unit
def test_what_loses_a_little_too_much_is_a_student(search: Search) -> None:
    search.factory.exact()
    add(search, "exact", Stage.EXACT, 1.0)
    technique = TrainingTechnique(search)
    assert technique.promise() == 0, "nothing is known"
    add(search, "lowrank of 4 units", Stage.PASS, 2.0, drop=0.02)
    first = technique.promise()
    assert 0.3 < first < math.log(2)
    add(search, "kernels of 2 units", Stage.PASS, 2.0, drop=0.5)
    assert technique.promise() == first, "it loses far too much"
    add(search, "int8", Stage.INT8, 2.5, drop=0.012)
    assert technique.promise() > first


@pytest.mark.unit
def test_levels_beyond_what_holds_are_students(search: Search) -> None:
    search.factory.exact()
    add(search, "exact", Stage.EXACT, 1.0)
    add(search, "prune 20%", Stage.PRUNING, 1.25, drop=0.001)
    add(search, "prune 40%", Stage.PRUNING, 1.6, drop=0.02)
    technique = TrainingTechnique(search)
    best = technique._best_student()
    assert best is not None and best.name in {f"prune {p}%" for p in range(21, 60)}
    technique._too_small.add("prune 21%")
    assert technique._best_student() is None or "all" in technique._best_student().name  # type: ignore[union-attr]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("seconds", "samples", "run"), [(10, 300, 1e-4), (60, 100, 1e-4), (60, 300, 1.0)], ids=["time", "samples", "speed"]
)
def test_training_needs_time_and_samples(seconds: float, samples: int, run: float) -> None:
    model = nets.residual()
    data = nets.samples(model, samples)
    factory = CandidateFactory(model, data, Scorer(model, data.take(24)), this_machine())
    search = Search(factory, 0.01, "latency", TimeBudget(seconds), lambda stage, share: None, None)
    search.original_seconds = run
    factory.exact()
    add(search, "lowrank of 4 units", Stage.PASS, 2.0, drop=0.02)
    assert TrainingTechnique(search).promise() == 0


def test_training_within_the_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that loses too much is trained, and in int8 tried as others are."""
    pytest.importorskip("torch")
    monkeypatch.setattr("onnxpress.search.candidate_training._LEAST_SECONDS", 0.5)
    model = nets.residual(width=32)
    data = nets.samples(model, 300)
    factory = CandidateFactory(model, data, Scorer(model, data.take(48)), this_machine())
    search = Search(factory, 0.2, "latency", TimeBudget(12), lambda stage, share: None, None)
    search.keep(factory.exact())
    made = search.keep(factory.shallower(1))
    made.quick = 2.0
    made.score = Score("r2", 0.7, 1.0, 0.3, 0.3, 0.3, 48)
    technique = TrainingTechnique(search)
    assert technique.promise() > 0
    next(technique.steps())
    trained = next(c for c in search.found if c.stage == Stage.TRAINING)
    assert trained.parent == made.id
    assert any("on the selection samples" in note for note in trained.notes)
    assert len(technique._left) == 2, "what it left of the drop is known now"


@pytest.mark.unit
def test_a_student_that_fails_is_not_tried_again_and_two_end_it(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.factory.exact()
    add(search, "exact", Stage.EXACT, 1.0)
    for number in range(4):
        add(search, f"lowrank of {number} units", Stage.PASS, 2.0 + number / 10, drop=0.02)
    asked: list[str] = []

    def failing(name: str, *_: object) -> Candidate:
        asked.append(name)
        raise ValueError("this operator cannot be trained")

    monkeypatch.setattr(search.factory, "trained", failing)
    technique = TrainingTechnique(search)
    assert sum(1 for _ in technique.steps()) == 2
    assert len(set(asked)) == 2
    assert technique.promise() == 0
    assert set(search.failed) == set(asked)


@pytest.mark.unit
def test_a_student_that_is_another_one_is_passed_over(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning 24 % and 25 % of the time may remove the same channels: no step may repeat itself for ever."""
    search.factory.exact()
    add(search, "exact", Stage.EXACT, 1.0)
    add(search, "prune 20%", Stage.PRUNING, 1.25, drop=0.001)
    twin = add(search, "prune 40%", Stage.PRUNING, 1.6, drop=0.001)
    same = Candidate("other", "other", Stage.PRUNING, twin.plan, b"", twin.score, quick=1.6)
    monkeypatch.setattr(search.factory, "pruned", lambda *_, **__: same)
    monkeypatch.setattr("onnxpress.search.removal.predicted_speed", lambda *_: None)
    steps = sum(1 for _ in itertools.islice(TrainingTechnique(search).steps(), 400))
    assert 0 < steps < 400

"""--train-budget: students in the loop, on a small network."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxpress.data.dataset import Splits
from onnxpress.errors import EnvironmentProblem
from onnxpress.model.files import to_bytes
from onnxpress.plan.plan import apply_plan
from onnxpress.search.candidate_training import latency_levels
from onnxpress.search.finalists import OptimizeResult
from onnxpress.search.optimize import optimize
from onnxpress.search.request import OptimizeOptions
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
    return optimize(nets.residual(width=32), splits(), OptimizeOptions(max_drop=0.3, time_budget=6, train_budget=1.5))


@pytest.mark.slow
@pytest.mark.alone
def test_students_are_trained_and_quantized(trained: OptimizeResult) -> None:
    names = [c.name for c in trained.candidates]
    students = [n for n in names if n.endswith(", trained") and "int8" not in n]
    assert students
    assert all(f"{n} + int8" in names for n in students)
    assert len(students) == len(set(students)) <= 3


@pytest.mark.slow
@pytest.mark.alone
def test_the_selection_curve_is_in_the_notes(trained: OptimizeResult) -> None:
    student = next(c for c in trained.candidates if c.name.endswith(", trained") and "int8" not in c.name)
    assert any("on the selection samples" in note for note in student.notes)


@pytest.mark.slow
@pytest.mark.alone
def test_a_trained_candidate_replays_to_the_same_bytes(trained: OptimizeResult) -> None:
    student = next(c for c in trained.candidates if c.name.endswith(", trained + int8"))
    again = apply_plan(student.plan, nets.residual(width=32), splits().calibrate)
    assert to_bytes(again.model) == student.data


def test_latency_levels_descend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are taken for multiply-accumulates here, so that the machine's other work says nothing."""
    from onnxpress.data.dataset import Dataset
    from onnxpress.measure.score import Score, Scorer
    from onnxpress.runtime.machine import this_machine
    from onnxpress.search.candidate_factory import CandidateFactory
    from onnxpress.search.search import Search, TimeBudget

    model = nets.residual(width=64)
    data: Dataset = nets.samples(model, 24)
    factory = CandidateFactory(model, data, Scorer(model, data), this_machine())
    search = Search(factory, 0.05, "latency", TimeBudget(60), lambda stage, share: None, None)
    search.keep(factory.exact())
    search.keep(factory.shallower(1))
    whole = factory.macs(search.found[0])
    monkeypatch.setattr(factory, "relative_latency", lambda name, unrepaired, chosen, seconds: unrepaired.macs / whole)
    search.found[0].quick = 1.0
    search.found[-1].score = Score("top-1", 0.94, 1.0, 0.06, 0.05, 0.07, 24)  # nearly allowed: the levers work together
    ladder = latency_levels(search)
    assert len(ladder) >= 3
    levels = [r.level for r in ladder]
    assert levels == sorted(levels, reverse=True)
    assert {len(r.students) for r in ladder} <= {1, 2, 3, 4}
    assert any(s.spec.name.startswith("1 block out, prune") for r in ladder for s in r.students)
    for latency_level in ladder:
        assert all(0.8 * latency_level.level <= s.time <= latency_level.level for s in latency_level.students)
    for student in (s for r in ladder[-2:] for s in r.students):
        made = student.spec.make()
        assert made is not None
        assert factory.macs(made) == student.spec.unrepaired.macs

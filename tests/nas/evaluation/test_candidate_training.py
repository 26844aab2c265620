"""Schedules: who trains for how long, and who goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna")

from onnxpress.errors import EnvironmentProblem
from onnxpress.nas.evaluation.candidate_training import Pupil, brackets, halving, hyperband, rounds


class Record:
    """A school whose pupils' drop is what their number says; those named fail."""

    def __init__(self, *failing: int) -> None:
        self.failing, self.seconds = failing, dict[int, float]()

    def train(self, model: Any, seconds: float, tell: Any) -> tuple[Any, Any, list[Any]]:
        number = int(model)
        if number in self.failing:
            raise EnvironmentProblem("training diverged")
        self.seconds[number] = self.seconds.get(number, 0.0) + seconds
        tell("loss", 1.0)
        return model, SimpleNamespace(drop=abs(number - 5) / 10), [{"seconds": seconds}]


def pupils(count: int) -> list[Pupil]:
    return [Pupil(n, n, (1.0,)) for n in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "last"), [(8, 2), (1, 1), (6, 1), (3, 5), (7, 3)])
@pytest.mark.parametrize("schedule", [halving, hyperband])
def test_all_of_the_time_is_shared_and_progress_rises(schedule: Any, count: int, last: int) -> None:
    school, told = Record(), list[float]()
    left = schedule(school, pupils(count), 100.0, last, lambda stage, share: told.append(share), True)
    assert sum(school.seconds.values()) == pytest.approx(100.0)
    assert len(left) == min(last, count)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    for pupil in left:
        assert pupil.seconds == pytest.approx(school.seconds[pupil.number])


def test_halving_keeps_the_best_and_gives_them_half_of_the_time() -> None:
    school = Record()
    assert [p.number for p in halving(school, pupils(8), 80.0, 1, lambda stage, share: None, True)] == [5]  # type: ignore[arg-type]
    assert school.seconds[5] > 40.0
    assert rounds(8, 1) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0.5])
    assert rounds(2, 2) == [1.0]


def test_hyperband_trains_the_most_promising_all_along() -> None:
    school = Record()
    found = hyperband(school, pupils(7), 90.0, 1, lambda stage, share: None, True)  # type: ignore[arg-type]
    assert brackets(7, 1) == [1, 2, 4]
    assert school.seconds[0] == pytest.approx(30.0), "the first bracket's only one"
    assert [p.number for p in found] == [5]


@pytest.mark.parametrize("schedule", [halving, hyperband])
def test_those_that_diverge_are_left_out(schedule: Any) -> None:
    assert [p.number for p in schedule(Record(5), pupils(8), 10.0, 1, lambda stage, share: None, True)] == [4]
    with pytest.raises(EnvironmentProblem, match="diverged"):
        schedule(Record(*range(8)), pupils(8), 10.0, 1, lambda stage, share: None, True)


def test_of_every_level_of_time_the_best_goes_on() -> None:
    some = [Pupil(n, n, (1.0,), level=n < 4) for n in range(8)]  # type: ignore[arg-type]
    left = halving(Record(), some, 100.0, 2, lambda stage, share: None, by_score=True)
    assert {p.number for p in left} == {5, 3}


def test_late_trainings_leave_the_others_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these takes twice its time: what is left is shared by those still to come, so that the whole ends nearly in time."""
    now = [0.0]
    monkeypatch.setattr("onnxpress.nas.evaluation.candidate_training.time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Record):
        def train(self, model: Any, seconds: float, tell: Any) -> tuple[Any, Any, list[Any]]:
            now[0] += 2 * seconds
            return super().train(model, seconds, tell)

    halving(Slow(), pupils(4), 100.0, 1, lambda stage, share: None, True)
    assert 100.0 <= now[0] < 130.0

"""Schedules: who trains for how long, and who goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna")

from onnxpress.errors import EnvironmentProblem
from onnxpress.nas.evaluation.candidate_training import (
    Trainee,
    bracket_sizes,
    hyperband,
    round_fractions,
    successive_halving,
)


class Record:
    """A trainer whose trainees' drop is what their number says; those named fail."""

    def __init__(self, *failing: int) -> None:
        self.failing, self.seconds = failing, dict[int, float]()

    def train(self, model: Any, seconds: float, tell: Any) -> tuple[Any, Any, list[Any]]:
        number = int(model)
        if number in self.failing:
            raise EnvironmentProblem("training diverged")
        self.seconds[number] = self.seconds.get(number, 0.0) + seconds
        tell("loss", 1.0)
        return model, SimpleNamespace(drop=abs(number - 5) / 10), [{"seconds": seconds}]


def trainees(count: int) -> list[Trainee]:
    return [Trainee(n, n, (1.0,)) for n in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "last"), [(8, 2), (1, 1), (6, 1), (3, 5), (7, 3)])
@pytest.mark.parametrize("schedule", [successive_halving, hyperband])
def test_all_of_the_time_is_shared_and_progress_rises(schedule: Any, count: int, last: int) -> None:
    trainer, told = Record(), list[float]()
    left = schedule(trainer, trainees(count), 100.0, last, lambda stage, share: told.append(share), True)
    assert sum(trainer.seconds.values()) == pytest.approx(100.0)
    assert len(left) == min(last, count)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    for trainee in left:
        assert trainee.seconds == pytest.approx(trainer.seconds[trainee.number])


def test_halving_keeps_the_best_and_gives_them_half_of_the_time() -> None:
    trainer = Record()
    assert [p.number for p in successive_halving(trainer, trainees(8), 80.0, 1, lambda stage, share: None, True)] == [5]  # type: ignore[arg-type]
    assert trainer.seconds[5] > 40.0
    assert round_fractions(8, 1) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0.5])
    assert round_fractions(2, 2) == [1.0]


def test_hyperband_trains_the_most_promising_all_along() -> None:
    trainer = Record()
    found = hyperband(trainer, trainees(7), 90.0, 1, lambda stage, share: None, True)  # type: ignore[arg-type]
    assert bracket_sizes(7, 1) == [1, 2, 4]
    assert trainer.seconds[0] == pytest.approx(30.0), "the first bracket's only one"
    assert [p.number for p in found] == [5]


@pytest.mark.parametrize("schedule", [successive_halving, hyperband])
def test_those_that_diverge_are_left_out(schedule: Any) -> None:
    assert [p.number for p in schedule(Record(5), trainees(8), 10.0, 1, lambda stage, share: None, True)] == [4]
    with pytest.raises(EnvironmentProblem, match="diverged"):
        schedule(Record(*range(8)), trainees(8), 10.0, 1, lambda stage, share: None, True)


def test_of_every_level_of_time_the_best_goes_on() -> None:
    some = [Trainee(n, n, (1.0,), level=n < 4) for n in range(8)]  # type: ignore[arg-type]
    left = successive_halving(Record(), some, 100.0, 2, lambda stage, share: None, by_score=True)
    assert {p.number for p in left} == {5, 3}


def test_late_trainings_leave_the_others_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these takes twice its time: what is left is shared by those still to come, so that the whole ends nearly in time."""
    now = [0.0]
    monkeypatch.setattr("onnxpress.nas.evaluation.candidate_training.time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Record):
        def train(self, model: Any, seconds: float, tell: Any) -> tuple[Any, Any, list[Any]]:
            now[0] += 2 * seconds
            return super().train(model, seconds, tell)

    successive_halving(Slow(), trainees(4), 100.0, 1, lambda stage, share: None, True)
    assert 100.0 <= now[0] < 130.0

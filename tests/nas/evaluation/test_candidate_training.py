"""Schedules of training: time and selection of the trainees."""

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
from onnxpress.progress import no_progress

pytestmark = pytest.mark.unit


class Record:
    """A trainer that gives a drop by the trainee's number; the named trainees diverge."""

    def __init__(self, *failing: int) -> None:
        self.failing, self.seconds = failing, dict[int, float]()

    def train(self, model: Any, seconds: float, progress: Any) -> tuple[Any, Any, list[Any]]:
        number = int(model)
        if number in self.failing:
            raise EnvironmentProblem("training diverged")
        self.seconds[number] = self.seconds.get(number, 0.0) + seconds
        progress("loss", 1.0)
        return model, SimpleNamespace(equivalent_drop=abs(number - 5) / 10), [{"seconds": seconds}]


def trainees(count: int) -> list[Trainee]:
    return [Trainee(n, n, (1.0,)) for n in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "last"), [(8, 2), (1, 1), (6, 1), (3, 5), (7, 3)])
@pytest.mark.parametrize("schedule", [successive_halving, hyperband])
def test_the_whole_time_is_used_and_progress_increases(schedule: Any, count: int, last: int) -> None:
    trainer, fractions = Record(), list[float]()
    left = schedule(trainer, trainees(count), 100.0, last, lambda stage, fraction: fractions.append(fraction), True)
    assert sum(trainer.seconds.values()) == pytest.approx(100.0, rel=1e-3)
    assert len(left) == min(last, count)
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    for trainee in left:
        assert trainee.seconds == pytest.approx(trainer.seconds[trainee.number])


def test_successive_halving_gives_half_of_the_time_to_the_last_round() -> None:
    trainer = Record()
    assert [p.number for p in successive_halving(trainer, trainees(8), 80.0, 1, no_progress, True)] == [5]  # type: ignore[arg-type]
    assert trainer.seconds[5] > 40.0
    assert round_fractions(8, 1) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0.5])
    assert round_fractions(2, 2) == [1.0]


def test_hyperband_trains_the_first_bracket_to_the_end() -> None:
    trainer = Record()
    found = hyperband(trainer, trainees(7), 90.0, 1, no_progress, True)  # type: ignore[arg-type]
    assert bracket_sizes(7, 1) == [1, 2, 4]
    assert trainer.seconds[0] == pytest.approx(30.0), "the first bracket's only one"
    assert [p.number for p in found] == [5]


@pytest.mark.parametrize("schedule", [successive_halving, hyperband])
def test_diverged_trainees_are_left_out(schedule: Any) -> None:
    assert [p.number for p in schedule(Record(5), trainees(8), 10.0, 1, no_progress, True)] == [4]
    with pytest.raises(EnvironmentProblem, match="diverged"):
        schedule(Record(*range(8)), trainees(8), 10.0, 1, no_progress, True)


def test_the_best_of_each_level_is_kept() -> None:
    some = [Trainee(n, n, (1.0,), level=n < 4) for n in range(8)]  # type: ignore[arg-type]
    left = successive_halving(Record(), some, 100.0, 2, no_progress, by_score=True)
    assert {p.number for p in left} == {5, 3}


def test_late_trainings_shorten_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that take twice their time: later ones get less, so that the whole ends nearly in time."""
    now = [0.0]
    monkeypatch.setattr("onnxpress.nas.evaluation.candidate_training.time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Record):
        def train(self, model: Any, seconds: float, progress: Any) -> tuple[Any, Any, list[Any]]:
            now[0] += 2 * seconds
            return super().train(model, seconds, progress)

    successive_halving(Slow(), trainees(4), 100.0, 1, no_progress, True)
    assert 100.0 <= now[0] < 130.0

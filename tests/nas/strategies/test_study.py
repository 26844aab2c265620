"""Studies: strategies against random search, continued studies, duplicates and failed trials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna")

from onnxpress.errors import InputProblem
from onnxpress.nas.strategies.study import Study
from onnxpress.nas.strategies.surrogate import Surrogate, hypervolume

LAND = Surrogate(0, edges=10)


def build(trial: Any, land: Surrogate = LAND) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
    accuracy, time = land.ask(trial)
    return json.dumps(trial.params, sort_keys=True), lambda: (accuracy, time, 0.0, {})


def reached(strategy: str, seed: int, trials: int) -> float:
    study, land = Study(None, "s", strategy, seed, population=20), Surrogate(seed)
    study.run(lambda trial: build(trial, land), trials)
    return hypervolume([(e.quality, e.latency) for e in study.results()])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["evolution", "nsga2", "tpe"])
def test_strategies_beat_random_search(strategy: str) -> None:
    """At equal evaluations, over 20 landscapes: the 95 % interval of the paired difference lies above nothing."""
    gains = np.array([reached(strategy, s, 200) - reached("random", s, 200) for s in range(20)])
    assert gains.mean() - 2.09 * gains.std(ddof=1) / np.sqrt(len(gains)) > 0


def test_evolution_beats_random_search_on_a_few_landscapes() -> None:
    assert np.mean([reached("evolution", s, 160) - reached("random", s, 160) for s in range(4)]) > 0


def test_a_continued_study_draws_the_same(tmp_path: Path) -> None:
    whole = Study(tmp_path / "whole.db", "s", "evolution", 3, population=6)
    whole.run(build, 20)
    for stop in (9, 20):
        part = Study(tmp_path / "part.db", "s", "evolution", 3, population=6)
        part.run(build, stop)
    assert [e.choices for e in part.results()] == [e.choices for e in whole.results()]


def test_a_study_begins_with_given_choices(tmp_path: Path) -> None:
    """In a new study only; unknown parameters are ignored, missing ones are drawn."""
    before = Study(None, "s", "evolution", 3, population=6)
    before.run(build, 12)
    known = [e.choices for e in before.results()[7:9]]
    first = next(iter(known[0]))
    part = {k: v for k, v in known[1].items() if k != first} | {"stranger": 3}
    study = Study(tmp_path / "s.db", "s", "evolution", 0, population=6)
    study.begin_with([known[0], part])
    study.run(build, 5)
    tried = [e.choices for e in study.results()]
    assert tried[0] == known[0]
    assert {k: v for k, v in tried[1].items() if k != first} == {k: v for k, v in part.items() if k != "stranger"}
    study.begin_with(known)
    study.run(build, 6)
    assert len(study.results()) == 6
    assert study.results()[5].choices != known[0]


def test_a_network_built_twice_is_measured_once(tmp_path: Path) -> None:
    measured = []

    def two(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        key = str(trial.suggest_int("x", 0, 9) // 5)

        def measure() -> tuple[float, float, float, dict[str, Any]]:
            measured.append(key)
            return float(key), 1.0, 0.0, {"key": key}

        return key, measure

    study = Study(tmp_path / "s.db", "s", "random", 0)
    study.run(two, 12)
    assert sorted(measured) == ["0", "1"]
    duplicates = [e for e in study.results() if e.duplicate_of is not None]
    assert len(duplicates) == 10
    assert all(e.facts["key"] == study.results()[e.duplicate_of].facts["key"] for e in duplicates)


def test_evolution_avoids_violations() -> None:
    def limited(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        accuracy, time = LAND.ask(trial)
        return json.dumps(trial.params, sort_keys=True), lambda: (accuracy, time, max(0.0, time / 0.2 - 1), {})

    study = Study(None, "s", "evolution", 0, population=16)
    study.run(limited, 120)
    kept = [e.violation == 0 for e in study.results()]
    assert sum(kept[-40:]) > sum(kept[:40])


def test_choices_that_build_no_network_are_pruned() -> None:
    def picky(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        if trial.suggest_int("x", 0, 9) < 5:
            raise InputProblem("this one is no network")
        return str(trial.number), lambda: (1.0, 1.0, 0.0, {})

    study = Study(None, "s", "random", 0)
    study.run(picky, 20)
    assert 0 < len(study.results()) < 20

    def never(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        raise InputProblem("none is a network")

    with pytest.raises(InputProblem, match="none is a network"):
        Study(None, "s", "random", 0).run(never, 5)

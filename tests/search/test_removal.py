"""Levels of removal, on made-up speeds and drops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from onnxpress.measure.score import Score, Scorer
from onnxpress.plan.candidate_store import Candidate, Stage
from onnxpress.plan.plan import new_plan
from onnxpress.runtime.machine import this_machine
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.removal import (
    BlockRemoval,
    RemovalKind,
    RemovalTechnique,
    block_kind,
    correction,
    expectation,
    probability,
)
from onnxpress.search.scheduling import UNKNOWN
from onnxpress.search.search import Search, TimeBudget
from tests import nets

pytestmark = pytest.mark.unit

ALLOWED = 0.01


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    """A search that keeps candidates without timing them."""
    model = nets.residual()
    data = nets.samples(model, 8)
    factory = CandidateFactory(model, data, Scorer(model, data), this_machine())
    found = Search(factory, ALLOWED, "latency", TimeBudget(60), lambda stage, share: None, None)
    monkeypatch.setattr(found, "keep", lambda candidate, predicted=None: found.found.append(candidate))
    found.found.append(candidate(found, "exact", Stage.EXACT, 1.0, 0.0))
    return found


def candidate(search: Search, name: str, stage: Stage, speed: float, drop: float) -> Candidate:
    plan = new_plan(search.factory.original, None, 0)
    if stage != Stage.EXACT:
        plan = plan.then("prune", ({"name": name},), 1)
    return Candidate(name, name, stage, plan, b"", Score("r2", 1 - drop, 1.0, drop, drop, drop, 100), quick=speed)


def kind_of(
    search: Search, speed: Callable[[int], float], drop: Callable[[int], float], name: str = "prune"
) -> RemovalKind:
    """A kind with a made-up speed-up and drop at each level of 1 to 99 percent."""

    def make(level: int) -> tuple[Candidate, None]:
        return candidate(search, f"{name} {level}", Stage.PRUNING, speed(level), drop(level)), None

    return RemovalKind(
        range(1, 100), lambda level: f"{name} {level}" if level else "", make, lambda v: -math.log(1 - v / 100), 20
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_best_level_that_holds_is_found(search: Search, seed: int) -> None:
    """Within 2 % of the fastest, in a few of the 99 evaluations that looking at each would take."""
    rng = np.random.default_rng(seed)
    share, power = rng.uniform(0.3, 1.0), rng.uniform(1.0, 4.0)
    limit = rng.uniform(0.1, 0.8)  # of the channels, that the drop allows

    def speed(level: int) -> float:
        return float(1 / (1 - share * level / 100))

    def drop(level: int) -> float:
        return float(ALLOWED * (level / 100 / limit) ** power)

    kinds = [kind_of(search, speed, drop)]
    technique = RemovalTechnique(search, lambda: kinds)
    steps = sum(1 for _ in technique.steps())
    best = max(c.quick or 0.0 for c in search.found if c.score.drop <= ALLOWED)
    assert steps <= 16
    assert best >= 0.98 * speed(int(100 * limit + 1e-9))
    assert technique.promise() == 0


def test_without_a_measurement_the_first_level_is_next(search: Search) -> None:
    kinds = [kind_of(search, lambda v: 2.0, lambda v: 0.0)]
    technique = RemovalTechnique(search, lambda: kinds)
    assert technique.promise() == UNKNOWN
    next(technique.steps())
    assert search.found[-1].name == "prune 20"


def test_what_is_no_gain_ends_soon(search: Search) -> None:
    """Where channels make nothing faster, more of them promise less and less."""
    kinds = [kind_of(search, lambda v: 1.0, lambda v: 0.0)]
    technique = RemovalTechnique(search, lambda: kinds)
    promised = [technique.promise() for _ in technique.steps()]
    assert len(promised) <= 7
    assert promised[1:] == sorted(promised[1:], reverse=True)
    assert technique.promise() == 0


def test_an_alike_kind_tells_what_to_expect(search: Search) -> None:
    inner = kind_of(search, lambda v: 1 / (1 - v / 100), lambda v: 0.0)
    assert expectation(search, inner) is None
    search.found.append(inner.make(50)[0])  # type: ignore[index]
    other = kind_of(search, lambda v: 1.0, lambda v: 0.0, "all")
    expected = expectation(search, other, inner)
    assert expected is not None
    assert expected.worth(math.log(2)) == pytest.approx(math.log(2))
    assert expected.known == pytest.approx(other.depth(51)), "the next level is no step into the unknown"


def test_the_chance_to_hold_falls_with_the_drop() -> None:
    assert probability(1.0) == 0.5
    assert probability(0.1) > 0.95
    assert probability(5.0) < 0.05


def test_the_next_block_is_tried_however_much_it_adds(search: Search) -> None:
    """Steps cannot be smaller; and what one sample used up may be luck."""
    kind = block_kind(search, 3)
    out = candidate(search, kind.name(1), Stage.BLOCKS, 1.35, ALLOWED)
    out.score = replace(out.score, agreement=1.0, samples=100)  # one of them is all that may be lost
    search.found.append(out)
    expected = expectation(search, kind)
    assert expected is not None
    assert expected.known == pytest.approx(kind.depth(2))
    assert expected.used(kind.depth(1)) == pytest.approx(0.5)


def test_far_beyond_what_is_known_less_is_expected(search: Search) -> None:
    kind = kind_of(search, lambda v: 1 / (1 - v / 100), lambda v: 0.0)
    search.found.append(kind.make(5)[0])  # type: ignore[index]
    expected = expectation(search, kind)
    assert expected is not None
    gains = [expected.gain(kind.depth(v), 0.0) for v in (20, 40, 90)]
    assert gains[0] > 0 and gains[2] < gains[1]


def test_blocks_promise_something_before_their_order_is_known(search: Search) -> None:
    shallow = BlockRemoval(search, kind_of(search, lambda v: 1.0, lambda v: 0.0))
    assert shallow.promise() == UNKNOWN
    assert shallow.promise_behind() == 0, "no block was taken out"
    search.factory.store.set_meta("order of blocks", {"order": [{"block": str(i)} for i in range(10)], "whole": True})
    out = candidate(search, block_kind(search, 10).name(2), Stage.BLOCKS, 1.5, 0.0)
    search.found.append(out)
    assert shallow.promise() > 0
    search.found.append(candidate(search, "prune 20%", Stage.PRUNING, 1.2, 0.0))
    assert [k.name(20) for k in shallow._channels_behind()] == [
        "2 blocks out, prune 20%",
        "2 blocks out, prune 20% all",
    ]


def test_predicted_speeds_are_corrected_by_measured_ones() -> None:
    assert correction([]) == 1.0
    assert correction([(2.0, 2.0**0.5)]) == pytest.approx(0.5)
    assert correction([(4.0, 2.0), (2.0, 2.0), (1.01, 3.0)]) == pytest.approx(0.75)
    assert correction([(2.0, 0.5)]) == 0.2

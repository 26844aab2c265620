"""Replacements in the search: speeds that are tried, what is promised, and candidates whose plans repeat them."""

from __future__ import annotations

import math

import pytest

from onnxpress.measure.score import Scorer
from onnxpress.model.files import to_bytes
from onnxpress.plan.candidate_store import Candidate, Stage
from onnxpress.plan.plan import apply_plan
from onnxpress.runtime.machine import this_machine
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.replacements import technique as module
from onnxpress.search.replacements.technique import ReplacementTechnique
from onnxpress.search.scheduling import UNKNOWN
from onnxpress.search.search import Search, TimeBudget
from tests import nets


def search_for(max_drop: float, seconds: float = 60.0) -> Search:
    model = nets.residual(width=64)
    data = nets.samples(model, 96)
    scorer = Scorer(model, nets.samples(model, 48, 1))
    factory = CandidateFactory(model, data, scorer, this_machine(), 0, None, seconds)
    return Search(factory, max_drop, "latency", TimeBudget(seconds), lambda stage, share: None, None)


@pytest.mark.slow
@pytest.mark.alone
def test_candidates_are_faster_one_after_the_other_and_their_plans_repeat_them() -> None:
    search = search_for(max_drop=0.9, seconds=240.0)
    assert search.make_base()
    parts = ReplacementTechnique(search)
    assert parts.promise() == UNKNOWN
    steps = parts.steps()
    next(steps)
    assert parts.promise() > 0
    for _ in range(2):
        next(steps)
    made = [c for c in search.found if c.stage == Stage.REPLACEMENTS]
    assert len(made) == 2
    for candidate in made:
        assert (
            to_bytes(apply_plan(candidate.plan, search.factory.original, search.factory.learn).model) == candidate.data
        )
        assert candidate.notes


@pytest.mark.unit
@pytest.mark.parametrize("largest_allowed", [1.3, 1.7, 2.6])
def test_the_largest_speed_that_is_allowed_is_found(largest_allowed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more speed loses more, and a search for int8 found nothing."""
    search = search_for(max_drop=0.9)
    tried: list[float] = []
    plan, score = search.factory.exact_plan, search.factory.scorer.score(search.factory.original)

    class Made:
        base, largest = 1.05, 4.0

        def candidate(self, name: str, speedup: float) -> Candidate:
            tried.append(speedup)
            return Candidate(name, name, Stage.REPLACEMENTS, plan, b"", score, quick=speedup)

    monkeypatch.setattr(module, "allowed", lambda candidate, drop: candidate.quick <= largest_allowed)
    monkeypatch.setattr(module, "_surveyed", lambda search: Made())
    parts = ReplacementTechnique(search)
    for _ in parts.steps():
        assert parts.promise() >= 0
    held = max(speed for speed in tried if speed <= largest_allowed)
    assert held <= largest_allowed < 1.12 * held
    assert len(tried) <= 9
    assert parts.promise() == 0.0


@pytest.mark.unit
def test_a_target_is_tried_first() -> None:
    search = search_for(max_drop=0.9)
    search.target = 2.0
    parts = ReplacementTechnique(search)
    assert parts._next_speedup() == 2.0
    parts._tried.add(2.0)
    parts._refused = 2.0
    assert parts._next_speedup() == pytest.approx(math.sqrt(2.0))

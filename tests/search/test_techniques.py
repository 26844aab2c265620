"""What techniques expect of each other, on made-up candidates; combinations of proposals."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from onnxpress.measure.score import Score, Scorer
from onnxpress.passes.core.contract import Proposal, Saving
from onnxpress.plan.candidate_store import Candidate, Stage
from onnxpress.plan.plan import new_plan
from onnxpress.runtime.machine import this_machine
from onnxpress.search import techniques
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.scheduling import Technique
from onnxpress.search.search import Search, TimeBudget, uses_little
from tests import nets

pytestmark = pytest.mark.unit


@pytest.fixture
def search() -> Search:
    model = nets.residual()
    data = nets.samples(model, 8)
    factory = CandidateFactory(model, data, Scorer(model, data), this_machine())
    return Search(factory, 0.01, "latency", TimeBudget(60), lambda stage, share: None, None, chosen=frozenset({"n"}))


def add(search: Search, name: str, stage: Stage, speed: float, drop: float = 0.0, parent: str = "") -> Candidate:
    score = Score("r2", 1 - drop, 1.0, drop, drop, drop, 100)
    made = Candidate(name, name, stage, new_plan(search.factory.original, None, 0), b"", score, quick=speed)
    made.parent = parent
    search.found.append(made)
    return made


def test_int8_of_others_is_asked_for_where_int8_holds(search: Search) -> None:
    add(search, "exact", Stage.EXACT, 1.0)
    add(search, "int8", Stage.INT8, 1.5, drop=0.02)
    add(search, "prune", Stage.PRUNING, 2.0)
    assert techniques._int8_promise(search) == 0, "int8 loses too much"
    add(search, "int8 tuned", Stage.INT8, 1.4, drop=0.001)
    assert techniques._int8_promise(search) == pytest.approx(math.log(1.4))
    search.attempted.add("prune")
    assert techniques._int8_promise(search) == 0, "it was tried"


def test_candidates_with_drop_to_spare_get_an_int8_form_too(search: Search) -> None:
    """Validation may refuse the fastest, which uses nearly all of the drop."""
    add(search, "exact", Stage.EXACT, 1.0)
    add(search, "int8", Stage.INT8, 1.3)
    near = add(search, "prune 42%", Stage.PRUNING, 2.7, drop=0.009)
    spare = add(search, "prune 20%", Stage.PRUNING, 1.5, drop=0.002)
    search.attempted.add(near.id)
    assert not uses_little(near, 0.01) and uses_little(spare, 0.01)
    assert techniques._without_int8(search) == [spare]


def test_a_step_that_takes_too_long_is_stopped_and_said(search: Search) -> None:
    """The time is looked at inside of a step, in whatever it is a part of."""

    def steps() -> Iterator[None]:
        while True:
            search.attempt("a part of it", lambda: search.factory.scorer.score(search.factory.original))
        yield

    done = search.step(Technique("endless", steps), 0.2)
    assert not done.more and done.stopped
    assert list(search.failed) == ["endless"]
    assert "increase `time_budget`" in search.failed["endless"]
    assert search.attempt("afterwards", lambda: 1) == 1


def test_better_recipes_promise_what_int8_would_give_if_it_held(search: Search) -> None:
    add(search, "exact", Stage.EXACT, 1.0)
    assert techniques._refined_promise(search) == techniques.UNKNOWN
    add(search, "int8", Stage.INT8, 2.0, drop=0.05)
    assert techniques._refined_promise(search) == pytest.approx(math.log(2.0))
    add(search, "int8 careful", Stage.INT8, 2.1)
    assert techniques._refined_promise(search) < techniques.LITTLE


def test_proposals_are_combined_without_overlaps_by_the_least_loss_for_the_work() -> None:
    def offer(unit: str, loss: float, macs: float, *touches: str) -> Proposal:
        return Proposal(unit, {"unit": unit, "macs": macs}, frozenset(touches), Saving(macs, 0.0), loss)

    cheap, dear, other = offer("a", 0.01, 100), offer("a", 0.05, 120), offer("b", 0.02, 50, "a")
    assert techniques.combine([dear, cheap, other, offer("c", 0.2, 900)], 0.1) == [cheap]
    assert [p.unit for p in techniques.combine([cheap, offer("c", 0.05, 90)], 0.1)] == ["a", "c"]


@pytest.mark.parametrize("factor", [0.3, 3.0, 40.0])
@pytest.mark.parametrize("power", [0.7, 1.0, 1.5])
def test_totals_of_predicted_losses_approach_what_is_allowed(factor: float, power: float) -> None:
    """Whatever the factor by which predictions are wrong; the used share of the drop grows with some power of it."""
    tried: list[tuple[float, float]] = []
    while len(tried) < 5 and (total := techniques.next_total(tried)) > 0:
        tried.append((total, (factor * total / 0.05) ** power))
    best = max(used for _, used in tried if used <= 1)
    assert best > 0.4
    assert len({total for total, _ in tried}) == len(tried)

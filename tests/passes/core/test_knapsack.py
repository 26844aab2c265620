"""The multiple-choice knapsack against an exhaustive search."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.passes.core.knapsack import multiple_choice_knapsack

pytestmark = pytest.mark.unit

NUMBERS = st.floats(0, 10, allow_nan=False).map(lambda v: round(v, 2))
SETS = st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(SETS, st.floats(0.5, 30))
def test_no_choice_within_the_budget_has_a_smaller_loss(sets: list[list[tuple[float, float]]], budget: float) -> None:
    losses, costs = ([[o[i] for o in options] for options in sets] for i in (0, 1))
    found = multiple_choice_knapsack(losses, costs, budget)
    every = [
        (sum(h[i] for h, i in zip(losses, choice, strict=True)), sum(c[i] for c, i in zip(costs, choice, strict=True)))
        for choice in product(*(range(len(o)) for o in sets))
    ]
    within = [loss for loss, cost in every if cost <= budget]
    if found is None:
        assert not within
        return
    loss, cost = (sum(v[i] for v, i in zip(values, found, strict=True)) for values in (losses, costs))
    assert cost <= budget * (1 + 1e-5) + 1e-6
    assert loss <= min(within) + 1e-3


def test_no_sets_give_no_choice() -> None:
    assert multiple_choice_knapsack([], [], 1.0) == []
    assert multiple_choice_knapsack([[0.0, 1.0]], [[5.0, 4.0]], 3.0) is None
    assert multiple_choice_knapsack([[0.0, 1.0]], [[5.0, 4.0]], 4.5) == [1]
    assert multiple_choice_knapsack([[0.0, 1.0], [0.0, 1.0]], [[5.0, 4.0], [9.0, 3.0]], 7.0) == [1, 1], (
        "a budget of just the cheapest"
    )
    assert multiple_choice_knapsack([[0.0, 1.0]], [[5.0, 4.0]], 5.0) == [0]

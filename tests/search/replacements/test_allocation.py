"""Allocation: loss increases that do not add up, and savings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.search.replacements.allocation import ReplacementAllocator
from onnxpress.search.replacements.forms import Replacement
from onnxpress.search.replacements.survey import PlaceOption


def some(name: str) -> Replacement:
    return Replacement(name, "prune", ())


def places(saved: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]) -> list[list[PlaceOption]]:
    return [
        [
            PlaceOption(None),
            *(PlaceOption(some(f"{i}.{k}"), s, h) for k, (s, h) in enumerate(zip(row, alone, strict=True))),
        ]
        for i, (row, alone) in enumerate(zip(saved, losses, strict=True))
    ]


def test_replacements_that_are_worse_together_are_not_combined() -> None:
    """Alone, the first two have the lowest loss increases; together they have the highest."""
    options = places([[1.0], [1.0], [1.0], [1.0]], [[0.01], [0.01], [0.02], [0.03]])

    def loss(replaced: Sequence[Replacement]) -> float:
        names = {r.name for r in replaced}
        return 1.0 if {"0.0", "1.0"} <= names else 0.03 * len(names)

    allocator = ReplacementAllocator(options, loss)
    first = allocator.allocate(2.0, lambda: False)
    assert first is not None
    assert first.loss_increase == 1.0, "the first knapsack combines them"
    found = allocator.allocate(2.0, lambda: True)
    assert found is not None
    assert found.saved >= 2.0
    assert found.loss_increase == pytest.approx(0.06)


def test_invalid_combinations_are_avoided() -> None:
    options = places([[1.0], [1.0], [1.0]], [[0.01], [0.01], [0.5]])
    found = ReplacementAllocator(
        options, lambda rs: math.inf if {"0.0", "1.0"} <= {r.name for r in rs} else 0.1
    ).allocate(2.0, lambda: True)
    assert found is not None
    assert math.isfinite(found.loss_increase)


def test_impossible_savings_give_none() -> None:
    allocator = ReplacementAllocator(places([[1.0]], [[0.1]]), lambda rs: 0.1)
    assert allocator.max_saved == 1.0
    assert allocator.allocate(1.5, lambda: True) is None


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_the_saving_is_reached_and_more_tries_are_not_worse(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    options = places(rng.uniform(0, 1, (count, 2)).tolist(), rng.uniform(0, 1, (count, 2)).tolist())
    pairs = rng.uniform(0, 1, (count, count))

    def loss(replaced: Sequence[Replacement]) -> float:
        at = [int(r.name.split(".")[0]) for r in replaced]
        return float(sum(pairs[i, j] for i in at for j in at))

    allocator = ReplacementAllocator(options, loss, seed)
    saving = 0.5 * allocator.max_saved
    plain, searched = allocator.allocate(saving, lambda: False), allocator.allocate(saving, lambda: True)
    assert plain is not None
    assert searched is not None
    assert searched.saved >= saving - 1e-6
    assert searched.loss_increase <= plain.loss_increase
    known = allocator.measurements
    again = allocator.allocate(saving, lambda: False)
    assert again is not None
    assert allocator.measurements <= known + 1, "measurements are kept"

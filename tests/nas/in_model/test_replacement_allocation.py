"""Packing: harms that do not add up, and what can be saved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.nas.in_model.replacement_allocation import ReplacementAllocator
from onnxpress.nas.in_model.replacement_survey import PlaceOption
from onnxpress.nas.in_model.replacements import Replacement


def some(name: str) -> Replacement:
    return Replacement(name, "prune", ())


def places(saved: Sequence[Sequence[float]], harms: Sequence[Sequence[float]]) -> list[list[PlaceOption]]:
    return [
        [
            PlaceOption(None),
            *(PlaceOption(some(f"{i}.{k}"), s, h) for k, (s, h) in enumerate(zip(row, alone, strict=True))),
        ]
        for i, (row, alone) in enumerate(zip(saved, harms, strict=True))
    ]


def test_two_that_hurt_the_same_function_are_not_taken_together() -> None:
    """Alone, the first two are the least harmful; together they ruin the model."""
    choices = places([[1.0], [1.0], [1.0], [1.0]], [[0.01], [0.01], [0.02], [0.03]])

    def harm(replaced: Sequence[Replacement]) -> float:
        names = {r.name for r in replaced}
        return 1.0 if {"0.0", "1.0"} <= names else 0.03 * len(names)

    packer = ReplacementAllocator(choices, harm)
    first = packer.allocate(2.0, lambda: False)
    assert first is not None
    assert first.harm == 1.0, "the plain knapsack falls into the trap"
    found = packer.allocate(2.0, lambda: True)
    assert found is not None
    assert found.saved >= 2.0
    assert found.harm == pytest.approx(0.06)


def test_what_does_not_go_together_is_passed_over() -> None:
    choices = places([[1.0], [1.0], [1.0]], [[0.01], [0.01], [0.5]])
    found = ReplacementAllocator(
        choices, lambda rs: math.inf if {"0.0", "1.0"} <= {r.name for r in rs} else 0.1
    ).allocate(2.0, lambda: True)
    assert found is not None
    assert math.isfinite(found.harm)


def test_what_cannot_be_saved_is_no_packing() -> None:
    packer = ReplacementAllocator(places([[1.0]], [[0.1]]), lambda rs: 0.1)
    assert packer.most == 1.0
    assert packer.allocate(1.5, lambda: True) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_the_wish_is_kept_and_search_never_loses_to_the_first_try(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    choices = places(rng.uniform(0, 1, (count, 2)).tolist(), rng.uniform(0, 1, (count, 2)).tolist())
    pairs = rng.uniform(0, 1, (count, count))

    def harm(replaced: Sequence[Replacement]) -> float:
        at = [int(r.name.split(".")[0]) for r in replaced]
        return float(sum(pairs[i, j] for i in at for j in at))

    packer = ReplacementAllocator(choices, harm, seed)
    wish = 0.5 * packer.most
    plain, searched = packer.allocate(wish, lambda: False), packer.allocate(wish, lambda: True)
    assert plain is not None
    assert searched is not None
    assert searched.saved >= wish - 1e-6
    assert searched.harm <= plain.harm
    known = packer.measurements
    again = packer.allocate(wish, lambda: False)
    assert again is not None
    assert packer.measurements <= known + 1, "what was measured is not measured again"

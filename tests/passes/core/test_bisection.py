"""Bisection finds every threshold without evaluating the lower end."""

from __future__ import annotations

import pytest

from onnxpress.passes.core.bisection import largest_allowed

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("size", [0, 1, 2, 7, 16])
def test_every_threshold_is_found_in_few_evaluations(size: int) -> None:
    for threshold in range(size + 1):
        evaluated: list[int] = []

        def allowed(value: int, threshold: int = threshold, evaluated: list[int] = evaluated) -> bool:
            evaluated.append(value)
            return value <= threshold

        assert largest_allowed(0, size, allowed) == threshold
        assert 0 not in evaluated
        assert len(evaluated) <= size.bit_length()


def test_the_search_ends_with_the_tries() -> None:
    evaluated: list[int] = []
    found = largest_allowed(-1, 99, lambda value: evaluated.append(value) or value <= 70, tries=3)
    assert len(evaluated) == 3
    assert found == max(v for v in evaluated if v <= 70) < 70

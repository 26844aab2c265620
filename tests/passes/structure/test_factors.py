"""Factorization of weights: inputs that are multiples of each other have a singular second moment."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.passes.structure.factors import _singular_values

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_singular_values_of_a_second_moment_that_rounding_made_indefinite(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    weight, direction = rng.normal(size=shape), rng.normal(size=shape[1])
    moment = np.outer(direction, direction)
    noisy = moment - 1e-9 * np.eye(len(moment))
    vectors, values = _singular_values(weight, noisy)
    wanted = float(np.sum((weight @ direction) ** 2))
    assert values[0] == pytest.approx(wanted, rel=1e-6)
    assert np.all(values[1:] <= 1e-6 * wanted)
    assert abs(vectors[:, 0] @ (weight @ direction)) == pytest.approx(np.sqrt(wanted), rel=1e-6)

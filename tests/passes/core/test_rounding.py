"""Rounding with error feedback where the inputs hardly vary."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.measure.gram import Moments
from onnxpress.passes.core.rounding import cross_validated_damping, gptq_error_feedback, integer_grid

pytestmark = pytest.mark.unit


def test_inputs_that_are_constant_but_for_rounding_errors_are_rounded() -> None:
    """Their moments about the mean are rounding errors, and no positive definite matrix."""
    rng = np.random.default_rng(0)
    halves = []
    for _ in range(2):
        half = Moments.empty(12, 0)
        half.add(1e4 + 1e-9 * rng.standard_normal((8, 12)))
        halves.append(half)
    moments = halves[0] + halves[1]
    moments.parts = (halves[0], halves[1])
    gram = moments.centred()[0]
    assert np.linalg.eigvalsh(gram).min() < 0
    weights = rng.standard_normal((6, 12))
    cross_validated_damping(moments, weights, centre=True)
    quantize = integer_grid(np.abs(weights).max(axis=1) / 127, np.full(6, 127.0))
    found = gptq_error_feedback(weights, gram, quantize)
    assert np.abs(found - weights).max() < 0.5 * np.abs(weights).max()

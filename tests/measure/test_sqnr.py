"""Signal-to-quantization-noise ratio: known values, its two forms, and no noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxpress.measure.sqnr import sqnr, sqnr_db

pytestmark = pytest.mark.unit


def test_a_hundredth_of_the_power_is_20_db() -> None:
    values = np.full(10, 2.0, np.float32)
    assert sqnr_db(4.0, 0.04) == pytest.approx(20)
    assert sqnr(values, values + 0.2) == pytest.approx(20, abs=1e-4)


def test_no_noise_is_infinite_and_a_floor_keeps_it_finite() -> None:
    values = np.arange(4, dtype=np.float32)
    assert math.isinf(sqnr(values, values))
    assert sqnr_db(1.0, 0.0, floor=1e-6) == pytest.approx(60)
    assert sqnr_db(0.0, 1.0) < -1000

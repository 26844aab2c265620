"""The hypervolume by which strategies are compared."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from onnxpress.nas.strategies.surrogate import hypervolume

pytestmark = pytest.mark.unit


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(0.5, 0.5)]) == pytest.approx(0.25)
    assert hypervolume([(0.5, 0.5), (0.25, 0.25), (0.4, 0.6)]) == pytest.approx(0.25 + 0.25 * 0.25)
    assert hypervolume([]) == 0

"""Latency of models measured alternately, and the intervals of ratios."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.runtime import latency
from onnxpress.runtime.builtin_models import matmul_model
from onnxpress.runtime.latency import Effort, compare_latency
from tests import nets


@pytest.mark.alone
def test_latency_distinguishes_a_larger_model() -> None:
    small, large = nets.residual(width=16, blocks=1), nets.residual(width=64, blocks=3)
    feeds = [b.inputs for b in nets.samples(small, 2).batches(1)]
    found = compare_latency({"small": small, "same": small, "large": large}, feeds, Effort(seconds=1.5, precision=0.02))
    assert found.ratio("large").verdict == "slower"
    assert found.ratio("large").high < 0.7
    assert 0.9 < found.ratio("same").speedup < 1.1
    assert found.timing("small").low <= found.timing("small").median <= found.timing("small").high


@pytest.mark.alone
def test_a_slow_model_gets_few_rounds_and_a_wide_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rounds of this model would take several times the allowed time."""
    monkeypatch.setattr(latency, "_OVERTIME", 0.02)
    data, feeds = matmul_model(768), [{"x": np.ones((768, 768), np.float32)}]
    found = compare_latency({"a": data, "b": data}, feeds, Effort(seconds=0.02))
    assert found.timings[0].rounds == 3
    ratio = found.ratios[0]
    assert ratio.low < ratio.speedup < ratio.high < np.inf

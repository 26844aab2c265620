"""Inferences per second with several callers."""

from __future__ import annotations

import pytest

from onnxpress.model.files import to_bytes
from onnxpress.runtime import throughput
from tests import nets


@pytest.mark.alone
def test_throughput_counts_all_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_SLICE", 0.03)
    small, large = (to_bytes(nets.residual(width=w, blocks=2)) for w in (8, 40))
    feeds = [b.inputs for b in nets.samples(nets.residual(width=8, blocks=1), 4).batches(2)]
    rates, ratios = throughput.throughput({"s": small, "l": large}, feeds, seconds=0.3, callers=2, batch=2)
    assert rates[0].low <= rates[0].per_second <= rates[0].high
    assert rates[0].callers == 2
    assert ratios[0].speedup < 0.8

"""Samples that losses are measured on: many of a small model, few of a large one."""

from __future__ import annotations

import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.passes.core import loss_samples as module
from onnxpress.passes.core.loss_samples import loss_samples
from tests import nets

pytestmark = pytest.mark.unit


def test_large_models_are_measured_on_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = evidence_for(nets.residual(), None)
    assert loss_samples(evidence) == 96
    monkeypatch.setattr(module, "_MACS", 1e6)
    assert loss_samples(evidence) == 16

"""Predicted losses of proposals correlate with measured ones, on a trained model and its own samples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from onnxpress.data.dataset import open_dataset
from onnxpress.data.shipped import calibration_folder
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Scorer
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.passes.core.contract import proposals
from onnxpress.passes.registry import find_pass
from onnxpress.plan.exact_base import exact_base
from onnxpress.runtime.machine import this_machine

# The least rank correlation of predicted and measured losses, by pass.
EXPECTED = {
    "prune": 0.7,
    "lowrank": 0.7,
    "kernels": 0.7,
    "quantize": 0.5,
    "share": 0.7,
    "weights": 0.7,
    "half": 0.7,
    "sparsify": 0.5,
}
MOST = 24  # proposals that are measured


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    folder = calibration_folder() / "digits"
    model = load(folder / "digits.onnx")
    data = open_dataset(folder / "train.npz", signature(model)).take(64)
    return exact_base(model, data, this_machine()).evidence


@pytest.fixture(scope="module")
def scorer(evidence: Evidence) -> Scorer:
    return Scorer(evidence.model, evidence.samples())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("prune", "quantize") else pytest.mark.slow) for n in EXPECTED]
)
def test_predicted_and_measured_losses_correlate(name: str, evidence: Evidence, scorer: Scorer) -> None:
    offers = proposals(find_pass(name), evidence)
    assert len(offers) >= 4
    chosen = offers[:: -(-len(offers) // MOST)]
    unrefitted = [] if name in ("quantize", "half") else [{"refit": "none"}]
    measured = [scorer.score(find_pass(name).apply(evidence, [p.action, *unrefitted]).model).nmse for p in chosen]
    assert np.isfinite(measured).all()
    found = scipy.stats.spearmanr([p.loss for p in chosen], measured).statistic
    assert found >= EXPECTED[name], f"{name}: rank correlation {found:.2f} of {len(chosen)}"

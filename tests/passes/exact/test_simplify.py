"""Simplification: the pass reports when onnxsim was not used or changed the outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model import edit
from onnxpress.model.counts import macs
from onnxpress.model.files import to_bytes, weight_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.signature import signature
from onnxpress.passes.core.contract import proposals, refusals
from onnxpress.passes.exact.simplify import SIMPLIFY
from tests import nets
from tests.passes.exact.helpers import assert_same

pytestmark = pytest.mark.unit


def test_simplify_says_when_onnxsim_was_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.passes.exact.simplify.onnxsim", lambda data: "crash: killed by signal 11")
    model = nets.residual()
    evidence = evidence_for(model, None)
    done = SIMPLIFY.apply(evidence, [{"tool": "onnxsim"}])
    assert "killed by signal 11" in done.notes[0]
    assert_same(model, done.model)


def test_simplify_refuses_a_result_that_answers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr("onnxpress.passes.exact.simplify.onnxsim", lambda data: to_bytes(nets.residual(seed=9)))
    model = nets.residual()
    done = SIMPLIFY.apply(evidence_for(model, None), [{"tool": "onnxsim"}])
    assert "changed the answers" in done.notes[0]
    assert_same(model, done.model)


def test_simplify_proposes_what_it_finds_in_this_model() -> None:
    """Batch normalization of one model, nothing in another; the saving is what the proposal alone saves."""
    plain, norm = (evidence_for(nets.residual(norm=n), None) for n in (False, True))
    assert not [p for p in proposals(SIMPLIFY, plain) if p.action == {"fold": "batchnorm"}]
    (fold,) = (p for p in proposals(SIMPLIFY, norm) if p.action == {"fold": "batchnorm"})
    names = {n.name for n in norm.model.graph if n.op_type == "BatchNormalization"}
    assert names and names < fold.touches
    done = SIMPLIFY.apply(norm, [fold.action]).model
    assert fold.saving.weight_bytes == weight_bytes(norm.model) - weight_bytes(done) > 0
    assert fold.saving.macs == 0


def test_simplify_predicts_the_work_of_channels_without_effect() -> None:
    model = canonical(nets.mobile(width=32))
    gemm = next(n for n in model.graph if n.op_type == "Gemm")
    edit.set_constant(gemm.inputs[1], np.zeros(gemm.inputs[1].shape.numpy(), np.float32))
    evidence = evidence_for(model, None)
    (idle,) = (p for p in proposals(SIMPLIFY, evidence) if p.action == {"remove": "idle"})
    before, after = (
        sum(macs(e.model, e.trace).values())
        for e in (evidence, evidence_for(SIMPLIFY.apply(evidence, [idle.action]).model, None))
    )
    assert idle.saving.macs == before - after > 0


def test_simplify_refuses_the_clean_up_where_onnxsim_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.passes.exact.simplify.onnxsim", lambda data: "crash: killed by signal 11")
    (refused,) = refusals(SIMPLIFY, evidence_for(nets.residual(), None))
    assert refused.unit == "graph" and "killed by signal 11" in refused.reason


def test_names_of_free_sizes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxsim names those anew which the model's Reshapes tell it something about (every GPT-2 of one exporter)."""
    model = nets.residual()
    renamed = model.clone()
    renamed.graph.inputs[0].shape = ir.Shape(["unk__0", *list(renamed.graph.inputs[0].shape or ())[1:]])
    monkeypatch.setattr("onnxpress.passes.exact.simplify.onnxsim", lambda data: to_bytes(renamed))
    evidence = evidence_for(model, None)
    done = SIMPLIFY.apply(evidence, [{"tool": "onnxsim"}])
    assert not done.notes
    assert signature(done.model) == signature(model)

"""Simplification: the pass reports when onnxsim was not used or changed the outputs."""

from __future__ import annotations

import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model.files import to_bytes
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

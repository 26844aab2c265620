"""Values of exact results: rounding passes, anything else is found and the rewrite left out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model import edit, read
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.exact import simplify as module
from onnxpress.plan.exact_base import EXACT, exact_step
from onnxpress.plan.same_values import different_values
from tests import nets

pytestmark = pytest.mark.unit


def scaled(model: ir.Model, factor: float) -> ir.Model:
    """A copy whose last layer has other weights."""
    clone = canonical(model)
    node = [n for n in clone.graph if n.op_type == "Gemm"][-1]
    edit.set_constant(node.inputs[1], np.asarray(read.constant(node.inputs[1])) * np.float32(factor))
    return clone


@pytest.mark.parametrize(("factor", "found"), [(1.0, False), (1 + 1e-5, False), (1.01, True), (0.0, True)])
def test_what_is_more_than_rounding_is_a_difference(factor: float, found: bool) -> None:
    model = nets.residual(width=16, blocks=1)
    assert bool(different_values(model, scaled(model, factor), nets.samples(model, 4))) == found


def test_a_difference_that_shows_at_another_batch_size_only_is_found() -> None:
    """The first sample of a batch is returned for all of them: with one sample nothing differs."""
    model = nets.mlp()
    wrong = canonical(model)
    data = nets.samples(model, 4)
    source = wrong.graph.inputs[0]
    first = next(iter(wrong.graph))
    index = edit.add_constant(wrong, np.array([0], np.int64), "index")
    one = edit.insert_before(wrong, first, "Gather", [source, index], "one", {"axis": 0})
    zero = edit.add_constant(wrong, np.zeros((), np.float32), "zero")
    nothing = edit.insert_before(wrong, first, "Mul", [source, zero], "nothing")
    first.replace_input_with(0, edit.insert_before(wrong, first, "Add", [one, nothing], "repeated"))
    assert not different_values(model, canonical(model), data)
    assert "values of the output" in different_values(model, wrong, data)


def test_a_rewrite_that_changes_values_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.residual(width=16, blocks=1)
    monkeypatch.setattr(module, "reduce", lambda evidence, actions: (scaled(evidence.model, 2.0), ["wrong"]))
    start = evidence_for(model, nets.samples(model, 4), original=model)
    step, done = exact_step(start)
    assert step.actions == EXACT[:1]
    assert "values of the output" in done.notes[0] and "left out" in done.notes[0]
    assert not different_values(model, done.model, nets.samples(model, 4))


def test_without_anything_wrong_all_rewrites_are_used() -> None:
    model = nets.residual(norm=True)
    step, done = exact_step(evidence_for(model, None, original=model))
    assert step.actions == EXACT
    assert not any("left out" in n for n in done.notes)

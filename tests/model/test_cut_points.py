"""Cut points of a model, and the sections between them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model import submodels
from onnxpress.model.counts import macs
from onnxpress.model.cut_points import sections
from onnxpress.runtime.session import open_session, run, tap
from tests import nets

pytestmark = pytest.mark.unit

NETS = {
    "residual": lambda: nets.residual(width=8, blocks=3),
    "mobile": lambda: nets.mobile(width=16),
    "mlp": nets.mlp,
    "pre-norm": lambda: nets.transformer(post=False),
    "post-norm": lambda: nets.transformer(post=True),
}


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_sections_hold_all_macs_once(build: object) -> None:
    assert callable(build)
    model: ir.Model = build()
    evidence = evidence_for(model, nets.samples(model, 2))
    found = sections(evidence.model, evidence.trace)
    assert len(found) >= 2
    assert sum(s.macs for s in found) == sum(macs(evidence.model, evidence.trace).values())
    names = [n for s in found for n in s.nodes]
    assert len(names) == len(set(names))
    assert [s.source for s in found[1:]] == [s.output for s in found[:-1]]


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_sections_compute_the_same_as_the_model(build: object) -> None:
    """Each section, fed the model's value at its source, computes the model's value at its output."""
    assert callable(build)
    model: ir.Model = build()
    evidence = evidence_for(model, nets.samples(model, 2))
    found = sections(evidence.model, evidence.trace)
    names = [s.output for s in found]
    inner = run(tap(evidence.model, names), evidence.probe)
    values = dict(evidence.probe) | dict(zip(names, inner, strict=True))
    for section in found:
        part = submodels.between(evidence.model, section.source, section.output)
        feeds = {v.name or "": values[v.name or ""] for v in part.graph.inputs}
        assert section.source in feeds
        np.testing.assert_allclose(run(open_session(part), feeds)[0], values[section.output], rtol=1e-4, atol=1e-5)


def test_an_empty_section_is_an_identity() -> None:
    model = nets.residual(width=8, blocks=1)
    evidence = evidence_for(model, nets.samples(model, 2))
    cut = sections(evidence.model, evidence.trace)[0].output
    idle = submodels.between(evidence.model, cut, cut)
    assert [n.op_type for n in idle.graph] == ["Identity"]
    x = np.ones((1, 8, 4, 4), np.float32)
    np.testing.assert_array_equal(run(open_session(idle), {cut: x})[0], x)


def test_residual_blocks_are_sections() -> None:
    model = nets.residual(width=8, blocks=3)
    evidence = evidence_for(model, nets.samples(model, 2))
    found = sections(evidence.model, evidence.trace)
    work = 8 * 8 * 9 * 64
    assert [s.macs for s in found[1:4]] == [2 * work] * 3

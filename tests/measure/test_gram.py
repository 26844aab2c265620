"""Second moments of the inputs of layers, against all rows."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.gram import input_moments
from tests import nets

pytestmark = pytest.mark.unit


def test_moments_are_those_of_all_rows() -> None:
    model = nets.mlp()
    evidence = evidence_for(model, nets.samples(model, 6))
    node = next(n for n in evidence.model.graph if n.op_type == "MatMul")
    _, _, moments = next(input_moments(evidence, [node]))
    rows = np.concatenate([v["tokens"].reshape(-1, 16) for v in evidence.stream(["tokens"])])
    np.testing.assert_allclose(moments.xx, rows.T.astype(float) @ rows, rtol=1e-5)
    assert moments.count == len(rows)

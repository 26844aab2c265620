"""Second moments of the inputs of layers, against all rows."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.gram import Moments, input_moments
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


def test_rows_that_are_not_finite_are_left_out() -> None:
    """Wholly masked positions of attention are NaN, and nobody reads them."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))
    some, whole = Moments.empty(3, 2), Moments.empty(3, 2)
    kept = [0, 1, 3, 4, 6, 7]
    whole.add(x[kept], y[kept])
    x[2, 1], y[5, 0] = np.nan, np.inf
    some.add(x, y)
    assert some.count == whole.count == 6
    np.testing.assert_array_equal(some.xx, whole.xx)
    np.testing.assert_array_equal(some.yx, whole.yx)


def test_values_whose_products_overflow_in_float32() -> None:
    x = np.full((8, 300), 1e25, np.float32)
    moments = Moments.empty(300, 2)
    moments.add(x, np.full((8, 2), 1e25, np.float32))
    assert np.isfinite(moments.xx).all() and np.isfinite(moments.yx).all()
    assert moments.xx[0, 0] == pytest.approx(8e50, rel=1e-5)

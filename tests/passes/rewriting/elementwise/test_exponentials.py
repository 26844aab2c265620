"""Mish, Softplus and the exponential units by vector kernels."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.runtime.session import open_session, run
from tests.passes.rewriting.helpers import assert_same_values, f32, graph, operators, rewritten

BODIES = {
    "mish": "s=Softplus(x)\nt=Tanh(s)\ny=Mul(x,t)",
    "mish, other order": "s=Softplus(x)\nt=Tanh(s)\ny=Mul(t,x)",
    "softplus": "y=Softplus(x)",
    "elu": "y=Elu<alpha=0.7>(x)",
    "plain elu": "y=Elu(x)",
    "selu": "y=Selu(x)",
    "celu": "y=Celu<alpha=1.5>(x)",
}


@pytest.mark.parametrize("kind", BODIES)
def test_the_values_stay(kind: str) -> None:
    evidence = graph(BODIES[kind], {})
    found, model = rewritten(evidence, "vector-kernels")
    assert not {"Softplus", "Elu", "Selu", "Celu", "Tanh"} & set(found)
    assert_same_values(evidence, model)


def test_the_operator_mish() -> None:
    evidence = graph("y=Mish(x)", {}, 20)
    found, model = rewritten(evidence, "vector-kernels")
    assert found == ["Sigmoid", "Sub", "Mul", "Sub", "Div", "Mul"]
    assert_same_values(evidence, model)


@pytest.mark.parametrize("kind", ["softplus", "elu", "selu", "celu"])
def test_infinite_inputs(kind: str) -> None:
    evidence = graph(BODIES[kind], {})
    model = rewritten(evidence, "vector-kernels")[1]
    x = np.resize(f32([np.inf, -np.inf]), (1, 8))
    wanted, found = (run(open_session(m), {"x": x})[0] for m in (evidence.model, model))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_softplus_that_others_read_is_one_of_its_own() -> None:
    evidence = graph("s=Softplus(x)\nt=Tanh(s)\nm=Mul(x,t)\ny=Add(m,s)", {})
    assert rewritten(evidence, "vector-kernels")[0] == operators(evidence.model)

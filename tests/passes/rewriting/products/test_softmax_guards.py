"""Guards against empty rows of a Softmax."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.rewriting.helpers import assert_same_values, f32, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(8, 8), "zero": f32(0), "one": f32(1), "half": f32(0.5), "inf": f32(np.inf), "mask": random(4, 8),
}  # fmt: skip
GUARD = "p=Softmax<axis=-1>(s)\nn=IsNaN(p)\n"


@pytest.mark.parametrize("scores", ["s=MatMul(x,w)", "m=MatMul(x,w)\ns=Mul(m,half)", "m=MatMul(x,w)\ns=Div(m,half)"])
def test_whole_rows_need_no_guard(scores: str) -> None:
    evidence = graph(f"{scores}\n{GUARD}y=Where(n,zero,p)", CONSTANTS, 17, "N,4,8")
    found, model = rewritten(evidence, "softmax-guard")
    assert found == [*operators(evidence.model)[: scores.count("=")], "Softmax"]
    assert_same_values(evidence, model, extreme=False)


@pytest.mark.parametrize(
    "body",
    [
        f"m=MatMul(x,w)\ns=Add(m,mask)\n{GUARD}y=Where(n,zero,p)",
        f"m=MatMul(x,w)\ns=Mul(m,inf)\n{GUARD}y=Where(n,zero,p)",
        f"s=MatMul(x,w)\n{GUARD}y=Where(n,one,p)",
        f"s=MatMul(x,w)\n{GUARD}y=Where(n,zero,s)",
        f"s=Relu(x)\n{GUARD}y=Where(n,zero,p)",
    ],
    ids=["a mask", "infinite", "another number", "another value", "no product"],
)
def test_others_stay(body: str) -> None:
    evidence = graph(body, CONSTANTS, 17, "N,4,8")
    assert rewritten(evidence, "softmax-guard")[0] == operators(evidence.model)

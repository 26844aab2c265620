"""Products of one input with several matrices."""

from __future__ import annotations

import pytest

from tests.passes.rewriting.helpers import assert_same_values, graph, operators, random, rewritten

CONSTANTS = {
    "q": random(8, 6) / 3, "k": random(8, 4) / 3, "v": random(8, 5) / 3, "a": random(6), "b": random(4), "c": random(5),
    "t": random(6, 8) / 3, "one": random(1), "m": random(3, 8), "n": random(3, 8), "w4": random(4, 6) / 3,
    "w5": random(5, 6) / 3,
}  # fmt: skip
ENDS = "s=Tanh(i)\nu0=MatMul(j,w4)\nu=Add(s,u0)\nw=MatMul(l,w5)\ny=Sub(u,w)"
FORMS = {
    "with biases": f"d=MatMul(x,q)\ne=MatMul(x,k)\nf=MatMul(x,v)\ni=Add(d,a)\nj=Add(b,e)\nl=Add(f,c)\n{ENDS}",
    "some biases": f"i=MatMul(x,q)\ne=MatMul(x,k)\nj=Add(e,b)\nl=MatMul(x,v)\n{ENDS}",
    "gemm": f"i=Gemm<transB=1>(x,t,a)\nj=Gemm(x,k)\nl=Gemm<beta=0.5>(x,v,c)\n{ENDS}",
    "a bias of another shape stays": f"d=MatMul(x,q)\nj=MatMul(x,k)\nl=MatMul(x,v)\ni=Add(d,one)\n{ENDS}",
}
OTHERS = {
    "one product": "i=MatMul(x,q)\ny=Tanh(i)",
    "a computed matrix": "g=Tanh(q)\nd=MatMul(x,g)\ny=Add(d,d)",
    "of another input": "d=MatMul(x,q)\ne=Tanh(x)\nf=MatMul(e,q)\ny=Add(d,f)",
    "scaled": "d=Gemm<alpha=0.5>(x,q)\ne=Gemm<alpha=0.5>(x,q)\ny=Sub(d,e)",
    "on the right": "g=Transpose(x)\nd=MatMul(m,g)\ne=MatMul(n,g)\ny=Sub(d,e)",
}


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("kind", FORMS)
def test_several_become_one(kind: str, opset: int) -> None:
    evidence = graph(FORMS[kind], CONSTANTS, opset, "N,8", "N,6")
    found, model = rewritten(evidence, "products")
    assert found.count("Split") == 1
    assert _products(found) == _products(operators(evidence.model)) - 2
    assert_same_values(evidence, model, 1e-5)


def test_of_sequences_and_where_a_result_is_returned() -> None:
    evidence = graph(
        "d=MatMul(x,q)\ne=MatMul(x,k)\nh=MatMul(e,w4)\nr=Mul(d,h)\ny=MatMul(x,q)", CONSTANTS, 17, "N,5,8", "N,5,6"
    )
    model = rewritten(evidence, "products")[1]
    assert_same_values(evidence, model, 1e-5)


def test_before_negative_axes_they_stay() -> None:
    evidence = graph(FORMS["with biases"], CONSTANTS, 10, "N,8", "N,6")
    assert rewritten(evidence, "products")[0] == operators(evidence.model)


@pytest.mark.parametrize("kind", OTHERS)
def test_others_stay(kind: str) -> None:
    evidence = graph(OTHERS[kind], CONSTANTS, 17, "N,8", "N,6" if kind != "on the right" else "K,N")
    assert rewritten(evidence, "products")[0] == operators(evidence.model)


def _products(found: list[str]) -> int:
    return found.count("MatMul") + found.count("Gemm")

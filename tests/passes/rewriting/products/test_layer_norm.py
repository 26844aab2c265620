"""Sums in front of normalizations."""

from __future__ import annotations

import pytest

from onnxpress import simplify
from tests.passes.rewriting.helpers import assert_same_values, f32, graph, operators, random, rewritten

CONSTANTS = {"w": random(8, 8), "g": random(8), "b": random(8), "eps": f32(1e-5), "two": f32(2), "row": random(1, 4, 8)}
NORM = "y=LayerNormalization<axis=-1>(a,g,b)"
SPELLED = (
    "m=ReduceMean<axes=[-1]>(a)\nc=Sub(a,m)\np=Pow(c,two)\nv=ReduceMean<axes=[-1]>(p)\ne=Add(v,eps)\n"
    "s=Sqrt(e)\nd=Div(c,s)\nf=Mul(d,g)\ny=Add(f,b)"
)


@pytest.mark.parametrize("norm", [NORM, SPELLED], ids=["operator", "spelled"])
def test_residual_sums(norm: str) -> None:
    evidence = graph(f"t=MatMul(x,w)\na=Add(t,x)\n{norm}", CONSTANTS, 17, "N,4,8")
    found, model = rewritten(evidence, "layer-norm")
    assert found[:2] == ["MatMul", "Sum"]
    assert_same_values(evidence, model, 1e-5, extreme=False)
    kept = simplify(model).model
    assert "Sum" in operators(kept), "simplify does not undo it"


@pytest.mark.parametrize(
    "body",
    [f"a=Add(x,row)\n{NORM}", f"t=MatMul(x,w)\na=Add(t,b)\n{NORM}", "t=MatMul(x,w)\na=Add(t,x)\ny=Relu(a)"],
    ids=["a constant", "a bias", "no normalization"],
)
def test_other_sums_stay(body: str) -> None:
    evidence = graph(body, CONSTANTS, 17, "N,4,8")
    assert rewritten(evidence, "layer-norm")[0] == operators(evidence.model)

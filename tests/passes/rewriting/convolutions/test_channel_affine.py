"""Chains of sums and products with constants become depthwise convolutions between convolutions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.rewriting.helpers import assert_same_values, f32, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(16, 3, 3, 3) / 5, "w2": random(4, 16, 1, 1) / 4, "c": random(16, 1, 1), "two": f32(2), "zero": f32(0),
    "row": random(1, 16, 1, 1), "map": random(16, 8, 8), "inf": f32(np.inf),
}  # fmt: skip
CHAINS = {
    "one product": "t=Mul(r,two)",
    "a chain": "p=Mul(r,c)\nq=Sub(two,p)\ns=Div(q,two)\nu=Neg(s)\nt=Add(row,u)",
    "a difference": "t=Sub(c,r)",
}
OTHERS = {
    "zero": "t=Mul(r,zero)",
    "a map": "t=Mul(r,map)",
    "a constant over it": "t=Div(c,r)",
    "not finite": "t=Add(r,inf)",
}


def between(chain: str) -> str:
    return f"a=Conv<pads=[1,1,1,1]>(x,w)\nr=Relu(a)\n{chain}\ny=Conv(t,w2)"


@pytest.mark.parametrize("kind", CHAINS)
def test_chains_become_one_convolution(kind: str) -> None:
    evidence = graph(between(CHAINS[kind]), CONSTANTS, shape="N,3,8,8", out="N,4,8,8")
    found, model = rewritten(evidence, "affine")
    assert found == ["Conv", "Relu", "Conv", "Conv"]
    assert_same_values(evidence, model, 1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_others_stay(kind: str) -> None:
    evidence = graph(between(OTHERS[kind]), CONSTANTS, shape="N,3,8,8", out="N,4,8,8")
    assert rewritten(evidence, "affine")[0] == operators(evidence.model)


def test_what_others_read_within_a_chain_stays() -> None:
    chain = "p=Mul(r,two)\nq=Add(p,c)\nt=Add(q,p)"
    evidence = graph(between(chain), CONSTANTS, shape="N,3,8,8", out="N,4,8,8")
    found, model = rewritten(evidence, "affine")
    assert found.count("Conv") == 4 and "Mul" not in found
    assert_same_values(evidence, model, 1e-5)


def test_not_behind_the_last_convolution() -> None:
    evidence = graph("a=Conv<pads=[1,1,1,1]>(x,w)\nr=Relu(a)\ny=Mul(r,two)", CONSTANTS, shape="N,3,8,8", out="N,16,8,8")
    assert rewritten(evidence, "affine")[0] == ["Conv", "Relu", "Mul"]

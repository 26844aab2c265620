"""Convolutions whose channels are split behind them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.rewriting.helpers import assert_same_values, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(32, 3, 3, 3) / 5, "b": random(32), "v": random(16, 16, 1, 1) / 4, "p": random(8, 48, 1, 1) / 7,
    "n": np.array([16, 16]), "odd": np.array([28, 4]), "zero": np.array([0]), "half": np.array([16]),
    "end": np.array([2**62]), "ax": np.array([1]), "h": np.array([2]),
    "four": np.array([4]), "late": np.array([12]), "g": random(32, 1, 1),
}  # fmt: skip
FIRST = "a=Conv<pads=[1,1,1,1]>(x,w,b)\n"
LAST = "e=Conv(d,v)\nf=Add(e,d)\nj=Concat<axis=1>(c,d,f)\ny=Conv(j,p)"
FORMS = {
    "split": f"c,d=Split<axis=1>(a,n)\n{LAST}",
    "an activation": f"r=Relu(a)\nc,d=Split<axis=1>(r,n)\n{LAST}",
    "a gate": f"s=Sigmoid(a)\nm=Mul(a,s)\nc,d=Split<axis=1>(m,n)\n{LAST}",
    "slices": f"m=HardSwish(a)\nc=Slice(m,zero,half,ax)\nd=Slice(m,half,end,ax)\n{LAST}",
}
OTHERS = {
    "another axis": "r=Relu(a)\nc=Slice(r,zero,four,h)\nd=Slice(r,four,end,h)\ny=Concat<axis=2>(d,c)",
    "a whole reader": "c,d=Split<axis=1>(a,n)\nk=Sin(a)\nu=ReduceMax<axes=[1]>(k)\nz=Add(d,u)\ny=Add(z,c)",
    "constants of channels": f"m=Mul(a,g)\nc,d=Split<axis=1>(m,n)\n{LAST}",
    "a computed bound": f"low=ReduceMin<keepdims=0>(x)\nm=Clip(a,low)\nc,d=Split<axis=1>(m,n)\n{LAST}",
    "overlapping": f"c=Slice(a,zero,half,ax)\nd0=Slice(a,late,end,ax)\nd=Slice(d0,zero,half,ax)\n{LAST}",
    "a narrow part": "c,d=Split<axis=1>(a,odd)\nq=ReduceMean<axes=[1]>(d)\ny=Add(c,q)",
}


@pytest.mark.parametrize("kind", FORMS)
def test_parts_are_convolutions_of_their_own(kind: str) -> None:
    evidence = graph(FIRST + FORMS[kind], CONSTANTS, 17, "N,3,8,8", "N,8,8,8")
    found, model = rewritten(evidence, "split")
    assert "Split" not in found and "Slice" not in found and found.count("Conv") == 4
    assert_same_values(evidence, model, 1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_others_stay(kind: str) -> None:
    evidence = graph(FIRST + OTHERS[kind], CONSTANTS, 17, "N,3,8,8", "N,K,L,M")
    assert rewritten(evidence, "split")[0] == operators(evidence.model)

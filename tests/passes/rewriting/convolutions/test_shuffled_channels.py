"""Shuffles of channels as selections."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.rewriting.helpers import assert_same_values, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(12, 3, 3, 3) / 5, "v": random(6, 6, 1, 1) / 3, "p": random(4, 12, 1, 1) / 3,
    "five": np.array([-1, 2, 6, 8, 8]), "three": np.array([-1, 3, 4, 8, 8]), "four": np.array([-1, 12, 8, 8]),
    "keep": np.array([0, 2, 6, 8, 8]), "back": np.array([0, 12, 8, 8]), "n": np.array([6, 6]),
    "other": np.array([-1, 2, 6, 4, 16]),
    "zero": np.array([0]), "half": np.array([6]), "end": np.array([2**62]), "ax": np.array([1]), "c": np.array([12]),
    "two": np.array([2]), "six": np.array([6]), "sizes": np.array([8, 8]),
}  # fmt: skip
FIRST = "a=Conv<pads=[1,1,1,1]>(x,w)\n"
SHUFFLE = "r=Reshape(a,five)\nt=Transpose<perm=[0,2,1,3,4]>(r)\ns=Reshape(t,four)\n"
HALVES = "e=Conv(d,v)\nj=Concat<axis=1>(c0,e)\n"
FORMS = {
    "alone": f"{SHUFFLE}y=Conv(s,p)",
    "three groups": SHUFFLE.replace("five", "three") + "y=Conv(s,p)",
    "kept samples": SHUFFLE.replace("five", "keep").replace("four", "back") + "y=Conv(s,p)",
    "split": f"{SHUFFLE}c0,d=Split<axis=1>(s,n)\n{HALVES}y=Conv(j,p)",
    "sliced": f"{SHUFFLE}c0=Slice(s,zero,half,ax)\nd=Slice(s,half,end,ax)\n{HALVES}y=Conv(j,p)",
    "computed sizes": "h=Shape<end=1>(a)\nk=Concat<axis=0>(h,two,six,sizes)\nl=Concat<axis=0>(h,c,sizes)\n"
    + SHUFFLE.replace("five", "k").replace("four", "l") + "y=Conv(s,p)",
    "two in a row": f"{SHUFFLE}r1=Reshape(s,three)\nt1=Transpose<perm=[0,2,1,3,4]>(r1)\n"
    + "s1=Reshape(t1,four)\ny=Conv(s1,p)",
    "read as well": f"{SHUFFLE}c0,d=Split<axis=1>(s,n)\n{HALVES}z=Add(j,s)\ny=Conv(z,p)",
}  # fmt: skip
OTHERS = {
    "rows": SHUFFLE.replace("five", "other") + "y=Conv(s,p)",
    "another order": SHUFFLE.replace("[0,2,1,3,4]", "[0,1,2,4,3]") + "y=Conv(s,p)",
    "read between": f"{SHUFFLE}q=Transpose<perm=[0,2,1,3,4]>(r)\nu=Reshape(q,four)\nz=Add(s,u)\ny=Conv(z,p)",
}


@pytest.mark.parametrize("kind", FORMS)
def test_shuffles_are_selections(kind: str) -> None:
    evidence = graph(FIRST + FORMS[kind], CONSTANTS, 17, "N,3,8,8", "N,4,8,8")
    found, model = rewritten(evidence, "shuffle")
    assert ("Transpose" not in found and "Split" not in found and "Slice" not in found) or kind == "read as well"
    assert found.count("Gather") == (2 if kind in ("split", "sliced", "two in a row") else 1)
    assert_same_values(evidence, model, 1e-6)


@pytest.mark.parametrize("kind", OTHERS)
def test_others_stay(kind: str) -> None:
    evidence = graph(FIRST + OTHERS[kind], CONSTANTS, 17, "N,3,8,8", "N,4,8,8")
    assert rewritten(evidence, "shuffle")[0] == operators(evidence.model)


def test_free_sizes_stay() -> None:
    evidence = graph(FIRST + FORMS["alone"], CONSTANTS, 17, "N,3,H,8", "N,4,H,8")
    assert rewritten(evidence, "shuffle")[0] == operators(evidence.model)

"""Groups merged, depth multipliers split, parallel convolutions added up."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.model import read
from tests.passes.rewriting.helpers import assert_same_values, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(16, 3, 3, 3) / 5, "b": random(16), "g4": random(16, 4, 3, 3) / 6, "g2": random(32, 2, 3, 3) / 4,
    "dm": random(32, 1, 3, 3) / 3, "b32": random(32), "p": random(4, 32, 1, 1) / 5, "q": random(4, 16, 1, 1) / 4,
    "w1": random(16, 3, 1, 1), "w5": random(16, 3, 5, 5) / 9, "w2": random(16, 3, 2, 2), "s": random(32, 1, 1),
}  # fmt: skip
FIRST = "a=Conv<pads=[1,1,1,1]>(x,w,b)\n"


def weights(model: object) -> list[tuple[int, ...]]:
    return [
        tuple(read.constant_tensor(n.inputs[1]).shape.numpy())  # type: ignore[union-attr]
        for n in model.graph  # type: ignore[attr-defined]
        if n.op_type == "Conv"
    ]


@pytest.mark.parametrize(("block", "width"), [(8, 8), (16, 16)])
def test_narrow_groups_are_merged(block: int, width: int) -> None:
    evidence = graph(FIRST + "c=Conv<group=4,pads=[1,1,1,1]>(a,g4,b)\ny=Conv(c,q)", CONSTANTS, 17, "N,3,8,8", "N,4,8,8")
    _, model = rewritten(evidence, f"groups-{block}")
    assert weights(model)[1] == (16, width, 3, 3)
    assert_same_values(evidence, model, 1e-5)


def test_groups_of_more_outputs_than_inputs() -> None:
    evidence = graph(FIRST + "y=Conv<group=8,pads=[1,1,1,1]>(a,g2,b32)", CONSTANTS, 17, "N,3,8,8", "N,32,8,8")
    _, model = rewritten(evidence, "groups-8")
    assert weights(model)[1] == (32, 8, 3, 3)
    assert_same_values(evidence, model, 1e-5)


def test_wide_and_depthwise_groups_stay() -> None:
    evidence = graph(FIRST + "y=Conv<group=16,pads=[1,1,1,1]>(a,dm,b32)", CONSTANTS, 17, "N,3,8,8", "N,32,8,8")
    assert weights(rewritten(evidence, "groups-16")[1]) == weights(evidence.model)


def test_depth_multipliers_are_split() -> None:
    body = FIRST + "c=Conv<group=16,pads=[1,1,1,1],strides=[2,2]>(a,dm,b32)\nr=Relu(c)\ny=Conv(r,p)"
    evidence = graph(body, CONSTANTS, 17, "N,3,8,8", "N,4,4,4")
    found, model = rewritten(evidence, "depth-multiplier")
    assert found == ["Conv", "Conv", "Conv", "Concat", "Relu", "Conv"]
    assert_same_values(evidence, model, 1e-5)


@pytest.mark.parametrize("behind", ["y=Relu(c)", "m=Mul(c,s)\ny=Conv(m,p)"])
def test_depth_multipliers_that_others_read_stay(behind: str) -> None:
    out = "N,32,8,8" if "p" not in behind else "N,4,8,8"
    evidence = graph(FIRST + f"c=Conv<group=16,pads=[1,1,1,1]>(a,dm,b32)\n{behind}", CONSTANTS, 17, "N,3,8,8", out)
    assert rewritten(evidence, "depth-multiplier")[0] == operators(evidence.model)


def test_parallel_convolutions_become_one() -> None:
    body = "a=Conv<pads=[1,1,1,1]>(x,w,b)\nc=Conv(x,w1)\nd=Conv<pads=[2,2,2,2]>(x,w5,b)\ne=Add(c,a)\ny=Add(e,d)"
    evidence = graph(body, CONSTANTS, 17, "N,3,8,8", "N,16,8,8")
    found, model = rewritten(evidence, "parallel")
    assert found == ["Conv"] and weights(model) == [(16, 3, 5, 5)]
    assert_same_values(evidence, model, 1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "a=Conv<pads=[1,1,1,1]>(x,w,b)\nc=Conv<pads=[1,1,0,0]>(x,w2)\ny=Add(a,c)",
        "a=Conv<pads=[1,1,1,1]>(x,w,b)\nz=Relu(x)\nc=Conv(z,w1)\ny=Add(a,c)",
        "a=Conv<pads=[1,1,1,1]>(x,w,b)\nc=Conv(x,w1)\nd=Add(a,c)\ny=Add(d,c)",
        "a=Conv<pads=[0,0,0,0]>(x,w,b)\nc=Conv<pads=[0,0,0,0],dilations=[2,2]>(x,w2)\ny=Add(a,c)",
    ],
    ids=["even kernel", "another input", "another reader", "dilation"],
)
def test_others_stay(body: str) -> None:
    evidence = graph(body, CONSTANTS, 17, "N,3,8,8", "N,16,H,W")
    found, model = rewritten(evidence, "parallel")
    assert found == operators(evidence.model)
    assert np.prod(weights(model)[0]) > 0

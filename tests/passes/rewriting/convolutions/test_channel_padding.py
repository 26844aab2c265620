"""Channels padded to what blocked kernels take."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.model import read
from tests.passes.rewriting.helpers import assert_same_values, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(18, 3, 3, 3) / 5, "b": random(18), "d": random(18, 1, 3, 3) / 3, "v": random(8, 18, 1, 1) / 4,
    "even": random(20, 3, 3, 3) / 5, "u": random(8, 20, 1, 1) / 4, "few": random(6, 3, 3, 3) / 5,
    "t": random(8, 6, 1, 1) / 4, "chosen": np.array([*range(0, 20, 2), *range(8)]), "g": random(18, 9, 1, 1) / 3,
}  # fmt: skip
FIRST = "a=Conv<pads=[1,1,1,1]>(x,w,b)\n"
FORMS = {
    "an activation": f"{FIRST}r=Relu(a)\ny=Conv(r,v)",
    "without a bias": "a=Conv<pads=[1,1,1,1]>(x,w)\ny=Conv(a,v)",
    "a depthwise convolution": f"{FIRST}r=HardSwish(a)\ne=Conv<pads=[1,1,1,1],group=18>(r,d,b)\n"
    + "s=Sigmoid(e)\ny=Conv(s,v)",
    "a selection": "a=Conv<pads=[1,1,1,1]>(x,even)\nc=Gather<axis=1>(a,chosen)\ny=Conv(c,v)",
}  # fmt: skip
OTHERS = {
    "a multiple": "a=Conv<pads=[1,1,1,1]>(x,even)\ny=Conv(a,u)",
    "less than a block": "a=Conv<pads=[1,1,1,1]>(x,few)\ny=Conv(a,t)",
    "read twice": f"{FIRST}r=Relu(a)\nz=Conv(r,v)\nm=ReduceMean<axes=[1]>(r)\ny=Add(z,m)",
    "groups": f"{FIRST}e=Conv<group=2>(a,g)\ny=Conv(e,v)",
    "another operator": f"{FIRST}r=Sin(a)\ny=Conv(r,v)",
    "of another axis": "a=Conv<pads=[1,1,1,1]>(x,w)\nc=Gather<axis=2>(a,eight)\ny=Conv(c,v)",
}


@pytest.mark.parametrize("kind", FORMS)
def test_channels_are_padded(kind: str) -> None:
    evidence = graph(FORMS[kind], CONSTANTS, 17, "N,3,8,8", "N,8,8,8")
    _, model = rewritten(evidence, "padding")
    last = model.graph.node(len(model.graph) - 1)
    weight = read.constant(last.inputs[1])
    assert weight is not None and weight.shape[1] == 20
    assert_same_values(evidence, model, 1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_others_stay(kind: str) -> None:
    constants = {**CONSTANTS, "eight": np.arange(8)}
    evidence = graph(OTHERS[kind], constants, 17, "N,3,8,8", "N,8,8,8")
    assert rewritten(evidence, "padding")[0] == operators(evidence.model)

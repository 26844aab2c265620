"""What lies between convolutions."""

from __future__ import annotations

import pytest

from onnxpress.passes.rewriting.convolutions.blocked_layout import (
    between_convolutions,
    channels_of,
    is_blocked,
    per_channel,
)
from tests.passes.rewriting.helpers import f32, graph, random

pytestmark = pytest.mark.unit
CONSTANTS = {"w": random(16, 3, 3, 3), "w2": random(4, 16, 1, 1), "c": random(16, 1, 1), "row": random(16)}


def test_between_convolutions() -> None:
    body = "a=Conv<pads=[1,1,1,1]>(x,w)\nb=Relu(a)\nc2=Mul(b,c)\nd=Tanh(c2)\ne=Conv(d,w2)\ny=Relu(e)"
    evidence = graph(body, CONSTANTS, 17, "N,3,8,8", "N,4,8,8")
    found = {n.op_type + str(i): between_convolutions(n) for i, n in enumerate(evidence.model.graph)}
    assert found == {"Conv0": False, "Relu1": True, "Mul2": True, "Tanh3": True, "Conv4": False, "Relu5": False}
    assert [is_blocked(n) for n in evidence.model.graph] == [True, False, False, False, True, False]


def test_a_transpose_ends_the_layout() -> None:
    body = "a=Conv<pads=[1,1,1,1]>(x,w)\nb=Relu(a)\nt=Transpose<perm=[0,1,3,2]>(b)\ny=Conv(t,w2)"
    evidence = graph(body, CONSTANTS, 17, "N,3,8,8", "N,4,8,8")
    assert not between_convolutions(list(evidence.model.graph)[1])


def test_constants_of_channels() -> None:
    evidence = graph("a=Mul(x,c)\ny=Mul(a,row)", {"c": random(16, 1, 1), "row": random(16)}, 17, "N,16,8,16")
    first, second = evidence.model.graph
    assert channels_of(first.outputs[0], evidence.trace) == 16
    numbers = per_channel(first.inputs[1], 16)
    assert numbers is not None and numbers.shape == (16,)
    assert per_channel(second.inputs[1], 16) is None  # along the last axis
    assert f32(1).shape == ()

"""Convolutions over one axis become convolutions of pictures of height one."""

from __future__ import annotations

import pytest

from tests.passes.rewriting.helpers import assert_same_values, f32, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(8, 3, 5) / 4, "b": random(8), "d": random(8, 1, 3), "v": random(8, 8, 1) / 3, "c": random(8, 1),
    "two": f32(2), "s": random(8), "q": abs(random(8)), "pos": random(1, 8, 16),
}  # fmt: skip
FIRST = "a=Conv<pads=[2,2],kernel_shape=[5]>(x,w,b)\n"
CHAINS = {
    "one": ("y=Relu(a)", 1),
    "two with an activation": ("r=Relu(a)\ny=Conv<pads=[1,1],group=8>(r,d)", 2),
    "constants of channels and places": ("m=Mul(a,c)\nn=Add(m,pos)\nk=Mul(n,two)\ny=Conv(k,v)", 2),
    "a residual sum": ("r=Relu(a)\ne=Conv(r,v)\nf=Add(e,a)\ny=Conv(f,v)", 3),
    "channels joined": ("r=Relu(a)\nj=Concat<axis=1>(r,a)\nk,l=Split<axis=1>(j)\nm=Add(k,l)\ny=Conv(m,v)", 2),
    "normalization": ("n=BatchNormalization(a,s,b,s,q)\ny=Conv(n,v)", 2),
    "pooling": ("p=MaxPool<kernel_shape=[2],strides=[2],pads=[0,1]>(a)\ny=Conv(p,v)", 2),
    "all places": ("p=GlobalAveragePool(a)\nh=Conv(p,v)\ng=Sigmoid(h)\nm=Mul(a,g)\ny=Conv(m,v)", 3),
    "strides and dilations": ("y=Conv<strides=[2],dilations=[2],pads=[1,3]>(a,d2)", 2),
}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("kind", CHAINS)
def test_chains(kind: str, opset: int) -> None:
    body, count = CHAINS[kind]
    if opset == 11:
        body = body.replace("k,l=Split<axis=1>(j)", "k,l=Split<axis=1,split=[8,8]>(j)")
    elif "Split" in body:
        body = body.replace("k,l=Split<axis=1>(j)", "k,l=Split<axis=1,num_outputs=2>(j)") if opset > 17 else body
    constants = {**CONSTANTS, "d2": random(8, 8, 3) / 5}
    evidence = graph(FIRST + body, constants, opset, "N,3,16", "N,8,L")
    found, model = rewritten(evidence, "one-dimensional")
    assert found.count("Conv") == count
    if kind not in ("channels joined",):
        assert found.count("Unsqueeze") == 1 and found.count("Squeeze") == 1
    assert_same_values(evidence, model, 1e-5, extreme=kind != "all places")


def test_what_others_read_keeps_its_axes() -> None:
    body = "r=Relu(a)\nt=Transpose<perm=[0,2,1]>(r)\ne=Conv(r,v)\nu=Transpose<perm=[0,2,1]>(e)\ny=Add(t,u)"
    evidence = graph(FIRST + body, CONSTANTS, 17, "N,3,16", "N,16,8")
    found, model = rewritten(evidence, "one-dimensional")
    assert found.count("Unsqueeze") == 1 and found.count("Squeeze") == 2
    assert_same_values(evidence, model, 1e-5)


def test_pictures_stay() -> None:
    evidence = graph("y=Conv(x,w)", {"w": random(4, 3, 3, 3)}, 17, "N,3,8,8", "N,4,6,6")
    assert rewritten(evidence, "one-dimensional")[0] == operators(evidence.model)

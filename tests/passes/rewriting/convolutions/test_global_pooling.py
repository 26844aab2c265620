"""Reductions of whole pictures become pooling."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.rewriting.helpers import assert_same_values, graph, operators, rewritten

AXES = {"hw": np.array([2, 3]), "back": np.array([-1, -2]), "w": np.array([3]), "ch": np.array([1, 2])}
WHOLE = {
    "mean": (17, "y=ReduceMean<axes=[2,3],keepdims=1>(x)", "N,3,1,1", ["GlobalAveragePool"]),
    "mean of negative axes": (17, "y=ReduceMean<axes=[-2,-1]>(x)", "N,3,1,1", ["GlobalAveragePool"]),
    "mean, axes as input": (18, "y=ReduceMean(x,back)", "N,3,1,1", ["GlobalAveragePool"]),
    "mean without axes": (17, "y=ReduceMean<axes=[2,3],keepdims=0>(x)", "N,3", ["GlobalAveragePool", "Flatten"]),
    "max": (18, "y=ReduceMax(x,hw)", "N,3,1,1", ["GlobalMaxPool"]),
    "average pool": (17, "y=AveragePool<kernel_shape=[8,8]>(x)", "N,3,1,1", ["GlobalAveragePool"]),
}
PARTS = {
    "one axis": (18, "y=ReduceMean(x,w)", "N,3,8,1"),
    "channels": (18, "y=ReduceMean(x,ch)", "N,1,1,8"),
    "a window": (17, "y=AveragePool<kernel_shape=[4,4],strides=[4,4]>(x)", "N,3,2,2"),
    "padding": (17, "y=AveragePool<kernel_shape=[8,8],pads=[1,1,0,0],count_include_pad=1>(x)", "N,3,2,2"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_pictures(kind: str) -> None:
    opset, body, out, operators_now = WHOLE[kind]
    evidence = graph(body, AXES, opset, "N,3,8,8", out)
    found, model = rewritten(evidence, "pooling")
    assert found == operators_now
    assert_same_values(evidence, model)


@pytest.mark.parametrize("kind", PARTS)
def test_parts_stay(kind: str) -> None:
    opset, body, out = PARTS[kind]
    evidence = graph(body, AXES, opset, "N,3,8,8", out)
    assert rewritten(evidence, "pooling")[0] == operators(evidence.model)


def test_a_pooling_of_free_size_stays() -> None:
    evidence = graph("y=AveragePool<kernel_shape=[8,8]>(x)", {}, 17, "N,3,H,W", "N,3,K,L")
    assert rewritten(evidence, "pooling")[0] == ["AveragePool"]

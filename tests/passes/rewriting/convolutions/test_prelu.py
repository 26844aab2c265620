"""PRelu between convolutions, and with equal slopes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.rewriting.helpers import assert_same_values, f32, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(16, 3, 3, 3) / 5, "w2": random(4, 16, 1, 1) / 4, "many": np.abs(random(16, 1, 1)) + f32(0.1),
    "same": np.full((16, 1, 1), 0.25, np.float32), "one": f32(0.25), "map": random(16, 8, 8),
    "wide": np.full((2, 1, 1, 1), 0.25, np.float32),
}  # fmt: skip


def between(slope: str) -> str:
    return f"a=Conv<pads=[1,1,1,1]>(x,w)\nb=PRelu(a,{slope})\ny=Conv(b,w2)"


@pytest.mark.parametrize("slope", ["same", "one"])
def test_equal_slopes_become_leaky(slope: str) -> None:
    evidence = graph(between(slope), CONSTANTS, shape="N,3,8,8", out="N,4,8,8")
    found, model = rewritten(evidence, "prelu")
    assert found == ["Conv", "LeakyRelu", "Conv"]
    assert_same_values(evidence, model, 1e-5)


def test_slopes_of_channels_become_depthwise() -> None:
    evidence = graph(between("many"), CONSTANTS, shape="N,3,8,8", out="N,4,8,8")
    found, model = rewritten(evidence, "prelu")
    assert "PRelu" not in found and found.count("Conv") == 4
    assert_same_values(evidence, model, 1e-5)


@pytest.mark.parametrize("slope", ["map"])
def test_slopes_of_places_stay(slope: str) -> None:
    evidence = graph(between(slope), CONSTANTS, shape="N,3,8,8", out="N,4,8,8")
    assert rewritten(evidence, "prelu")[0] == operators(evidence.model)


def test_slopes_of_channels_stay_without_a_convolution_behind() -> None:
    evidence = graph("a=Conv<pads=[1,1,1,1]>(x,w)\ny=PRelu(a,many)", CONSTANTS, shape="N,3,8,8", out="N,16,8,8")
    assert rewritten(evidence, "prelu")[0] == ["Conv", "PRelu"]

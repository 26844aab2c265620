"""Nearest Resize by whole numbers in other coordinates."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.model import read
from tests.passes.rewriting.helpers import assert_same_values, f32, graph, rewritten

CONSTANTS = {
    "twice": f32([1, 1, 2, 2]), "mixed": f32([1, 1, 3, 2]), "part": f32([1, 1, 1.5, 2]), "all": f32([1, 2, 2, 2]),
    "sizes": np.array([1, 3, 16, 24]), "odd": np.array([1, 3, 15, 16]),
}  # fmt: skip


def resize(mode: str, rounding: str, scales: str = "twice") -> str:
    scaled = f"(x,,{scales})" if scales not in ("sizes", "odd") else f"(x,,,{scales})"
    return f'y=Resize<mode="nearest",coordinate_transformation_mode="{mode}",nearest_mode="{rounding}">{scaled}'


def coordinates(body: str, shape: str = "N,3,8,8") -> str:
    evidence = graph(body, CONSTANTS, 17, shape, "N,C,H,W")
    _, model = rewritten(evidence, "resize")
    assert_same_values(evidence, model) if "1,3" not in shape else None
    (node,) = model.graph
    return str(read.attribute(node, "coordinate_transformation_mode"))


@pytest.mark.parametrize("scales", ["twice", "mixed"])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil"])
def test_half_pixels_are_copies(rounding: str, scales: str) -> None:
    assert coordinates(resize("half_pixel", rounding, scales)) == "asymmetric"


@pytest.mark.parametrize(
    ("mode", "rounding", "scales"),
    [
        ("half_pixel", "floor", "twice"),
        ("half_pixel", "ceil", "twice"),
        ("half_pixel", "round_prefer_floor", "part"),
        ("half_pixel", "round_prefer_floor", "all"),
        ("align_corners", "round_prefer_floor", "twice"),
    ],
)
def test_others_stay(mode: str, rounding: str, scales: str) -> None:
    assert coordinates(resize(mode, rounding, scales)) == mode


def test_whole_sizes_become_scales() -> None:
    evidence = graph(resize("half_pixel", "round_prefer_floor", "sizes"), CONSTANTS, 17, "1,3,8,8", "1,3,16,24")
    _, model = rewritten(evidence, "resize")
    (node,) = model.graph
    scales = read.constant(node.inputs[2])
    assert scales is not None and scales.tolist() == [1, 1, 2, 3] and len(node.inputs) == 3
    odd = graph(resize("half_pixel", "round_prefer_floor", "odd"), CONSTANTS, 17, "1,3,8,8", "1,3,15,16")
    _, model = rewritten(odd, "resize")
    assert len(next(iter(model.graph)).inputs) == 4


def test_asymmetric_rounding_depends_on_the_scale() -> None:
    assert coordinates(resize("asymmetric", "round_prefer_floor", "twice")) == "asymmetric"
    evidence = graph(resize("asymmetric", "round_prefer_floor", "mixed"), CONSTANTS, 17, "N,3,8,8", "N,C,H,W")
    _, model = rewritten(evidence, "resize")
    assert read.attribute(next(iter(model.graph)), "nearest_mode") == "round_prefer_floor"

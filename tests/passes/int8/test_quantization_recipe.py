"""The choice of a quantization recipe under a time budget, and what equalized models share with the original."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.passes.int8.equalize import plan_equalize
from onnxpress.passes.int8.qdq.write import UNCHANGED_LAYERS
from onnxpress.passes.int8.quantization_recipe import (
    QuantizationRecipe,
    RecipeOptions,
    choose_recipe,
    equalized_evidence,
)
from onnxpress.passes.int8.static_int8 import quantizable, quantize
from tests import nets


def small() -> Evidence:
    model = nets.residual(width=16, blocks=1)
    return evidence_for(model, nets.samples(model, 16))


def so_often(tries: int) -> Callable[[], bool]:
    numbers = count()
    return lambda: next(numbers) < tries


@pytest.mark.parametrize("tries", [0, 1, 3])
def test_only_so_many_recipes_are_tried(tries: int) -> None:
    evidence = small()
    tried: list[QuantizationRecipe] = []

    def build(some: Evidence, recipe: QuantizationRecipe) -> ir.Model:
        tried.append(recipe)
        return quantize(some, quantizable(some), recipe, False, True).model

    found = choose_recipe(evidence, RecipeOptions(), build, so_often(tries))
    assert len({str(r) for r in tried}) <= tries
    assert len({str(r.ranges) for r in tried}) == min(tries, 3)
    assert found.ranges in {r.ranges for r in tried} | {"output-error"}


def test_layers_away_from_an_equalized_tensor_are_those_of_the_original() -> None:
    evidence = small()
    (first, *_) = plan_equalize(evidence)
    found = equalized_evidence(evidence, QuantizationRecipe("minmax", (first,)))
    shared = found.get(UNCHANGED_LAYERS)
    assert shared is not None
    other, names = shared
    assert other is evidence
    nodes = {n.name: n for n in found.model.graph if n.op_type in ("Conv", "Gemm")}
    touched = {n.name for n in nodes.values() if n.inputs[0] is not None and n.inputs[0].name == first["tensor"]}
    assert names & set(nodes) and not names & touched
    source = {n.name: n for n in evidence.model.graph}
    for name in names & set(nodes):
        one, two = (n.inputs[1].const_value.numpy() for n in (nodes[name], source[name]))
        np.testing.assert_array_equal(one, two)

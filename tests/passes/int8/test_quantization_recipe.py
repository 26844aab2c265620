"""The choice of a quantization recipe under a time budget."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.passes.int8.quantization_recipe import (
    QuantizationRecipe,
    RecipeOptions,
    choose_recipe,
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

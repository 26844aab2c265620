"""Regions of a graph that compute a function of one number."""

from __future__ import annotations

import pytest

from onnxpress.passes.rewriting.elementwise.scalar_functions import IDENTITY, Polynomial
from onnxpress.passes.rewriting.elementwise.scalar_regions import form_of, regions_ending_at
from tests.passes.rewriting.helpers import f32, graph

pytestmark = pytest.mark.unit
NUMBERS = {"two": f32(2), "three": f32(3), "row": f32([1, 2, 3, 4, 5, 6, 7, 8])}


def test_regions_are_found_from_the_largest_down() -> None:
    evidence = graph("u=Mul(x,two)\nv=Add(u,three)\ny=Mul(v,two)", NUMBERS)
    end = list(evidence.model.graph)[-1]
    found = list(regions_ending_at(end, evidence.trace))
    assert [len(r.nodes) for r in found] == [3, 2, 1]
    assert found[0].form == Polynomial((6.0, 4.0))
    assert found[0].anchor.name == "x"


def test_a_value_that_others_read_ends_a_region() -> None:
    evidence = graph("u=Mul(x,two)\nv=Add(u,three)\nw=Mul(v,two)\ny=Add(w,v)", NUMBERS)
    nodes = list(evidence.model.graph)
    assert [len(r.nodes) for r in regions_ending_at(nodes[-1], evidence.trace)] == [4, 3, 2]
    assert [len(r.nodes) for r in regions_ending_at(nodes[2], evidence.trace)] == [1]


def test_an_operand_of_several_numbers_has_no_form() -> None:
    evidence = graph("u=Mul(x,row)\ny=Mul(u,two)", NUMBERS)
    end = list(evidence.model.graph)[-1]
    (only,) = regions_ending_at(end, evidence.trace)
    assert only.nodes == (end,)
    first = next(iter(evidence.model.graph))
    assert form_of(first, evidence.model.graph.inputs[0], evidence.trace) is None
    assert form_of(end, first.outputs[0], evidence.trace) == Polynomial((0.0, 2.0))
    assert IDENTITY(3.0) == 3.0

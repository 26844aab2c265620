"""Which names two versions of a model differ in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.model import edit, read
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.exact.differences import changed_names
from tests import nets

pytestmark = pytest.mark.unit


def test_a_clone_does_not_differ() -> None:
    model = canonical(nets.residual(norm=True))
    assert changed_names(model, canonical(model)) == frozenset()


def test_a_changed_weight_is_named_with_the_node_that_reads_it() -> None:
    model = canonical(nets.residual())
    other = model.clone()
    node = next(n for n in other.graph if n.op_type == "Gemm")
    weight = read.constant(node.inputs[1])
    assert weight is not None
    edit.set_constant(node.inputs[1], weight + np.float32(1))
    assert changed_names(model, other) == {node.name, node.inputs[1].name}


def test_a_removed_node_is_named_and_the_one_behind_it_is_not() -> None:
    model = canonical(nets.residual())
    other = model.clone()
    relu = next(n for n in other.graph if n.op_type == "Relu")
    edit.replace_value(other, relu.outputs[0], relu.inputs[0])
    edit.drop_dead(other)
    assert changed_names(model, other) == {relu.name}


def test_a_changed_attribute_is_named() -> None:
    model = canonical(nets.residual())
    other = model.clone()
    node = next(n for n in other.graph if n.op_type == "Flatten")
    node.attributes.add(ir.AttrInt64("axis", 2))
    assert changed_names(model, other) == {node.name}


def test_a_node_that_reads_a_new_one_is_named() -> None:
    model = canonical(nets.residual())
    other = model.clone()
    relu = next(n for n in other.graph if n.op_type == "Relu")
    relu.replace_input_with(0, edit.insert_before(other, relu, "Neg", [relu.inputs[0]], "new"))
    assert changed_names(model, other) == {relu.name}

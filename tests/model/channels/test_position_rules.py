"""Channels through the forms that exporters write: cut as the mask says, and not left wide without need."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxpress.measure.evidence import evidence_for
from tests import exported_forms, grammar, nets
from tests.model.channels.helpers import assert_masked_parity


def through(rule: exported_forms.Rule, draw: st.DrawFn) -> ir.Model:
    """A layer, the form, a layer that reads it, and a head."""
    net = nets.image_net()
    x = rule(net, draw, net.relu(net.conv("image", 16)))
    y = net.head(net.relu(net.conv(x, 12)))
    return ir.from_proto(
        exported_forms.finished(
            net, [exported_forms.info("image", shape=["N", 3, "h", "w"])],
            [exported_forms.info(y, shape=["N", 10])], {}, rule.__name__,
        ).model
    )  # fmt: skip


def groups(model: ir.Model) -> set[str]:
    return {g.name for g in evidence_for(model, nets.samples(model, 4, sequence=8)).channels.groups}


@pytest.mark.parametrize("rule", exported_forms.FORMS, ids=lambda rule: rule.__name__)
def test_cut_models_compute_what_the_mask_means(rule: exported_forms.Rule) -> None:
    @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data(), st.integers(0, 100))
    def check(data: st.DataObject, seed: int) -> None:
        assert_masked_parity(through(rule, data.draw), 0.4, seed, sequence=8)

    check()


@pytest.mark.parametrize(
    ("rule", "choices"),
    [
        (exported_forms.resized_to, ["nearest", False]),
        (exported_forms.padded_to, []),
        (exported_forms.grid_sampled, []),
        (exported_forms.summed_up, [2]),
        (exported_forms.scattered, []),
        (exported_forms.picked, []),
        (exported_forms.zeros_beside, [False, True]),
        (exported_forms.zeros_beside, [True, False, False]),
        (exported_forms.spelled_activation, ["quick"]),
    ],
)
def test_the_first_layer_is_not_left_wide(rule: exported_forms.Rule, choices: list[object]) -> None:
    answers = iter(choices)
    model = through(rule, lambda strategy: next(answers, "nearest"))  # type: ignore[arg-type]
    first = next(n.name for n in model.graph if n.op_type == "Conv")
    assert first in groups(model), evidence_for(model, nets.samples(model, 4, sequence=8)).channels.refused


def test_a_view_of_a_dense_layer_is_cut_by_maps() -> None:
    net = nets.Net()
    hidden = net.op("Gemm", ["z", grammar.floats(net, 12, 16 * 16, gain=0.3), grammar.floats(net, 256)], 256)
    x = net.op("Reshape", [net.relu(hidden), grammar.ints(net, -1, 16, 4, 4)], 16)
    weight = grammar.floats(net, 16, 8, 4, 4, gain=0.1)
    x = net.op("ConvTranspose", [x, weight], 8, strides=[2, 2], pads=[1] * 4, kernel_shape=[4, 4])
    model = net.model(net.head(net.relu(x)), {"z": ["N", 12]}, ["N", 10])
    evidence = evidence_for(model, nets.samples(model, 4))
    (maps,) = [g for g in evidence.channels.groups if g.size == 16]
    assert maps.block == 16
    assert_masked_parity(model, 0.4)


def test_pads_of_a_computed_chain_leave_channels_alone() -> None:
    """What torch writes for F.pad by a computed amount: a chain that is constant but for one element."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    y = net.relu(net.conv(x, 16, stride=2))
    sizes = [
        net.op("Gather", [net.op("Shape", [v], 0), net.constant(np.array(2, np.int64))], 0, axis=0) for v in (x, y)
    ]
    by = net.op("Unsqueeze", [net.op("Sub", sizes, 0), grammar.ints(net, 0)], 0)
    given_ = net.op("Concat", [grammar.ints(net, 0), by, grammar.ints(net, 0), by], 0, axis=0)
    zeros = net.op(
        "ConstantOfShape", [grammar.ints(net, 4)], 0, value=helper.make_tensor("v", TensorProto.INT64, [1], [0])
    )
    pairs = net.op("Reshape", [net.op("Concat", [given_, zeros], 0, axis=0), grammar.ints(net, -1, 2)], 0)
    turned = net.op("Slice", [pairs, grammar.ints(net, -1), grammar.ints(net, -(2**62)), grammar.ints(net, 0),
                              grammar.ints(net, -1)], 0)  # fmt: skip
    pads = net.op("Reshape", [net.op("Transpose", [turned], 0, perm=[1, 0]), grammar.ints(net, -1)], 0)
    padded = net.op("Pad", [y, net.op("Cast", [pads], 0, to=TensorProto.INT64)], 16)
    model = net.model(net.head(net.relu(net.add(padded, x))), {"image": ["N", 3, "h", "w"]}, ["N", 10])
    assert evidence_for(model, nets.samples(model, 4, sequence=8)).channels.groups
    assert_masked_parity(model, 0.4, sequence=8)


def test_a_computed_value_that_is_expanded_to_the_shape_of_channels_is_cut_with_them() -> None:
    """cat([x, mask.expand_as(x)], 1): a mask of one channel, repeated for each."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    mask = net.op("ReduceMean", ["image"], 1, axes=[1], keepdims=1)
    wide = net.op("Expand", [mask, net.op("Shape", [x], 0)], 16)
    model = net.model(net.head(net.relu(net.conv(net.concat(x, wide), 12))), nets.IMAGE, ["N", 10])
    assert {g.size for g in evidence_for(model, nets.samples(model, 4)).channels.groups} == {16, 12}
    assert_masked_parity(model, 0.4)

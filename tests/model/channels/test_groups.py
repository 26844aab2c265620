"""Channel groups: which channels belong together, and which cannot be removed and why."""

from __future__ import annotations

import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model import read
from onnxpress.model.channels import removal as rm
from tests import nets
from tests.model.channels.helpers import assert_masked_parity, heads

pytestmark = pytest.mark.unit


def test_heads_and_their_dimensions_are_groups() -> None:
    facts = evidence_for(heads(), None).channels
    assert [(g.size, g.block, g.internal) for g in facts.groups] == [(3, 4, True), (4, 3, True), (4, 3, True)]
    assert all(r.reason.startswith("graph output") for r in facts.refused) and len(facts.refused) == 1


def test_a_size_used_in_a_computation_stays() -> None:
    """1/sqrt(d) computed from the shape: fewer dimensions of query and key would change the scale."""
    model = heads(scale="computed")
    facts = evidence_for(model, None).channels
    assert [(g.size, g.block) for g in facts.groups] == [(3, 4), (4, 3)], "heads, and the dimensions of the values"
    assert_masked_parity(model, 0.5)


def test_residual_stream_and_stem_are_one_group() -> None:
    facts = evidence_for(nets.residual(width=16, blocks=2), None).channels
    stream = [g for g in facts.groups if not g.internal]
    assert [g.size for g in stream] == [16]
    assert len(stream[0].producers) == 3
    assert [g.size for g in facts.groups if g.internal] == [16, 16]


def test_output_channels_stay_with_a_reason() -> None:
    facts = evidence_for(nets.residual(), None).channels
    assert any("graph output" in r.reason for r in facts.refused)


def test_grouped_convolution_loses_whole_groups_or_one_position_of_each() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    x = net.relu(net.conv(x, 32, group=4))
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, None)
    facts = evidence.channels
    assert [(g.size, g.block) for g in facts.groups] == [(4, 8), (4, 4), (8, 4)]
    cut = rm.remove(evidence.model, facts, {facts.groups[0].name: [1], facts.groups[2].name: [0, 5]})
    conv = [n for n in cut.graph if n.op_type == "Conv"][1]
    assert read.int_attribute(conv, "group", 1) == 3
    assert conv.inputs[1].const_value.shape.numpy() == (18, 4, 3, 3)  # type: ignore[union-attr]
    assert_masked_parity(model, 0.5)


def test_unknown_operator_freezes() -> None:
    net = nets.image_net()
    x = net.op("LpNormalization", [net.conv("image", 16)], 16, axis=1)
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    facts = evidence_for(model, None).channels
    assert not facts.groups
    assert any("LpNormalization" in r.reason for r in facts.refused)

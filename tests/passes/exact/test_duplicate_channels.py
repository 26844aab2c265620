"""Channels that are multiples of another one are merged."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model import edit, read
from onnxpress.model.parameter_count import parameters
from onnxpress.passes.exact.simplify import SIMPLIFY
from tests import grammar, nets
from tests.passes.exact.helpers import Change, assert_same, chain, changed, reduced

pytestmark = pytest.mark.unit


def copied(factor: float) -> Change:
    def change(weight: np.ndarray, bias: np.ndarray) -> None:
        weight[16:] = factor * weight[:16]
        bias[16:] = factor * bias[:16]

    return change


@pytest.mark.parametrize(
    ("act", "factor", "removed"),
    [
        ("Relu", 1.0, True), ("Relu", 0.3, True), ("LeakyRelu", 7.7, True), ("HardSwish", 1.0, True),
        ("HardSwish", 0.3, False), ("Sigmoid", 2.0, False), ("Relu", -1.0, False),
    ],
)  # fmt: skip
def test_duplicate_channels_are_merged(act: str, factor: float, removed: bool) -> None:
    """Equal channels are merged behind any operator, scaled ones only behind positively homogeneous operators."""
    model = changed(chain(act), 0, copied(factor))
    done, notes = reduced(model)
    assert any("merged 16 duplicate channels" in n for n in notes) == removed
    assert (parameters(done) < parameters(model)) == removed
    assert_same(model, done)


def test_residual_stream_channels_must_be_equal_in_all_producers() -> None:
    model = nets.residual(width=32)
    stem = changed(model, 0, copied(1.0))
    assert not any("duplicate" in n for n in reduced(stem)[1])
    producers = [i for i, n in enumerate(n for n in stem.graph if n.op_type in read.WEIGHTED)]
    both = stem
    for number in producers[1:]:
        node = [n for n in both.graph if n.op_type in read.WEIGHTED][number]
        weight = read.constant(node.inputs[1])
        if weight is not None and weight.shape[0] == 32:
            both = changed(both, number, copied(1.0))
    done, notes = reduced(both)
    assert any("duplicate" in n for n in notes)
    assert_same(both, done)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(grammar.networks(), st.sampled_from([1.0, 1.0, 0.5, 3.0]), st.integers(0, 99))
def test_merging_duplicates_of_random_networks_keeps_the_outputs(model: ir.Model, factor: float, seed: int) -> None:
    """Merging duplicate channels of random networks keeps the outputs.

    Half of the channels of each group are made equal to another channel, or in its producer a multiple of it.
    """
    evidence = evidence_for(model, nets.samples(model, 4))
    work = evidence.model.clone()
    nodes = {n.name: n for n in work.graph}
    for group in evidence.channels.groups:
        for place in group.slices if not group.sliced else ():
            array = read.constant(nodes[place.node].inputs[place.operand])
            if place.role == "in" or array is None or array.dtype != np.float32:
                continue
            rows = np.array(np.moveaxis(array, place.axis, 0))
            for channel in range(group.size // 2, group.size):
                times = factor if place.node == group.producers[0] else 1.0
                rows[place.positions[channel]] = (
                    np.float32(times) * rows[place.positions[seed % max(group.size // 2, 1)]]
                )
            edit.set_input(
                work,
                nodes[place.node],
                place.operand,
                np.moveaxis(rows, 0, place.axis),
                f"{place.node}_{place.operand}_same",
            )
    again = evidence_for(work, evidence.data)
    done = SIMPLIFY.apply(again, [{"merge": "alike"}, {"remove": "idle"}])
    found = nets.outputs(work, evidence.data), nets.outputs(done.model, evidence.data)
    np.testing.assert_allclose(
        *found, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(found[0]).max()))
    )  # sums in another order
    if factor == 1.0 and _has_plain_group(again):
        assert any("duplicate" in n for n in done.notes)


def _has_plain_group(evidence: Evidence) -> bool:
    """Whether some group is produced and read by plain layers only, whose duplicates must be merged."""
    nodes = {n.name: n for n in evidence.model.graph}
    return any(
        g.size > 1 and not g.sliced and g.readers and all(nodes[p.node].op_type in ("Conv", "Gemm") for p in g.slices)
        for g in evidence.channels.groups
    )

"""The cost model predicts the cost of the pruned model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model.channels.removal import remove
from onnxpress.model.counts import macs
from onnxpress.passes.pruning.allocation import plan_pruning
from onnxpress.passes.pruning.cost_model import SECONDS, CostModel, node_costs
from onnxpress.passes.pruning.options import PruneOptions
from tests import grammar, nets
from tests.model.channels.helpers import heads


def pruned_costs(evidence: Evidence, gone: dict[str, int]) -> dict[str, float]:
    """Costs of the model without the first channels of each group."""
    pruned = remove(evidence.model, evidence.channels, {n: list(range(k)) for n, k in gone.items() if k})
    after = evidence_for(pruned, None)
    return {
        "macs": float(sum(macs(after.model, after.trace).values())),
        "params": sum(node_costs(after)["params"].values()),
    }


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(grammar.networks(), st.integers(0, 99))
def test_predicted_costs_are_those_of_the_pruned_model(model: ir.Model, seed: int) -> None:
    """For random networks and random removals from groups without common positions."""
    evidence = evidence_for(model, None)
    rng = np.random.default_rng(seed)
    groups = [g for g in evidence.channels.groups if not g.sliced]
    gone = {g.name: int(rng.integers(0, g.size)) for g in groups}
    cost_model = CostModel.from_evidence(evidence, gone, node_costs(evidence))
    cost_model.set_all_removed(gone)
    true = pruned_costs(evidence, gone)
    assert cost_model.total("macs") == pytest.approx(true["macs"], rel=0.02)
    assert cost_model.total("params") == pytest.approx(true["params"], rel=0.02)


def test_the_weights_of_a_depthwise_layer_are_counted() -> None:
    """Also if one channel remains, and the layer is no longer depthwise."""
    net = nets.image_net()
    x = net.relu(net.depthwise(net.relu(net.conv("image", 4))))
    evidence = evidence_for(net.model(net.head(x), nets.IMAGE, ["N", 10]), None)
    (name,) = [g.name for g in evidence.channels.groups]
    assert sum(node_costs(evidence)["params"].values()) == 4 * 27 + 4 * 9 + 4 * 10
    cost_model = CostModel.from_evidence(evidence, [name], node_costs(evidence))
    cost_model.set_all_removed({name: 3})
    assert cost_model.total("params") == pruned_costs(evidence, {name: 3})["params"] == 27 + 9 + 10


def test_the_weights_of_a_recurrent_layer_are_counted() -> None:
    """W and R both count if only one of them is narrowed; the bias, of rank 2, does not."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 8))
    tokens = net.op("Transpose", [net.op("Reshape", [x, grammar.ints(net, 0, 8, 64)], 8)], 8, perm=[2, 0, 1])
    weights = [grammar.floats(net, 1, 12, n) for n in (8, 4)]
    y = net.op("GRU", [tokens, *weights, grammar.floats(net, 1, 24)], 4, hidden_size=4)
    y = net.op("ReduceMean", [net.op("Transpose", [y], 4, perm=[2, 0, 1, 3])], 4, axes=[1, 2], keepdims=0)
    model = net.model(grammar.dense(net, y, 10), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, None)
    names = [g.name for g in evidence.channels.groups]
    assert len(names) == 2
    for found in (names, names[:1], names[1:]):
        gone = {n: evidence.channels.group(n).size // 2 for n in found}
        cost_model = CostModel.from_evidence(evidence, gone, node_costs(evidence))
        cost_model.set_all_removed(gone)
        assert {k: cost_model.total(k) for k in ("macs", "params")} == pytest.approx(pruned_costs(evidence, gone))


def test_parts_of_an_axis_add_up() -> None:
    """A shortcut padded with zero channels: the group has half of the axis, so that half of it is a quarter."""
    evidence = evidence_for(nets.padded_shortcut(width=32), None)
    costs = node_costs(evidence)
    assert any(not g.internal for g in evidence.channels.groups)
    for group in evidence.channels.groups:
        gone = {group.name: group.size // 2}
        cost_model = CostModel.from_evidence(evidence, gone, costs)
        cost_model.set_all_removed(gone)
        true = pruned_costs(evidence, gone)
        assert cost_model.total("macs") == pytest.approx(true["macs"], rel=1e-6), group.name


def test_widening_restores_the_costs() -> None:
    evidence = evidence_for(nets.residual(width=32), None)
    costs = node_costs(evidence)
    names = [g.name for g in evidence.channels.groups]
    cost_model = CostModel.from_evidence(evidence, names, costs)
    before = dict(cost_model.costs["macs"])
    for name in names:
        saved = cost_model.saving(name, 3, "macs")
        total = cost_model.total("macs")
        cost_model.set_removed(name, 3)
        assert cost_model.total("macs") == pytest.approx(total - saved)
    other = cost_model.copy()
    for name in reversed(names):
        other.set_removed(name, 0)
    assert other.costs["macs"] == pytest.approx(before)
    assert cost_model.removed == dict.fromkeys(names, 3), "a copy goes its own way"


def test_heads_and_their_dimensions_multiply() -> None:
    evidence = evidence_for(heads(), None)
    sliced = [g for g in evidence.channels.groups if g.sliced]
    assert len(sliced) >= 2
    for group in sliced:
        gone = {group.name: group.size // 2}
        cost_model = CostModel.from_evidence(evidence, gone, node_costs(evidence))
        cost_model.set_all_removed(gone)
        assert cost_model.total("params") == pytest.approx(pruned_costs(evidence, gone)["params"], rel=1e-6), group.name


def test_a_goal_is_not_overshot() -> None:
    """Surplus of the last step is undone: the result is within the smallest step of the goal."""
    model = nets.residual(width=64, blocks=3)
    evidence = evidence_for(model, nets.samples(model, 16))
    for goal in (0.9, 0.7, 0.6, 0.5, 0.3):
        actions = plan_pruning(evidence, PruneOptions(macs=goal))
        gone = {d["group"]: len(d["remove"]) for d in actions}
        whole = float(sum(macs(evidence.model, evidence.trace).values()))
        left = pruned_costs(evidence, gone)["macs"] / whole
        assert left <= 1.002 * goal
        cost_model = CostModel.from_evidence(evidence, gone, node_costs(evidence))
        cost_model.set_all_removed(gone)
        assert gone
        step = min(_with_one_step_undone(cost_model, n) / whole - cost_model.total("macs") / whole for n in gone)
        assert left + step > goal, (goal, left, step)


def _with_one_step_undone(cost_model: CostModel, name: str) -> float:
    """Multiply-accumulates with one step of a group undone (steps of 16 channels, or all)."""
    trial = cost_model.copy()
    trial.set_removed(name, max(0, trial.removed[name] - 16))
    return trial.total("macs")


def test_the_time_of_a_convolution_falls_in_steps_of_blocks() -> None:
    net = nets.image_net()
    x = net.relu(net.conv(net.relu(net.conv("image", 48)), 48))
    evidence = evidence_for(net.model(net.head(x), nets.IMAGE, ["N", 10]), None)
    evidence.machine = replace(evidence.machine, granularity=16)
    first, second = (n.name or "" for n in evidence.model.graph if n.op_type == "Conv")
    seconds = {SECONDS: {first: 1.0, second: 9.0}}
    costs = CostModel.from_evidence(evidence, [first], seconds)
    assert [costs.saving(first, count, SECONDS) for count in (15, 16, 31)] == pytest.approx([0.0, 10 / 3, 10 / 3])
    costs.set_removed(first, 32)
    assert costs.total(SECONDS) == pytest.approx(10 / 3)
    costs.set_removed(first, 40)
    assert costs.total(SECONDS) == pytest.approx(10 / 3)
    work = CostModel.from_evidence(evidence, [first], {"macs": seconds[SECONDS]})
    assert work.saving(first, 12, "macs") == pytest.approx(2.5)

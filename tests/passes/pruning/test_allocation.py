"""Allocation: counted goals, a measured speed-up, criteria, and ignored nodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model.counts import macs
from onnxpress.passes.pruning.allocation import candidate_groups, loss_sensitivities, plan_pruning
from onnxpress.passes.pruning.cost_model import node_costs
from onnxpress.passes.pruning.error_curves import CRITERIA, error_curves
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.pruning.prune import PRUNE
from onnxpress.passes.pruning.prune_to_speedup import prune_to_speedup
from onnxpress.runtime.machine import this_machine
from tests import nets


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    model = nets.residual(width=16, blocks=2)
    return evidence_for(model, nets.samples(model, 16), replace(this_machine(), granularity=4))


def left(evidence: Evidence, actions: list[dict[str, object]], what: str) -> float:
    """The remaining share of a cost, counted on the pruned model."""
    done = evidence_for(PRUNE.apply(evidence, [*actions, {"refit": "none"}]).model, None)
    if what == "macs":
        return sum(macs(done.model, done.trace).values()) / sum(macs(evidence.model, evidence.trace).values())
    return sum(node_costs(done)["params"].values()) / sum(node_costs(evidence)["params"].values())


@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("spread", ["global", "uniform"])
def test_the_goal_is_met(evidence: Evidence, what: str, spread: str) -> None:
    actions = plan_pruning(evidence, PruneOptions(allocation=spread, **{what: 0.6}))
    assert 0.45 < left(evidence, actions, what) <= 0.63


def test_ignored_nodes_keep_their_channels(evidence: Evidence) -> None:
    names = [g.name for g in evidence.channels.groups]
    kept = plan_pruning(evidence, PruneOptions(0.5, allocation="uniform", ignore=(names[1],)))
    assert {d["group"] for d in kept} == set(names) - {names[1]}
    assert not plan_pruning(evidence, PruneOptions(0.5, ignore=("*",)))


def test_widths_lie_on_the_kernel_grid(evidence: Evidence) -> None:
    actions = plan_pruning(evidence, PruneOptions(0.3, allocation="uniform"))
    assert actions
    assert all(len(a["remove"]) % 4 == 0 for a in actions)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_orders_all_channels_but_one(evidence: Evidence, criterion: str) -> None:
    curves = error_curves(evidence, criterion=criterion)
    assert set(curves) == {g.name for g in evidence.channels.groups}
    for name, curve in curves.items():
        assert sorted({*curve.order, *range(evidence.channels.group(name).size)}) == list(
            range(evidence.channels.group(name).size)
        )
        assert len(curve.order) == len(set(curve.order)) == evidence.channels.group(name).size - 1
        assert np.all(np.diff(curve.error) >= -1e-12)


def test_a_redundant_channel_is_removed_first() -> None:
    """A channel with zero weights (magnitude), without readers (activation), or with a duplicate (fpgm)."""
    from onnxpress.model import edit, read

    model = nets.residual(width=16, blocks=1)
    conv, reader = [n for n in model.graph if n.op_type == "Conv"][1:3]
    made, read_ = (np.array(read.constant(n.inputs[1])) for n in (conv, reader))
    made[3] = 0
    made[5] = made.mean(0)
    read_[:, 7] = 0
    edit.set_input(model, conv, 1, made, "made")
    edit.set_input(model, reader, 1, read_, "read")
    found = evidence_for(model, nets.samples(model, 16))
    first = {c: error_curves(found, criterion=c)[conv.name or ""].order[:2] for c in CRITERIA}
    assert first["magnitude"][0] == first["magnitude-l1"][0] == 3
    assert 7 in first["activation"] and 7 in first["second-order"]
    assert set(first["fpgm"]) == {3, 5}


@pytest.mark.slow
@pytest.mark.alone
def test_a_speedup_is_measured() -> None:
    evidence = evidence_for(nets.residual(width=64, blocks=2), None)
    notes: list[str] = []
    actions = prune_to_speedup(evidence, PruneOptions(speedup=1.3), evidence.model, notes)
    assert actions and "speed-up before refitting" in notes[0]
    assert left(evidence, actions, "macs") < 0.95
    prune_to_speedup(evidence, PruneOptions(speedup=1000.0), evidence.model, notes)
    assert "cannot be reached" in notes[1]


def test_what_there_is_no_time_to_measure_is_told_from_gains() -> None:
    """Measured for one group only, the others come out as their gains say, in the scale of the measured one."""
    model = nets.residual(width=64, blocks=3)
    evidence = evidence_for(model, nets.samples(model, 32))
    picked = candidate_groups(evidence, PruneOptions(0.5, scope="internal"))
    nothing = dict.fromkeys(picked, 0)
    measured = loss_sensitivities(evidence, picked, nothing)
    turns = iter([True, False])
    told = loss_sensitivities(evidence, picked, nothing, lambda: next(turns))
    same = [name for name in measured if told[name] == measured[name]]
    assert len(same) == 1 and len(measured) == 3
    for name in measured:
        assert 0.2 < told[name] / measured[name] < 5

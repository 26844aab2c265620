"""What is pruned: where time is saved, by the times of single units, and what is left of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxpress.measure.cache import Cache
from onnxpress.measure.evidence import evidence_for
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.plan.plan import new_plan
from onnxpress.search import pruning_base
from onnxpress.search.pruning_base import PruningBase
from tests import nets

pytestmark = pytest.mark.unit


def base(slow: str, monkeypatch: pytest.MonkeyPatch) -> PruningBase:
    """A network of which one convolution takes nearly all the time."""
    model = nets.residual(width=64)
    evidence = replace(evidence_for(model, nets.samples(model, 32)), cache=Cache(None))
    nodes = [n.name or "" for n in evidence.model.graph if n.op_type == "Conv"]
    times = {name: 1.0 if name == slow or (not slow and name == nodes[0]) else 0.01 for name in nodes}
    monkeypatch.setattr(pruning_base, "node_seconds", lambda model, sizes: times)
    return PruningBase(new_plan(model, evidence.data, 0), evidence, by_latency=True)


def test_channels_go_where_the_time_is(monkeypatch: pytest.MonkeyPatch) -> None:
    first = base("", monkeypatch)
    inner = [g for g in first.evidence.channels.groups if g.internal]
    assert len(inner) == 2
    for group in inner:
        slow = next(p.node for p in group.slices if p.role == "out")
        chosen = base(slow, monkeypatch).actions(PruneOptions(0.3, scope="internal"))
        removed = {a["group"]: len(a["remove"]) for a in chosen}
        assert removed.get(group.name, 0) == max(removed.values()) > 0


def test_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = base("", monkeypatch)
    nothing = ground.remaining_time([])
    assert nothing == pytest.approx(1.0)
    actions = ground.actions(PruneOptions(0.5))
    left = ground.remaining_time([*actions, {"refit": "least-squares"}])
    assert left is not None and 0.05 < left < 0.95
    ground.by_latency = False
    assert PruningBase(ground.plan, ground.evidence).remaining_time(actions) is None


def test_what_is_known_of_the_whole_holds_with_blocks_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = base("", monkeypatch)
    options = PruneOptions(0.3, scope="internal")
    known = whole.actions(options)
    part = PruningBase(whole.plan, whole.evidence, by_latency=True, whole=whole)
    monkeypatch.setattr(pruning_base, "error_curves", lambda evidence: pytest.fail("they are known"))
    assert part.actions(options) == known


def test_groups_of_other_sizes_are_looked_at_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = base("", monkeypatch)
    whole.actions(PruneOptions(0.3, scope="internal"))
    model = nets.residual(width=32)
    evidence = replace(evidence_for(model, nets.samples(model, 32)), cache=Cache(None))
    part = PruningBase(whole.plan, evidence, by_latency=False, whole=whole)
    assert part.actions(PruneOptions(0.5, scope="internal"))
    assert {*(part._curves or {})} == {g.name for g in evidence.channels.groups}

"""inspect: how the time for proposals is divided among passes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from onnxpress.api import inspection
from onnxpress.measure.evidence import Evidence
from onnxpress.passes.core.contract import Applied, Planned, Proposal
from onnxpress.passes.core.options import PassOptions
from onnxpress.passes.rewriting import family_selection
from onnxpress.runtime.time_limit import check_time
from tests import nets
from tests.passes.rewriting.test_family_selection import made_up
from tests.passes.rewriting.test_rewrite import slow_net


@dataclass
class Slow:
    """Stands for a pass that computes for a while before it proposes anything."""

    name: str
    seconds: float
    asked: list[str] = field(default_factory=list)
    exact: bool = False
    needs_data: bool = False
    extra: str | None = None
    Options: type[PassOptions] = PassOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal]:
        self.asked.append(self.name)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            check_time()
        yield Proposal("unit", {"unit": self.name}, loss=None)

    def plan(self, evidence: Evidence, options: PassOptions) -> Planned:
        raise AssertionError

    def apply(self, evidence: Evidence, actions: object) -> Applied:
        raise AssertionError


def reports(monkeypatch: pytest.MonkeyPatch, passes: list[Slow], seconds: float) -> dict[str, inspection.PassReport]:
    monkeypatch.setattr(inspection, "all_passes", lambda: {p.name: p for p in passes})
    monkeypatch.setattr(inspection, "package_of", lambda name: "tests")
    return {r.name: r for r in inspection.inspect(nets.mlp(), time_budget=seconds).passes}


def test_a_slow_pass_does_not_use_up_the_time_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = reports(monkeypatch, [Slow("endless", 1e9), Slow("quick", 0), Slow("another", 0)], 1.0)
    assert found["endless"].note == "no time left" and found["endless"].proposals == 0
    assert found["quick"].proposals == found["another"].proposals == 1
    assert not found["quick"].note and found["quick"].loss is None


def test_a_pass_that_needs_more_than_its_part_gets_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow("slow", 0.7)
    found = reports(monkeypatch, [slow, *(Slow(f"quick{i}", 0) for i in range(5))], 2.0)
    assert found["slow"].proposals == 1 and not found["slow"].note
    assert len(slow.asked) == 2


def test_what_is_written_slowly_is_named_with_its_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"activations": 1.3, "vector-kernels": 0.9}
    compare = made_up(lambda names: math.prod(speeds.get(n, 1.0) for n in names))
    monkeypatch.setattr(family_selection, "compare_latency", compare)
    facts = inspection.inspect(slow_net(), time_budget=60)
    by_name = {found.family: found for found in facts.rewrites}
    assert by_name["activations"].kept and not by_name["vector-kernels"].kept
    assert by_name["activations"].nodes >= 4 and by_name["activations"].alone.speedup == 1.3
    assert facts.rewritten is not None and facts.rewritten.speedup == 1.3
    assert ("written faster", "1.30x as fast") in facts.facts()


def test_without_time_or_slow_forms_nothing_is_timed() -> None:
    assert inspection.inspect(slow_net(), time_budget=0).rewrites == ()
    plain = inspection.inspect(nets.residual(), time_budget=30)
    assert plain.rewrites == () and plain.rewritten is None

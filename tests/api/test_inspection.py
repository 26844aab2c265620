"""inspect: how the time for proposals is divided among passes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from onnxpress.api import inspection
from onnxpress.measure.evidence import Evidence
from onnxpress.passes.core.contract import Applied, Planned, Proposal
from onnxpress.passes.core.options import PassOptions
from onnxpress.runtime.time_limit import check_time
from tests import nets


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

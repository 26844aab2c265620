"""The unit latency table: timed once, found again by other models and other processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxpress.measure import unit_latency
from onnxpress.measure.cache import Cache
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.unit_latency import UnitLatencies, fused_units, node_seconds
from onnxpress.runtime.session import SessionSettings, sessions_with
from tests import nets

pytestmark = pytest.mark.unit


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts what is timed, in place of timing it."""
    count: list[int] = []

    def counted(part: object, sizes: object) -> float:
        count.append(1)
        return float(len(count))

    monkeypatch.setattr(unit_latency, "_timed", counted)
    return count


def all_units(table: UnitLatencies, width: int = 16) -> dict[str, float]:
    model = nets.residual(width=width)
    evidence = evidence_for(model, nets.samples(model, 2))
    return {n[0].name or "": table.seconds(evidence.model, n, evidence.trace) for n in fused_units(evidence.model)}


def test_equal_units_are_timed_once(timings: list[int], tmp_path: Path) -> None:
    first = all_units(UnitLatencies(Cache(tmp_path)))
    assert len(timings) == len(set(first.values())) < len(first)


def test_other_runs_find_the_table(timings: list[int], tmp_path: Path) -> None:
    table = UnitLatencies(Cache(tmp_path))
    first, timed = all_units(table), len(timings)
    table.keep()
    assert all_units(UnitLatencies(Cache(tmp_path))) == first and len(timings) == timed
    all_units(UnitLatencies(Cache(tmp_path)), width=24)  # another shape
    assert len(timings) > timed


def test_settings_have_tables_of_their_own(timings: list[int], tmp_path: Path) -> None:
    table = UnitLatencies(Cache(tmp_path))
    all_units(table)
    table.keep()
    with sessions_with(SessionSettings(threads=2)):
        assert len(UnitLatencies(Cache(tmp_path))) == 0


def test_tables_of_two_runs_are_joined(timings: list[int], tmp_path: Path) -> None:
    one, two = UnitLatencies(Cache(tmp_path)), UnitLatencies(Cache(tmp_path))
    all_units(one)
    all_units(two, width=24)
    one.keep()
    two.keep()
    assert len(UnitLatencies(Cache(tmp_path))) > max(len(one), len(two))


def test_without_a_cache_nothing_is_kept(timings: list[int]) -> None:
    table = UnitLatencies(Cache(None))
    all_units(table)
    table.keep()
    assert len(UnitLatencies(Cache(None))) == 0


def test_seconds_by_node() -> None:
    model = nets.residual(width=16)
    evidence = evidence_for(model, nets.samples(model, 2))
    found = node_seconds(evidence.model, evidence.trace)
    assert all(s >= 0 for s in found.values()) and max(found.values()) > 0

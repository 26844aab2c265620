"""How many samples candidates are made from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from onnxpress.measure.score import Scorer
from onnxpress.plan.candidate_store import CandidateStore
from onnxpress.plan.plan import CALIBRATION
from onnxpress.runtime.machine import this_machine
from onnxpress.search import calibration_samples
from onnxpress.search.candidate_factory import CandidateFactory
from tests import nets


def factory(budget: float, store: CandidateStore | None = None) -> CandidateFactory:
    model = nets.residual()
    data = nets.samples(model, 200)
    return CandidateFactory(model, data, Scorer(model, data.take(8)), this_machine(), 0, store, budget)


def test_fewer_samples_are_read_where_a_pass_over_them_takes_much_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_samples, "seconds_of_one", lambda model, feeds: 0.005)
    assert factory(math.inf).samples == CALIBRATION
    assert factory(600).samples == CALIBRATION
    assert factory(60).samples == 60
    assert factory(5).samples == 32
    assert len(factory(60).calibrate) == 60
    assert len(factory(60).learn) == 200


def test_a_resumed_run_reads_as_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plans hold the number; the machine may be slower now."""
    for seconds, wanted in ((0.005, 60), (0.01, 60)):
        monkeypatch.setattr(calibration_samples, "seconds_of_one", lambda model, feeds, seconds=seconds: seconds)
        assert factory(60, CandidateStore(tmp_path)).samples == wanted


def test_plans_hold_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_samples, "seconds_of_one", lambda model, feeds: 0.005)
    made = factory(60)
    assert {step.samples for step in made.exact().plan.steps} == {60}
    assert {step.samples for step in made.int8("int8", made.int8_nodes()).plan.steps} == {60}

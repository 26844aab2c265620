"""How many samples candidates are made from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from onnxpress.data.dataset import Splits
from onnxpress.measure.score import Scorer
from onnxpress.plan.candidate_store import CandidateStore
from onnxpress.plan.plan import CALIBRATION
from onnxpress.runtime.machine import this_machine
from onnxpress.search import sample_counts
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.sample_counts import splits_within
from tests import nets


def factory(budget: float, store: CandidateStore | None = None) -> CandidateFactory:
    model = nets.residual()
    data = nets.samples(model, 200)
    return CandidateFactory(model, data, Scorer(model, data.take(8)), this_machine(), 0, store, budget)


def test_fewer_samples_are_read_where_a_pass_over_them_takes_much_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_counts, "seconds_of_one", lambda model, feeds: 0.005)
    assert factory(math.inf).samples == CALIBRATION
    assert factory(600).samples == CALIBRATION
    assert factory(60).samples == 60
    assert factory(5).samples == 32
    assert len(factory(60).calibrate) == 60
    assert len(factory(60).learn) == 200


def test_a_resumed_run_reads_as_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plans hold the number; the machine may be slower now."""
    for seconds, wanted in ((0.005, 60), (0.01, 60)):
        monkeypatch.setattr(sample_counts, "seconds_of_one", lambda model, feeds, seconds=seconds: seconds)
        assert factory(60, CandidateStore(tmp_path)).samples == wanted


def test_plans_hold_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_counts, "seconds_of_one", lambda model, feeds: 0.005)
    made = factory(60)
    assert {step.samples for step in made.exact().plan.steps} == {60}
    assert {step.samples for step in made.int8("int8", made.int8_nodes()).plan.steps} == {60}


def test_fewer_samples_judge_where_scoring_takes_much_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.residual()
    data = nets.samples(model, 2000)
    splits = Splits(data.take(500), data.take(700), data.take(800))
    monkeypatch.setattr(sample_counts, "seconds_of_one", lambda model, feeds: 0.001)
    whole, seconds, notes = splits_within(model, splits, 60)
    assert (len(whole.select), len(whole.validate), notes) == (700, 800, [])
    assert seconds == pytest.approx(0.8)
    monkeypatch.setattr(sample_counts, "seconds_of_one", lambda model, feeds: 0.01)
    fewer, seconds, notes = splits_within(model, splits, 60)
    assert (len(fewer.calibrate), len(fewer.select), len(fewer.validate)) == (500, 256, 512)
    assert seconds == pytest.approx(5.12)
    assert notes == [
        "256 of 700 selection samples: one pass over all takes 7 s",
        "512 of 800 validation samples: one pass over all takes 8 s",
    ]
    monkeypatch.setattr(sample_counts, "seconds_of_one", lambda model, feeds: 10.0)
    assert len(splits_within(model, splits, 60)[0].validate) == 64
    few = Splits(data.take(15), data.take(15), data.take(15), crossed=True)
    assert splits_within(model, few, 60)[0] == few

"""Selection of the loss by short trainings."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

import onnx_ir as ir

from onnxpress.measure.evidence import evidence_for
from onnxpress.train.distillation import loss_selection
from onnxpress.train.distillation.output_heads import OutputHead
from onnxpress.train.distillation.runner import Distillation
from onnxpress.train.settings import TrainingSettings
from tests import nets

pytestmark = pytest.mark.unit

CLASSIFIER = OutputHead("y", "s", "t", 4, True, True)
AUTO = TrainingSettings(features="auto", lr=1e-3, batch=8)


def pairs_of(found: list[TrainingSettings]) -> list[tuple[str, str]]:
    return [(s.loss, s.features) for s in found]


def test_candidates_of_auto() -> None:
    whole = [("mse", "mse"), ("blend", "mse"), ("mse", "none"), ("blend", "none")]
    assert pairs_of(loss_selection.loss_candidates(AUTO, [CLASSIFIER], paired=True)) == whole
    assert pairs_of(loss_selection.loss_candidates(AUTO, [replace(CLASSIFIER, is_classifier=False)], paired=True)) == [
        ("mse", "mse"),
        ("mse", "none"),
    ]
    assert pairs_of(loss_selection.loss_candidates(AUTO, [CLASSIFIER], paired=False)) == [
        ("mse", "mse"),
        ("blend", "mse"),
    ]
    assert pairs_of(loss_selection.loss_candidates(TrainingSettings(loss="kd"), [CLASSIFIER], paired=True)) == [
        ("kd", "mse")
    ]


def job() -> Distillation:
    model = nets.residual(width=8, blocks=1)
    data = nets.samples(model, 24)
    student, teacher = (evidence_for(model, data) for _ in range(2))
    made = Distillation(student, teacher, data, AUTO)
    made.output_heads = [replace(h, is_classifier=True) for h in made.output_heads]
    return made


def test_the_lowest_error_is_selected_and_the_settings_are_restored() -> None:
    some = job()
    errors = iter([0.4, 0.2])
    seen: list[float] = []

    def error(model: ir.Model) -> float:
        return next(errors)

    found = loss_selection.select_loss(some, 500, error, lambda stage, fraction: seen.append(fraction))
    assert (found.loss, found.features) == ("blend", "mse")
    assert some.settings == AUTO
    assert seen == [0.5, 1.0]


def test_no_trials_in_short_trainings() -> None:
    found = loss_selection.select_loss(job(), 100, lambda model: pytest.fail("evaluated"))
    assert (found.loss, found.features) == ("mse", "mse")

"""What `auto` stands for, told by short trainings."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

import onnx_ir as ir

from onnxpress.measure.evidence import evidence_for
from onnxpress.train.distillation import loss_selection
from onnxpress.train.distillation.output_heads import Head
from onnxpress.train.distillation.runner import Distillation
from onnxpress.train.settings import Settings
from tests import nets

SURE = Head("y", "s", "t", 4, True, True)
AUTO = Settings(features="auto", lr=1e-3, batch=8)


def pairs_of(found: list[Settings]) -> list[tuple[str, str]]:
    return [(s.loss, s.features) for s in found]


def test_what_auto_may_stand_for() -> None:
    whole = [("mse", "mse"), ("blend", "mse"), ("mse", "none"), ("blend", "none")]
    assert pairs_of(loss_selection.recipes(AUTO, [SURE], paired=True)) == whole
    assert pairs_of(loss_selection.recipes(AUTO, [replace(SURE, sure=False)], paired=True)) == [
        ("mse", "mse"),
        ("mse", "none"),
    ]
    assert pairs_of(loss_selection.recipes(AUTO, [SURE], paired=False)) == [("mse", "mse"), ("blend", "mse")]
    assert pairs_of(loss_selection.recipes(Settings(loss="kd"), [SURE], paired=True)) == [("kd", "mse")]


def job() -> Distillation:
    model = nets.residual(width=8, blocks=1)
    data = nets.samples(model, 24)
    student, teacher = (evidence_for(model, data) for _ in range(2))
    made = Distillation(student, teacher, data, AUTO)
    made.heads = [replace(h, sure=True) for h in made.heads]
    return made


def test_the_closest_is_chosen_and_the_job_is_as_before() -> None:
    some = job()
    harms = iter([0.4, 0.2])
    seen: list[float] = []

    def harm(model: ir.Model) -> float:
        return next(harms)

    found = loss_selection.chosen(some, 500, harm, seen.append)
    assert (found.loss, found.features) == ("blend", "mse")
    assert some.settings == AUTO
    assert seen == [0.5, 1.0]


def test_where_steps_are_few_nothing_is_tried() -> None:
    found = loss_selection.chosen(job(), 100, lambda model: pytest.fail("looked"))
    assert (found.loss, found.features) == ("mse", "mse")

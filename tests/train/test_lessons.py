"""Lessons: functions of the step, repeated where a student can hardly know them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("torch")

from onnxpress.train import lessons
from onnxpress.train.augment import fields
from onnxpress.train.lessons import Arrays, Lessons, Pool, Teacher
from tests import nets

MODEL = nets.residual(width=8, blocks=1)
DATA = nets.samples(MODEL, 24)


class Counting(Teacher):
    asked = 0

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        self.asked += 1
        return super().__call__(inputs)


def made(steps: int, changes: tuple[str, ...] = ("noise", "mixup")) -> tuple[Lessons, Counting]:
    teacher = Counting(MODEL, [MODEL.graph.outputs[0].name or ""], DATA)
    return Lessons(Pool(DATA), teacher, 8, 3, fields(DATA), changes, steps=steps), teacher


def test_changed_lessons_repeat_and_the_teacher_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "DIFFERENT", 40)
    long, teacher = made(steps=20)
    assert long.period == 6, "two epochs of three batches hold 48 samples"
    heard = [next(iter(long(step))) for step in range(18)]
    assert teacher.asked == 6
    for step in range(12):
        now, later = heard[step], heard[step + 6]
        for name in now.inputs:
            np.testing.assert_array_equal(now.inputs[name], later.inputs[name])
        for name in now.targets:
            np.testing.assert_array_equal(now.targets[name], later.targets[name])
    assert not np.array_equal(heard[0].inputs["image"], heard[3].inputs["image"])


def test_a_resumed_run_hears_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "DIFFERENT", 40)
    whole, later = made(steps=20)[0], made(steps=20)[0]
    first = [next(iter(whole(step))) for step in range(12)]
    for step in (8, 11):
        again = next(iter(later(step)))
        for name, values in first[step].targets.items():
            np.testing.assert_array_equal(values, again.targets[name])


def test_a_short_training_keeps_nothing() -> None:
    short, teacher = made(steps=5)
    for step in (0, 1, 0):
        list(short(step))
    assert teacher.asked == 3

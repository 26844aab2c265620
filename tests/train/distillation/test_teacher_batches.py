"""Lessons: functions of the step, repeated where a student can hardly know them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("torch")

from onnxpress.train.augment import fields
from onnxpress.train.distillation import teacher_batches
from onnxpress.train.distillation.teacher_batches import Arrays, Lessons, Pool, Teacher
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
    monkeypatch.setattr(teacher_batches, "DIFFERENT", 40)
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
    monkeypatch.setattr(teacher_batches, "DIFFERENT", 40)
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


def test_trainings_that_share_a_memory_ask_once() -> None:
    memory = teacher_batches.Memory()
    asked = []
    for changes in (("noise",), ("noise",), ("noise", "mixup")):
        teacher = Counting(MODEL, [MODEL.graph.outputs[0].name or ""], DATA)
        heard = Lessons(Pool(DATA), teacher, 8, 3, fields(DATA), changes, memory=memory)
        asked.append((heard, teacher))
        for step in range(3):
            list(heard(step))
    assert [teacher.asked for _, teacher in asked] == [3, 0, 3], "other changes are other lessons"
    first, second = (next(iter(heard(2))) for heard, _ in asked[:2])
    for name, values in first.targets.items():
        np.testing.assert_array_equal(values, second.targets[name])


def test_a_memory_without_room_forgets() -> None:
    memory, calls = teacher_batches.Memory(room=8), []

    def ask() -> Arrays:
        calls.append(1)
        return {"a": np.zeros(4, np.float32)}

    for _ in range(2):
        memory.recall(("x",), ask)
    assert len(calls) == 2

"""Training batches as functions of the step, and the cache of the teacher's values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("torch")

from onnxpress.train.augment import Augmentation, input_fields
from onnxpress.train.distillation import teacher_batches
from onnxpress.train.distillation.teacher_batches import Arrays, SamplePool, Teacher, TeacherBatches
from tests import nets

pytestmark = pytest.mark.unit

MODEL = nets.residual(width=8, blocks=1)
DATA = nets.samples(MODEL, 24)


class Counting(Teacher):
    calls = 0

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        self.calls += 1
        return super().__call__(inputs)


def make_batches(steps: int, augmentations: tuple[str, ...] = ("noise", "mixup")) -> tuple[TeacherBatches, Counting]:
    teacher = Counting(MODEL, [MODEL.graph.outputs[0].name or ""], DATA)
    return TeacherBatches(
        SamplePool(DATA), teacher, 8, 3, Augmentation(augmentations, input_fields(DATA)), steps=steps
    ), teacher


def test_augmented_batches_repeat_and_use_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_batches, "DISTINCT_SAMPLES", 40)
    long, teacher = make_batches(steps=20)
    assert long.period == 6, "two epochs of three batches hold 48 samples"
    batches = [next(iter(long(step))) for step in range(18)]
    assert teacher.calls == 6
    for step in range(12):
        now, later = batches[step], batches[step + 6]
        for name in now.inputs:
            np.testing.assert_array_equal(now.inputs[name], later.inputs[name])
        for name in now.targets:
            np.testing.assert_array_equal(now.targets[name], later.targets[name])
    assert not np.array_equal(batches[0].inputs["image"], batches[3].inputs["image"])


def test_a_resumed_run_has_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_batches, "DISTINCT_SAMPLES", 40)
    whole, later = make_batches(steps=20)[0], make_batches(steps=20)[0]
    first = [next(iter(whole(step))) for step in range(12)]
    for step in (8, 11):
        again = next(iter(later(step)))
        for name, values in first[step].targets.items():
            np.testing.assert_array_equal(values, again.targets[name])


def test_a_short_training_uses_no_cache() -> None:
    short, teacher = make_batches(steps=5)
    for step in (0, 1, 0):
        list(short(step))
    assert teacher.calls == 3


def test_trainings_that_share_a_memory_ask_once() -> None:
    cache = teacher_batches.TeacherCache()
    calls = []
    for augmentations in (("noise",), ("noise",), ("noise", "mixup")):
        teacher = Counting(MODEL, [MODEL.graph.outputs[0].name or ""], DATA)
        batches = TeacherBatches(
            SamplePool(DATA), teacher, 8, 3, Augmentation(augmentations, input_fields(DATA)), cache=cache
        )
        calls.append((batches, teacher))
        for step in range(3):
            list(batches(step))
    assert [teacher.calls for _, teacher in calls] == [3, 0, 3], "other augmentations are other lessons"
    first, second = (next(iter(batches(2))) for batches, _ in calls[:2])
    for name, values in first.targets.items():
        np.testing.assert_array_equal(values, second.targets[name])


def test_a_memory_without_room_forgets() -> None:
    cache, calls = teacher_batches.TeacherCache(capacity=8), []

    def compute() -> Arrays:
        calls.append(1)
        return {"a": np.zeros(4, np.float32)}

    for _ in range(2):
        cache.get(("x",), compute)
    assert len(calls) == 2

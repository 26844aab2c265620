"""Tasks of each kind, small, and samples for them."""

from __future__ import annotations

import numpy as np

from onnxpress.nas.spaces.io_spec import Task
from onnxpress.train.augmentations import Field

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
PICTURE = Task(Field("image", "picture", 1, (2, 3)), (3, 16, 16), FLOAT, "scores", 10, 16)
LAST = Task(Field("image", "picture", 3, (1, 2)), (16, 16, 3), FLOAT, "scores", 10, 8)
SPECTRUM = Task(Field("sound", "spectrum", 3, (1, 2)), (49, 10, 1), FLOAT, "scores", 12, 16)
ROWS = Task(Field("sound", "spectrum", None, (1, 2)), (40, 8), FLOAT, "scores", 12, 16)
VECTOR = Task(Field("row", "vector"), (20,), FLOAT, "scores", 3, 16)
TOKENS = Task(
    Field("ids", "tokens", None, (1,), 1.0, 0, "mask"), (12,), INT, "scores", 2, 16, (("mask", INT),), 100, 32
)
BARE = Task(Field("ids", "tokens", None, (1,), 1.0, 0), (12,), INT, "scores", 2, 16, (), 100, 32)


def batch(task: Task, count: int = 1, length: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    if task.kind == "tokens":
        ids = {"ids": rng.integers(1, task.vocabulary, (count, length))}
        return ids if not task.others else {**ids, "mask": np.ones((count, length), np.int64)}
    return {task.field.name: rng.standard_normal((count, *task.shape)).astype(np.float32)}

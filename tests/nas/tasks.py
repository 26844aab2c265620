"""Small input and output specifications of each kind, and samples for them."""

from __future__ import annotations

import numpy as np

from onnxpress.nas.spaces.io_spec import IoSpec
from onnxpress.train.augmentations import InputField

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
IMAGE = IoSpec(InputField("image", "image", 1, (2, 3)), (3, 16, 16), FLOAT, "scores", 10, 16)
CHANNELS_LAST = IoSpec(InputField("image", "image", 3, (1, 2)), (16, 16, 3), FLOAT, "scores", 10, 8)
SPECTROGRAM = IoSpec(InputField("sound", "spectrogram", 3, (1, 2)), (49, 10, 1), FLOAT, "scores", 12, 16)
FLAT_SPECTROGRAM = IoSpec(InputField("sound", "spectrogram", None, (1, 2)), (40, 8), FLOAT, "scores", 12, 16)
VECTOR = IoSpec(InputField("row", "vector"), (20,), FLOAT, "scores", 3, 16)
TOKENS = IoSpec(
    InputField("ids", "tokens", None, (1,), 1.0, 0, "mask"), (12,), INT, "scores", 2, 16, (("mask", INT),), 100, 32
)
BARE = IoSpec(InputField("ids", "tokens", None, (1,), 1.0, 0), (12,), INT, "scores", 2, 16, (), 100, 32)


def batch(io_spec: IoSpec, count: int = 1, length: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    if io_spec.kind == "tokens":
        ids = {"ids": rng.integers(1, io_spec.vocabulary, (count, length))}
        return ids if not io_spec.other_inputs else {**ids, "mask": np.ones((count, length), np.int64)}
    return {io_spec.field.name: rng.standard_normal((count, *io_spec.shape)).astype(np.float32)}

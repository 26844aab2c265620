"""Signatures written as text, and the messages of errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Signature, TensorSpec


def sig(*inputs: str, outputs: tuple[str, ...] = ("scores float32 N 10",)) -> Signature:
    """sig("x float32 N 3 8 8"): name, element type, dimensions; "?" is a dynamic dimension without a name."""

    def spec(text: str) -> TensorSpec:
        name, kind, *dims = text.split()
        dtype = np.dtype(object) if kind == "string" else np.dtype(kind)
        shape = None if dims == ["..."] else tuple(int(d) if d.isdigit() else d.replace("?", "") for d in dims)
        return TensorSpec(name, dtype, shape)

    return Signature(tuple(map(spec, inputs)), tuple(map(spec, outputs)))


def refused(action: Callable[[], object], *parts: str) -> InputProblem:
    """The one-line message of an error, which must contain all parts."""
    with pytest.raises(InputProblem) as caught:
        action()
    line = caught.value.line()
    assert "\n" not in line
    for part in parts:
        assert part in line, line
    assert caught.value.exit_code == 2
    return caught.value


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def values(data: Dataset, name: str = "x") -> np.ndarray:
    """All samples of one input, stacked."""
    return np.concatenate([s.inputs[name] for s in data])

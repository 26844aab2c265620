"""Preprocessing applied to arrays: normalization, conversion of NHWC to NCHW, or a user's function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxpress.data.checks import is_float
from onnxpress.data.layout import BatchLayout, Port
from onnxpress.data.preprocessing import Preprocessing
from onnxpress.data.readers.pixels import image_spec, normalize, relayout
from onnxpress.data.readers.user_function import user_code_problem
from onnxpress.errors import InputProblem


@dataclass(frozen=True)
class ArrayPreprocessing:
    """A preprocessing applied to the inputs it concerns: the only one, else the images, else all float inputs."""

    preprocessing: Preprocessing
    ports: tuple[Port, ...]

    def __call__(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """New raw arrays of one sample.  Raises InputProblem."""
        return raw | {p.name: self._one(np.asarray(raw[p.name]), p) for p in self.ports if p.name in raw}

    def _one(self, value: np.ndarray, port: Port) -> np.ndarray:
        if self.preprocessing.function is not None:
            return run_function(self.preprocessing, value)
        if value.dtype.kind not in "biuf" and not is_float(value.dtype):
            return value
        wanted = image_spec(port, self.preprocessing) if value.ndim >= 3 else None
        axis = -1
        if wanted is not None:
            other = relayout(value, wanted)
            value = value if other is None else other
            axis = -3 if wanted.order == "NCHW" else -1
        return normalize(value, self.preprocessing, f"input {port.name!r}", axis)

    def notes(self, raw: dict[str, np.ndarray]) -> list[str]:
        """What is assumed, from the first sample."""
        found = [self.preprocessing.values()]
        for port in self.ports:
            value = np.asarray(raw[port.name])
            wanted = (
                image_spec(port, self.preprocessing)
                if value.ndim >= 3 and self.preprocessing.function is None
                else None
            )
            if wanted is not None and relayout(value, wanted) is not None:
                other = "NHWC" if wanted.order == "NCHW" else "NCHW"
                found.append(f"arrays converted from {other} to {wanted.order}, the layout of the model's input")
        return found


def array_preprocessing_for(preprocessing: Preprocessing, layout: BatchLayout) -> ArrayPreprocessing | None:
    """The preprocessing of arrays; None where it changes nothing.  Raises InputProblem."""
    if preprocessing.name == "raw" and preprocessing.plain:
        return None
    if len(layout.ports) == 1:
        return ArrayPreprocessing(preprocessing, layout.ports)
    if preprocessing.function is not None:
        raise InputProblem(
            "cannot use the preprocessing",
            preprocessing.name,
            f"a function takes one array, the model has {len(layout.ports)} inputs",
            "give a module:function as `data`, which preprocesses the arrays itself",
        )
    floats = tuple(p for p in layout.ports if is_float(p.spec.dtype))
    images = tuple(p for p in floats if len(p.spec.shape or ()) == 4)
    return ArrayPreprocessing(preprocessing, images or floats)


def run_function(preprocessing: Preprocessing, value: np.ndarray) -> np.ndarray:
    """The user's function on one array.  Raises InputProblem where it raises or returns None."""
    assert preprocessing.function is not None
    try:
        result = preprocessing.function(value)
    except Exception as error:
        raise user_code_problem(preprocessing.name, error, "cannot use the preprocessing") from error
    if result is None:
        raise InputProblem(
            "cannot use the preprocessing", preprocessing.name, "the function returned None, expected an array"
        )
    return np.asarray(result)

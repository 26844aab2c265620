"""The calibration samples of test_optimize, for a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnxpress.data.dataset import open_dataset
from onnxpress.data.shipped import calibration_folder
from onnxpress.model.files import load
from onnxpress.model.signature import signature


def calibration() -> Iterator[Any]:
    folder = calibration_folder() / "digits"
    data = open_dataset(folder / "train.npz", signature(load(folder / "digits.onnx"))).take(128)
    return ((sample.inputs, sample.label) for sample in data)

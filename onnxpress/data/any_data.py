"""Samples in any form for the Python functions: every form that `open_dataset` takes, and Python objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset, Splits, open_dataset
from onnxpress.errors import InputProblem
from onnxpress.model.signature import signature

DataSource = str | Path | Mapping[str, np.ndarray] | Iterable[Any] | Dataset


def as_dataset(source: DataSource, model: ir.Model, argument: str = "data") -> Dataset:
    """The samples as a Dataset for a model.

    source:   a path, "module:function", a mapping from input names to arrays [N, ...] (labels under "labels"), an array
              for a model with one input, a Dataset, or an iterable (a list, a generator, a torch DataLoader) of samples
              or batches
    model:    that the samples are for
    argument: name of the caller's argument, for errors

    Raises InputProblem.
    """
    if isinstance(source, (bytes, bytearray, int, float)) or source is None:
        raise _not_data(source, argument)
    if not isinstance(source, (str, os.PathLike, Mapping, Dataset, Iterable)):
        raise _not_data(source, argument)
    if isinstance(source, np.ndarray):
        inputs = signature(model).inputs
        if len(inputs) != 1:
            raise InputProblem(
                "one array for a model with several inputs", f"`{argument}`", f"{len(inputs)} inputs", "give a dict"
            )
        source = {inputs[0].name: source}
    return open_dataset(source, signature(model))


def as_splits(source: DataSource | Splits, model: ir.Model, argument: str = "data") -> Splits:
    """The samples in three disjoint parts; given parts are kept."""
    return source if isinstance(source, Splits) else as_dataset(source, model, argument).split()


def _not_data(source: object, argument: str) -> InputProblem:
    return InputProblem(
        "not samples",
        f"`{argument}`",
        f"got {type(source).__name__}",
        "give a path, a dict of arrays by input name, an iterable of samples or a Dataset",
    )

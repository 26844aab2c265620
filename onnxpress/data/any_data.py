"""Samples in any form for the Python functions: every form that `open_dataset` takes, and Python objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset, Splits, open_dataset
from onnxpress.data.layout import BatchLayout, batch_layout
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
    own = signature(model)
    if isinstance(source, (str, os.PathLike, Mapping, Dataset)):
        return open_dataset(source, own)
    return open_dataset(Unbatched(source, batch_layout(own)), own)


class Unbatched:
    """The samples of an iterable of samples or batches, such as a torch DataLoader; it can be read again where that
    can."""

    def __init__(self, batches: Iterable[Any], layout: BatchLayout) -> None:
        self._batches = list(batches) if iter(batches) is batches else batches
        self._layout = layout

    def __iter__(self) -> Iterator[Any]:
        for item in self._batches:
            yield from self._split(item)

    def _split(self, item: Any) -> Iterator[Any]:
        """The samples of one item; the item itself where it is no batch."""
        inputs, label = item, None
        pair = isinstance(item, (tuple, list)) and len(item) == 2 and not np.isscalar(item[0])
        if pair:
            inputs, label = item
        elif isinstance(item, list) and len(item) == 1:
            inputs = item[0]
        ports = {port.name: port for port in self._layout.ports}
        named = dict(inputs) if isinstance(inputs, Mapping) else {next(iter(ports)): inputs}
        count = self._count(named)
        if count is None:
            yield (inputs, label) if pair else inputs
            return
        labels = None if label is None else np.asarray(label)
        for index in range(count):
            part = {
                name: np.take(np.asarray(value), [index], axis=port.axis)
                if (port := ports.get(name)) is not None and port.axis is not None
                else np.asarray(value)[index]
                if port is None and np.ndim(value) and len(value) == count
                else value
                for name, value in named.items()
            }
            yield part if labels is None else (part, labels[index])

    def _count(self, named: Mapping[str, Any]) -> int | None:
        """The number of samples in a batch; None for one sample, or what is no array of the right rank."""
        for port in self._layout.ports:
            value = named.get(port.name)
            if value is None or port.axis is None or port.spec.shape is None:
                continue
            shape = np.shape(value)
            if len(shape) == len(port.spec.shape) and shape[port.axis] > 1:
                return int(shape[port.axis])
        return None


def as_splits(source: DataSource | Splits, model: ir.Model, argument: str = "data") -> Splits:
    """The samples in three disjoint parts; given parts are kept."""
    return source if isinstance(source, Splits) else as_dataset(source, model, argument).split()


def as_parts(source: DataSource | Splits, model: ir.Model) -> Splits:
    """The samples in three disjoint parts, or in two halves where they are few; given parts are kept."""
    return source if isinstance(source, Splits) else as_dataset(source, model).parts()


def _not_data(source: object, argument: str) -> InputProblem:
    return InputProblem(
        "not samples",
        f"`{argument}`",
        f"got {type(source).__name__}",
        "give a path, a dict of arrays by input name, an iterable of samples or a Dataset",
    )

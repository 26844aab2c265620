"""Inputs made up from the signature alone: for checking that a model runs, tracing shapes, and timing
without data.

They are sensible enough for a model to run on (ids inside small vocabularies, masks open); what it answers
means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxpress.data.checks import integer_limits, is_float, is_integer, is_text
from onnxpress.data.dataset import Dataset, wrap
from onnxpress.data.layout import Layout, Port, layout
from onnxpress.data.source import Loaded, Source
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Dim, Signature

_SEQUENCE = 16
_SPATIAL = 64
_CHANNELS = 3
_VOCABULARY = 100


class Synthetic(Source):
    """Samples drawn from (seed, index), so that each is the same whenever it is read."""

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], where: Layout, count: int, seed: int, vocabulary: int
    ) -> None:
        self._shapes, self._layout, self._seed, self._vocabulary = shapes, where, seed, vocabulary
        self.labels = [None] * count

    def read(self, index: int) -> dict[str, np.ndarray]:
        return {
            port.name: _values(
                port,
                self._shapes[port.name],
                np.random.default_rng([self._seed, index, number]),
                self._vocabulary,
            )
            for number, port in enumerate(self._layout.ports)
        }

    def key(self, index: int) -> str:
        return f"synthetic[{index}]"


def synthetic(
    signature: Signature,
    count: int,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    vocabulary: int | None = None,
) -> Dataset:
    """count samples from the signature.

    sizes:      sizes of free dimensions by symbol; others get 16 in sequences and 64 in space, one symbol
    one size
    vocabulary: token ids are drawn below it (100 where it is not known)

    Images are uniform in [0,1), other floats normal within three deviations.  Raises InputProblem.
    """
    if count < 1 or not signature.inputs:
        raise InputProblem(
            "cannot make synthetic samples",
            "",
            f"count is {count}" if count < 1 else "the model has no inputs",
        )
    wrong = {name: size for name, size in (sizes or {}).items() if size < 1}
    if wrong:
        raise InputProblem("cannot make synthetic samples", "", f"sizes must be 1 or more, found {wrong}")
    where = layout(signature)
    known: dict[str, int] = dict(sizes or {})
    shapes = {}
    for port in sorted(
        where.ports, key=lambda p: len(p.spec.shape or ())
    ):  # a sequence's symbol is settled by its ids, not by a 4-D mask
        shapes[port.name] = _shape(port, known)
    source = Synthetic(shapes, where, count, seed, vocabulary or _VOCABULARY)
    return wrap(Loaded(source, "synthetic", ["synthetic values"]), signature, where, None)


def _shape(port: Port, known: dict[str, int]) -> tuple[int, ...]:
    dims = port.dims
    if dims is None:
        return (1,)
    shape = []
    for axis, dim in enumerate(dims):
        if isinstance(dim, int):
            shape.append(dim)
            continue
        size = known.get(dim) if dim else None
        if size is None:
            size = 1 if port.loose else _free(axis, dim, dims)
            if dim:
                known[dim] = size
        shape.append(size)
    return tuple(shape)


def _free(axis: int, dim: str, dims: tuple[Dim, ...]) -> int:
    """The size of a free dimension from its place and name."""
    if "chan" in dim.lower():
        return _CHANNELS
    if len(dims) >= 4:
        return _SPATIAL if axis > 0 else 1
    return _SEQUENCE


def _values(port: Port, shape: tuple[int, ...], rng: np.random.Generator, vocabulary: int) -> np.ndarray:
    name, dtype = port.name.lower(), port.spec.dtype
    if is_text(dtype):
        words: Any = np.empty(shape, dtype=object)
        words.reshape(-1)[:] = [f"sample text {n}" for n in rng.integers(0, 1000, words.size)]
        return np.asarray(words)
    if dtype == np.bool_ or "mask" in name:
        return np.ones(shape, dtype)
    if is_integer(dtype):
        return _integers(name, shape, rng, dtype, vocabulary)
    if dtype.kind == "c":
        return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape), dtype)
    if is_float(dtype) and len(shape) == 4:
        return np.asarray(rng.random(shape, dtype=np.float32)).astype(dtype)
    return np.asarray(np.clip(rng.standard_normal(shape), -3, 3)).astype(dtype)


def _integers(
    name: str, shape: tuple[int, ...], rng: np.random.Generator, dtype: np.dtype[np.generic], vocabulary: int
) -> np.ndarray:
    if "type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    if "position" in name:
        return (
            np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
            if shape
            else np.zeros(shape, dtype)
        )
    if "len" in name:
        return np.full(shape, _SEQUENCE, dtype)
    least, greatest = integer_limits(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu" and len(shape) >= 3:  # stored pictures and features
        return rng.integers(least, greatest, shape, endpoint=True).astype(dtype)
    return rng.integers(0, min(vocabulary, greatest + 1), shape).astype(dtype)

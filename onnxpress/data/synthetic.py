"""Synthetic inputs from the signature alone: for checking that a model runs, tracing shapes, and timing without data.

Values are valid for the model (ids within its tables or a small vocabulary, masks of ones); its outputs are
meaningless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxpress.data.checks import integer_limits, is_float, is_integer, is_text
from onnxpress.data.dataset import Dataset, dataset_from_source
from onnxpress.data.layout import BatchLayout, Port, batch_layout
from onnxpress.data.source import LoadedSource, SampleSource
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Dim, Signature, TensorSpec

_SEQUENCE = 16
_SPATIAL = 64
_CHANNELS = 3
_VOCABULARY = 100


class Synthetic(SampleSource):
    """Samples drawn from (seed, index), so that each is the same whenever it is read."""

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], layout: BatchLayout, count: int, seed: int, limits: Mapping[str, int]
    ) -> None:
        self._shapes, self._layout, self._seed, self._limits = shapes, layout, seed, limits
        self.labels = [None] * count

    def read(self, index: int) -> dict[str, np.ndarray]:
        return {
            port.name: _values(
                port,
                self._shapes[port.name],
                np.random.default_rng([self._seed, index, number]),
                self._limits[port.name],
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
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    limits: Mapping[str, int] | None = None,
) -> Dataset:
    """`count` synthetic samples.

    signature:  of the model
    count:      number of samples
    seed:       of the random values
    sizes:      sizes of dynamic dimensions by symbol; others get 16 in sequences and 64 in space, one size per symbol
    vocabulary: exclusive upper bound of token ids (100 where unknown)
    shapes:     whole shapes of one sample by input (see `sample_shapes`); their symbols hold for other inputs as well
    limits:     by input, the exclusive upper bound of its values, in place of the vocabulary

    Images are uniform in [0,1), other floats normal within three standard deviations.  Raises InputProblem.
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
    layout = batch_layout(signature)
    given = dict(shapes or {})
    known: dict[str, int] = {**_symbols(layout, given), **(sizes or {})}
    found = {}
    for port in sorted(
        layout.ports, key=lambda p: len(p.spec.shape or ())
    ):  # the symbol of a sequence is determined by its ids, not by a 4-D mask
        found[port.name] = given[port.name] if port.name in given else _shape(port, known)
    bounds = {port.name: (limits or {}).get(port.name, vocabulary or _VOCABULARY) for port in layout.ports}
    source = Synthetic(found, layout, count, seed, bounds)
    return dataset_from_source(LoadedSource(source, "synthetic", ["synthetic values"]), signature, layout, None)


def sample_shapes(
    signature: Signature, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Shapes of one sample and the batch size (None where no shape has one) from whole input shapes that a user gives.

    Raises InputProblem where a name, a rank or a fixed size does not fit the model, or where two inputs contradict each
    other.
    """
    layout = batch_layout(signature)
    samples: dict[str, tuple[int, ...]] = {}
    batch: int | None = None
    for name, shape in shapes.items():
        text = f"{name}={','.join(str(s) for s in shape)}"
        if name not in layout.names:
            raise _shape_problem(text, f"the model's inputs are {', '.join(layout.names)}")
        port = layout.port(name)
        own = port.spec.shape
        if min(shape, default=1) < 1:
            raise _shape_problem(text, "sizes must be 1 or more")
        if own is not None and (
            len(own) != len(shape) or any(isinstance(d, int) and d != s for d, s in zip(own, shape, strict=True))
        ):
            raise _shape_problem(text, f"the model takes {port.spec.text()}")
        if port.axis is not None and own is not None and not port.loose:
            if batch not in (None, shape[port.axis]) or (layout.alone and shape[port.axis] != 1):
                raise _shape_problem(text, f"its batch size is {shape[port.axis]}, that of other inputs {batch or 1}")
            batch = shape[port.axis]
            shape = tuple(1 if i == port.axis else s for i, s in enumerate(shape))
        samples[name] = shape
    _symbols(layout, samples)
    return samples, batch


def with_sizes(signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> Signature:
    """The signature with the free sizes of inputs fixed by whole shapes, the batch axis excepted.

    Raises InputProblem as `sample_shapes`.
    """
    if not shapes:
        return signature
    layout = batch_layout(signature)
    samples, _ = sample_shapes(signature, shapes)
    known = _symbols(layout, samples)

    def sized(spec: TensorSpec) -> TensorSpec:
        batch = layout.port(spec.name).axis
        own = samples.get(spec.name, ())
        dims = tuple(
            dim if isinstance(dim, int) or axis == batch else own[axis] if own else known.get(dim, dim)
            for axis, dim in enumerate(spec.shape or ())
        )
        return spec if spec.shape is None else replace(spec, shape=dims)

    return replace(signature, inputs=tuple(sized(spec) for spec in signature.inputs))


def _symbols(layout: BatchLayout, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of dynamic dimensions by symbol that whole shapes determine."""
    known: dict[str, int] = {}
    for name, shape in shapes.items():
        for dim, size in zip(layout.port(name).dims or (), shape, strict=False):
            if isinstance(dim, str) and dim and known.setdefault(dim, size) != size:
                raise _shape_problem(
                    f"{name}={','.join(str(s) for s in shape)}", f"{dim} is {known[dim]} in another input"
                )
    return known


def _shape_problem(text: str, why: str) -> InputProblem:
    return InputProblem(
        "the shape does not fit the model", text, why, "give each input's whole shape, as in x=1,3,224,224"
    )


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
    """The size of a dynamic dimension from its position and name."""
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
            np.broadcast_to(np.arange(shape[-1] if shape else 1) % vocabulary, shape).astype(dtype)
            if shape
            else np.zeros(shape, dtype)
        )
    if "len" in name:
        return np.full(shape, _SEQUENCE, dtype)
    least, greatest = integer_limits(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu" and len(shape) >= 3:  # images and features stored as integers
        return rng.integers(least, greatest, shape, endpoint=True).astype(dtype)
    return rng.integers(0, min(vocabulary, greatest + 1), shape).astype(dtype)

"""Synthetic samples that a model runs on.

A signature does not say everything: an axis that is declared free may have to be 1 (the channel of sound), a multiple
of something, or long enough for several strided convolutions; ids must lie within tables. Sizes are tried on the model
until it runs, the usual ones first, and those that were found are tried first for other models of the same signature,
such as the rewritten ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import Port, batch_layout
from onnxpress.data.synthetic import sample_shapes, synthetic
from onnxpress.errors import Problem
from onnxpress.model.index_bounds import index_bounds
from onnxpress.model.signature import Signature, signature
from onnxpress.runtime.session import all_cores, open_session, run

_SIZES = (1, 2, 3, 4, 8, 32, 64, 128, 224, 256, 512, 1024, 4096, 16000)
_COMBINED, _MOST_COMBINED = (1, 3, 64, 1024), 3  # sizes of several axes at once, and of how many
_MOST_ELEMENTS = 2**21  # of one input
_MOST_TRIALS = 150
_FOUND: dict[str, dict[str, tuple[int, ...]]] = {}  # shapes that a model of this signature ran on

Shapes = dict[str, tuple[int, ...]]


def synthetic_samples(model: ir.Model, count: int, seed: int = 0) -> Dataset:
    """Synthetic samples that the model runs on; where it runs on none of those tried, samples of the usual sizes.

    Raises InputProblem where no sample can be made (see `synthetic`).
    """
    sig, limits = signature(model), index_bounds(model)
    usual = synthetic(sig, count, seed, limits=limits)
    if not any(isinstance(d, str) for port in batch_layout(sig).ports for d in port.dims or ()):
        return usual  # nothing to choose
    try:
        session = open_session(model, all_cores("basic"))
    except Problem:
        return usual
    known = _FOUND.get(str(sig))
    first = {name: value.shape for name, value in _one(usual).items()}
    tried: list[Shapes] = [*([known] if known is not None else []), first]
    for number, shapes in enumerate(_chain(tried, sig, first)):
        if number == _MOST_TRIALS:
            break
        if max((int(np.prod(s)) for s in shapes.values()), default=0) > _MOST_ELEMENTS:
            continue
        try:
            made = synthetic(sig, count, seed, shapes=shapes, limits=limits)
            run(session, _one(made))
        except Problem:
            continue
        _FOUND[str(sig)] = shapes
        return made
    return usual


def remember_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make the synthetic samples of models with this signature in the given whole shapes (batch included) from now on.

    Raises InputProblem where they do not fit the signature, or the model does not run on them.
    """
    sig = signature(model)
    samples, _ = sample_shapes(sig, shapes)
    made = _one(synthetic(sig, 1, shapes=samples, limits=index_bounds(model)))
    run(open_session(model, all_cores("basic")), made)
    _FOUND[str(sig)] = {name: value.shape for name, value in made.items()}


def _one(data: Dataset) -> Mapping[str, np.ndarray]:
    return next(iter(data.batches(1))).inputs


def _chain(first: list[Shapes], sig: Signature, usual: Shapes) -> Iterator[Shapes]:
    yield from first
    yield from _variants(sig, usual)


def _variants(sig: Signature, usual: Shapes) -> Iterator[Shapes]:
    """Shapes with other sizes of free axes: of all, of one symbol (or axis without) at a time, and combinations."""
    axes = _free_axes(batch_layout(sig).ports)
    for size in _SIZES:
        yield _resized(usual, {place: size for places in axes.values() for place in places})
    for places in axes.values() if len(axes) > 1 else ():
        for size in _SIZES:
            yield _resized(usual, dict.fromkeys(places, size))
    for sizes in product(_COMBINED, repeat=len(axes)) if 1 < len(axes) <= _MOST_COMBINED else ():
        chosen = zip(axes.values(), sizes, strict=True)
        yield _resized(usual, {place: size for places, size in chosen for place in places})


def _free_axes(ports: tuple[Port, ...]) -> dict[str, list[tuple[str, int]]]:
    """(input, axis) of each free axis but the batch, by symbol."""
    found: dict[str, list[tuple[str, int]]] = {}
    for port in ports:
        for axis, dim in enumerate(port.dims or ()):
            if isinstance(dim, str):
                found.setdefault(dim or f"{port.name}[{axis}]", []).append((port.name, axis))
    return found


def _resized(shapes: Shapes, sizes: Mapping[tuple[str, int], int]) -> Shapes:
    return {name: tuple(sizes.get((name, axis), d) for axis, d in enumerate(shape)) for name, shape in shapes.items()}

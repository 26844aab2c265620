"""Channels that do not matter, planted in a model: what an exact pass may remove, in places that no analysis chose.

For every weight of Conv, ConvTranspose, Gemm and MatMul, by turns: rows of zero weights and bias (dead), rows that
repeat others or are multiples of them, and columns of zeros (never read by this weight; others may read them).  The
places are runs of channels, every other channel, or half of each block of channels, so that heads of packed projections
are met as well.  Nothing is asked of the analysis that is under test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read

KINDS = ("dead", "repeated", "multiple", "never read")
_FEWEST = 8  # channels of an axis, below which nothing is planted


def plant(model: ir.Model, seed: int = 0) -> dict[str, int]:
    """Plant channels in a model, in place; how many of each kind."""
    rng = np.random.default_rng(seed)
    planted = dict.fromkeys(KINDS, 0)
    seen: set[ir.Value] = set()
    kinds = itertools.cycle(KINDS)
    for node in model.graph:
        axes = _axes(node)
        weight = node.inputs[1] if axes else None
        array = read.constant(weight)
        if weight is None or axes is None or array is None or weight in seen or min(array.shape[:2]) < _FEWEST:
            continue
        seen.add(weight)
        kind = next(kinds)
        axis = axes[0] if kind == "never read" else axes[1]
        rows = np.moveaxis(array.copy(), axis, 0)
        places = _places(len(rows), rng)
        planted[kind] += len(places)
        _CHANGES[kind](rows, places)
        edit.set_constant(weight, np.ascontiguousarray(np.moveaxis(rows, 0, axis)))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        shift = read.constant(bias)
        if bias is not None and shift is not None and kind != "never read" and shift.shape == (len(rows),):
            shift = shift.copy()
            _CHANGES[kind](shift, places)
            edit.set_constant(bias, shift)
    return planted


def _axes(node: ir.Node) -> tuple[int, int] | None:
    """Of the weight, the axis that reads channels and the one that makes them; None where nothing is planted."""
    if not read.standard(node) or node.op_type not in read.WEIGHTED or read.int_attribute(node, "group", 1) != 1:
        return None
    if node.op_type in ("Conv", "Gemm") and (node.op_type == "Conv" or read.int_attribute(node, "transB", 0)):
        return 1, 0
    array = read.constant(node.inputs[1])
    return (0, 1) if array is not None and (array.ndim == 2 or node.op_type == "ConvTranspose") else None


def _places(size: int, rng: np.random.Generator) -> np.ndarray:
    """At most half of the axis, not its first channel: a run, every other one, or half of each eighth of the axis."""
    kind = rng.integers(3)
    if kind == 0:
        start = int(rng.integers(1, size // 2 + 1))
        return np.arange(start, start + size // 2)[: size - start]
    if kind == 1:
        return np.arange(1, size, 2)
    block = max(2, size // 8)
    return np.flatnonzero(np.arange(size) % block >= (block + 1) // 2)


def _dead(rows: np.ndarray, places: np.ndarray) -> None:
    rows[places] = 0


def _repeated(rows: np.ndarray, places: np.ndarray, factor: float = 1.0) -> None:
    twins = np.setdiff1d(np.arange(len(rows)), places)
    rows[places] = factor * rows[twins[np.arange(len(places)) % len(twins)]]


def _multiple(rows: np.ndarray, places: np.ndarray) -> None:
    _repeated(rows, places, 2.0)  # a power of two: the multiple is exact


_CHANGES: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "dead": _dead,
    "repeated": _repeated,
    "multiple": _multiple,
    "never read": _dead,
}

"""Pooling: maximum (with indices), average, Lp, global pooling, MaxUnpool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator, simple_operator
from onnxpress.train.graph.tensors import Tensor
from onnxpress.train.operators.arrays.windows import Window, pad_spatial, window
from onnxpress.train.operators.layers.conv import CONV

_MAX: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


simple_operator("GlobalAveragePool", lambda x: x.mean(_spatial(x), keepdim=True))
simple_operator("GlobalMaxPool", lambda x: x.amax(_spatial(x), keepdim=True))


@operator("GlobalLpPool")
def _global_lp(context: NodeContext) -> Run:
    order = context.number("p", 2)
    return lambda x: torch.linalg.vector_norm(x, order, _spatial(x), keepdim=True)


def _effective_pads(view: Window, sizes: Sequence[int], ceil: bool) -> tuple[list[int], list[int]]:
    """Pads with which every window is complete, and how far they exceed the stated pads at the end.

    A window that would begin in the end padding does not count (as in the standard from version 19 on).
    """
    pads, n = view.pads_for(sizes), len(sizes)
    ends, over = [], []
    for axis, size in enumerate(sizes):
        reach = (view.kernel[axis] - 1) * view.dilations[axis] + 1
        room = size + pads[axis] + pads[axis + n] - reach
        count = (math.ceil if ceil else math.floor)(room / view.strides[axis]) + 1
        if ceil and (count - 1) * view.strides[axis] >= size + pads[axis]:
            count -= 1
        needed = (count - 1) * view.strides[axis] + reach - size - pads[axis]
        ends.append(needed)
        over.append(max(needed - pads[axis + n], 0))
    return [*pads[:n], *ends], over


@operator("MaxPool")
def _max_pool(context: NodeContext) -> Run:
    view = window(context, context.integers("kernel_shape") or [])
    n, ceil = len(view.kernel), bool(context.integer("ceil_mode"))
    function, indices = _MAX[n], context.has_output(1)
    half = view.symmetric and all(2 * p <= k for p, k in zip(view.pads[:n], view.kernel, strict=True))
    if half and not indices:
        return _pool_as_float(lambda x: function(x, view.kernel, view.strides, view.pads[:n], view.dilations, ceil))
    column = bool(context.integer("storage_order"))

    def run(x: Tensor) -> Any:
        pads, _ = _effective_pads(view, x.shape[2:], ceil)
        wide = pad_spatial(x, pads, float("-inf"))
        if not indices:
            return function(wide, view.kernel, view.strides, 0, view.dilations)
        values, places = function(wide, view.kernel, view.strides, 0, view.dilations, return_indices=True)
        return values, _global_indices(places, wide.shape[2:], x.shape, pads[:n], column)

    return _pool_as_float(run)


def _pool_as_float(function: Run) -> Run:
    """Pool integers as floats (exact for the 8-bit types of the standard)."""

    def run(x: Tensor) -> Any:
        if x.dtype.is_floating_point:
            return function(x)
        result = function(x.double())
        return (result[0].to(x.dtype), result[1]) if isinstance(result, tuple) else result.to(x.dtype)

    return run


def _global_indices(
    places: Tensor, wide: Sequence[int], shape: Sequence[int], begins: Sequence[int], column: bool
) -> Tensor:
    """torch's indices in a padded plane as ONNX's indices in the whole tensor."""
    rest, coordinates = places, []
    for size, begin in zip(reversed(wide), reversed(begins), strict=True):
        coordinates.append(rest % size - begin)
        rest = rest // size
    coordinates.reverse()
    sizes = list(shape[2:])
    flat = torch.zeros_like(places)
    order = range(len(sizes) - 1, -1, -1) if column else range(len(sizes))
    for axis in order:
        flat = flat * sizes[axis] + coordinates[axis]
    plane = torch.arange(shape[0] * shape[1]).reshape(shape[0], shape[1], *[1] * len(sizes))
    return flat + plane * math.prod(sizes)


@operator("MaxUnpool", grad_inputs=(0,))
def _max_unpool(context: NodeContext) -> Run:
    view = window(context, context.integers("kernel_shape") or [])
    n, read = len(view.kernel), context.list_reader(2)

    def run(x: Tensor, places: Tensor, target: Tensor = None) -> Tensor:
        pads = view.pads
        own = [
            (i - 1) * s + k - pads[a] - pads[a + n]
            for a, (i, s, k) in enumerate(zip(x.shape[2:], view.strides, view.kernel, strict=True))
        ]
        inner = [*x.shape[:2], *own]
        flat = x.new_zeros(math.prod(inner)).scatter(0, places.reshape(-1), x.reshape(-1)).reshape(inner)
        wanted = read(target)
        if wanted is None or wanted == inner:
            return flat
        return functional.pad(
            flat, [p for have, want in zip(reversed(inner), reversed(wanted), strict=True) for p in (0, want - have)]
        )

    return run


def _window_sum(x: Tensor, view: Window) -> Tensor:
    """Sum over every complete window, per channel."""
    n = len(view.kernel)
    rows = x.reshape(-1, 1, *x.shape[2:])
    ones = torch.ones([1, 1, *view.kernel], dtype=x.dtype)
    total = CONV[n](rows, ones, None, view.strides, 0, view.dilations)
    return total.reshape(*x.shape[:2], *total.shape[2:])


@operator("AveragePool")
def _average_pool(context: NodeContext) -> Run:
    view = window(context, context.integers("kernel_shape") or [])
    n, ceil = len(view.kernel), bool(context.integer("ceil_mode"))
    whole = bool(context.integer("count_include_pad"))
    function = _MEAN[n]
    half = view.symmetric and all(2 * p <= k for p, k in zip(view.pads[:n], view.kernel, strict=True))
    if half and set(view.dilations) == {1}:
        return lambda x: function(x, view.kernel, view.strides, view.pads[:n], ceil, whole)

    def run(x: Tensor) -> Tensor:
        pads, over = _effective_pads(view, x.shape[2:], ceil)
        counted = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype)
        if whole:
            inner = [*pads[:n], *(max(e - o, 0) for e, o in zip(pads[n:], over, strict=True))]
            counted = pad_spatial(pad_spatial(counted, inner, 1.0), [0] * n + over)
            counted = counted[(..., *(slice(0, s + pads[a] + pads[a + n]) for a, s in enumerate(x.shape[2:])))]
        else:
            counted = pad_spatial(counted, pads)
        return _window_sum(pad_spatial(x, pads), view) / _window_sum(counted, view)

    return run


@operator("LpPool")
def _lp_pool(context: NodeContext) -> Run:
    view = window(context, context.integers("kernel_shape") or [])
    order, ceil = context.integer("p", 2), bool(context.integer("ceil_mode"))
    power: Callable[[Tensor], Tensor] = (lambda x: x * x) if order == 2 else (lambda x: x.abs() ** order)

    def run(x: Tensor) -> Tensor:
        pads, _ = _effective_pads(view, x.shape[2:], ceil)
        return _window_sum(pad_spatial(power(x), pads), view) ** (1.0 / order)

    return run

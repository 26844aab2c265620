"""Shapes and layout: Reshape, Transpose, Concat, Split, Slice, Pad, Expand, Tile, and tensors made from shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator, simple_operator
from onnxpress.train.graph.tensors import Tensor, torch_type


@operator("Constant", grad_inputs=())
def _constant(context: NodeContext) -> Run:
    kinds = {
        "value_float": torch.float32,
        "value_floats": torch.float32,
        "value_int": torch.int64,
        "value_ints": torch.int64,
    }
    found = context.tensor("value")
    for name, kind in kinds.items():
        if context.has_attribute(name):
            found = torch.tensor(context.attribute(name), dtype=kind)
    if found is None:
        raise context.problem("only dense numeric constants are supported")
    return lambda: found


@operator("ConstantOfShape", grad_inputs=())
def _constant_of_shape(context: NodeContext) -> Run:
    value = context.tensor("value")
    fill, kind = (value.item(), value.dtype) if value is not None else (0.0, torch.float32)
    return lambda shape: torch.full(shape.tolist(), fill, dtype=kind)


@operator("Shape", grad_inputs=())
def _shape(context: NodeContext) -> Run:
    start, end = context.integer("start"), context.attribute("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


simple_operator("Size", lambda x: torch.tensor(x.numel()), grad_inputs=())


@operator("Reshape", grad_inputs=(0,))
def _reshape(context: NodeContext) -> Run:
    """0 copies the size of the input's axis, unless allowzero is set."""
    read, literal = context.list_reader(1), bool(context.integer("allowzero"))
    stated = context.integers("shape")

    def run(x: Tensor, shape: Tensor = None) -> Tensor:
        sizes = stated if stated is not None else read(shape) or []
        if not literal and 0 in sizes:
            sizes = [x.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
        return x.reshape(sizes)

    return run


@operator("Flatten")
def _flatten(context: NodeContext) -> Run:
    axis = context.integer("axis", 1)

    def run(x: Tensor) -> Tensor:
        place = axis if axis >= 0 else axis + x.ndim
        rows = math.prod(x.shape[:place])
        return x.reshape(rows, math.prod(x.shape[place:]))

    return run


@operator("Transpose")
def _transpose(context: NodeContext) -> Run:
    order = context.integers("perm")
    if order is not None:
        return lambda x: x.permute(order)
    return lambda x: x.permute(*reversed(range(x.ndim)))


@operator("Squeeze", grad_inputs=(0,))
def _squeeze(context: NodeContext) -> Run:
    stated, read = context.integers("axes"), context.list_reader(1)

    def run(x: Tensor, given: Tensor = None) -> Tensor:
        axes = stated if stated is not None else read(given)
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    return run


@operator("Unsqueeze", grad_inputs=(0,))
def _unsqueeze(context: NodeContext) -> Run:
    stated, read = context.integers("axes"), context.list_reader(1)

    def run(x: Tensor, given: Tensor = None) -> Tensor:
        axes = stated if stated is not None else read(given) or []
        rank = x.ndim + len(axes)
        for axis in sorted(a % rank for a in axes):
            x = x.unsqueeze(axis)
        return x

    return run


@operator("Concat")
def _concat(context: NodeContext) -> Run:
    axis = context.integer("axis", 1)
    return lambda *parts: torch.cat(parts, axis)


@operator("Split", grad_inputs=(0,))
def _split(context: NodeContext) -> Run:
    axis, stated, read = context.integer("axis"), context.integers("split"), context.list_reader(1)
    count = len(context.node.outputs)

    def run(x: Tensor, given: Tensor = None) -> Any:
        sizes = stated if stated is not None else read(given)
        parts = torch.split(x, sizes if sizes is not None else math.ceil(x.shape[axis] / count), axis)
        return parts if count > 1 else parts[0]

    return run


@operator("Slice", grad_inputs=(0,))
def _slice(context: NodeContext) -> Run:
    """Before version 10: starts, ends and axes are attributes."""
    starts, ends = context.integers("starts") or [], context.integers("ends") or []
    axes = context.integers("axes") or list(range(len(starts)))
    return lambda x: cut(x, starts, ends, axes, [1] * len(starts))


@operator("Slice", since=10, grad_inputs=(0,))
def _slice_inputs(context: NodeContext) -> Run:
    readers = [context.list_reader(i) for i in range(1, 5)]

    def run(x: Tensor, *given: Tensor) -> Tensor:
        starts, ends, axes, steps = (r(t) for r, t in zip(readers, (*given, None, None), strict=False))
        starts, ends = starts or [], ends or []
        return cut(x, starts, ends, range(len(starts)) if axes is None else axes, steps or [1] * len(starts))

    return run


def cut(x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]) -> Tensor:
    """numpy slicing of the named axes; negative steps use index_select."""
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last, stride = (
            slice(start, end, step).indices(x.shape[axis]) if step > 0 else _backwards(x.shape[axis], start, end, step)
        )
        if step < 0:
            x = x.index_select(axis, torch.arange(first, last, stride))
        elif stride == 1:
            x = x.narrow(axis, first, max(last - first, 0))
        else:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(first, last, stride),)]
    return x


def _backwards(size: int, start: int, end: int, step: int) -> tuple[int, int, int]:
    """Bounds of a slice with a negative step: an end below -size means "past the first element"."""
    start = min(max(start + size if start < 0 else start, 0), size - 1)
    end = -1 if end < -size else min(max(end + size if end < 0 else end, -1), size - 1)
    return start, end, step


@operator("Expand", grad_inputs=(0,))
def _expand(context: NodeContext) -> Run:
    read = context.list_reader(1)
    return lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, read(shape) or []))


@operator("Tile", grad_inputs=(0,))
def _tile(context: NodeContext) -> Run:
    read = context.list_reader(1)
    return lambda x, times: x.repeat(read(times) or [])


@operator("Range", grad_inputs=())
def _range(context: NodeContext) -> Run:
    return lambda start, limit, delta: torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@operator("EyeLike", grad_inputs=())
def _eye_like(context: NodeContext) -> Run:
    kind, shift = context.attribute("dtype"), context.integer("k")

    def run(x: Tensor) -> Tensor:
        rows, columns = x.shape
        place = torch.arange(columns) - torch.arange(rows).unsqueeze(1)
        return (place == shift).to(x.dtype if kind is None else torch_type(kind))

    return run


@operator("Trilu", grad_inputs=(0,))
def _trilu(context: NodeContext) -> Run:
    upper = bool(context.integer("upper", 1))

    def run(x: Tensor, k: Tensor = None) -> Tensor:
        shift = 0 if k is None else int(k)
        return torch.triu(x, shift) if upper else torch.tril(x, shift)

    return run


@operator("DepthToSpace")
def _depth_to_space(context: NodeContext) -> Run:
    size, columns = context.integer("blocksize", 1), context.text("mode", "DCR") == "DCR"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        deep = c // size**2
        if columns:
            parts = x.reshape(n, size, size, deep, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            parts = x.reshape(n, deep, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, deep, h * size, w * size)

    return run


@operator("SpaceToDepth")
def _space_to_depth(context: NodeContext) -> Run:
    size, columns = context.integer("blocksize", 1), context.text("mode", "DCR") == "DCR"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // size, size, w // size, size)
        parts = parts.permute(0, 3, 5, 1, 2, 4) if columns else parts.permute(0, 1, 3, 5, 2, 4)
        return parts.reshape(n, c * size**2, h // size, w // size)

    return run


@operator("Pad", grad_inputs=(0,))
def _pad_attributes(context: NodeContext) -> Run:
    pads, value, mode = context.integers("pads") or [], context.number("value"), context.text("mode", "constant")
    return lambda x: pad(x, pads, mode, value)


@operator("Pad", since=11, grad_inputs=(0,))
def _pad(context: NodeContext) -> Run:
    mode, read, read_axes = context.text("mode", "constant"), context.list_reader(1), context.list_reader(3)

    def run(x: Tensor, given: Tensor, value: Tensor = None, where: Tensor = None) -> Tensor:
        pads, axes = read(given) or [], read_axes(where)
        if axes is not None:
            some, pads = pads, [0] * (2 * x.ndim)
            for i, axis in enumerate(axes):
                pads[axis % x.ndim], pads[axis % x.ndim + x.ndim] = some[i], some[i + len(axes)]
        return pad(x, pads, mode, 0 if value is None or value.numel() == 0 else value.item())

    return run


def pad(x: Tensor, pads: Sequence[int], mode: str, value: Any = 0) -> Tensor:
    """Pad all axes, pads in ONNX order; negative ones crop.  Modes reflect, edge and wrap use index_select."""
    n = x.ndim
    if mode == "constant":
        ordered = [p for axis in reversed(range(n)) for p in (pads[axis], pads[axis + n])]
        while len(ordered) > 2 and ordered[-2:] == [0, 0]:
            del ordered[-2:]
        return functional.pad(x, ordered, value=value)
    for axis in range(n):
        before, after, size = pads[axis], pads[axis + n], x.shape[axis]
        if before == after == 0:
            continue
        low, high = max(-before, 0), size - max(-after, 0)  # after cropping
        place = (
            torch.arange(min(-before, 0) if before > 0 else 0, high - low + max(after, 0))
            if before > 0 or after > 0
            else torch.arange(high - low)
        )
        x = x.index_select(axis, _wrap_indices(place, high - low, mode) + low)
    return x


def _wrap_indices(place: Tensor, size: int, mode: str) -> Tensor:
    """Indices outside [0, size) mapped inside, by the mode."""
    if mode == "edge":
        return place.clamp(0, size - 1)
    if mode == "wrap":
        return place % size
    period = max(2 * (size - 1), 1)
    place = place % period
    return torch.where(place >= size, period - place, place)


@operator("CenterCropPad", grad_inputs=(0,))
def _center_crop_pad(context: NodeContext) -> Run:
    axes = context.integers("axes")
    read = context.list_reader(1)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        pads = [0] * (2 * x.ndim)
        for axis, want in zip(axes if axes is not None else range(x.ndim), read(shape) or [], strict=True):
            have, place = x.shape[axis], axis % x.ndim
            if want < have:
                first = (have - want) // 2
                pads[place], pads[place + x.ndim] = -first, -(have - want - first)
            else:
                first = (want - have) // 2
                pads[place], pads[place + x.ndim] = first, want - have - first
        return pad(x, pads, "constant")

    return run


@operator("OneHot", grad_inputs=())
def _one_hot(context: NodeContext) -> Run:
    axis = context.integer("axis", -1)

    def run(places: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        size = int(depth.reshape(-1)[0])
        rank = places.ndim + 1
        shape = [1] * rank
        shape[axis % rank] = size
        whole = places.to(torch.int64)
        inside = (whole >= -size) & (whole < size)
        hit = ((whole % size).unsqueeze(axis % rank) == torch.arange(size).reshape(shape)) & inside.unsqueeze(
            axis % rank
        )
        return torch.where(hit, values[1], values[0])

    return run

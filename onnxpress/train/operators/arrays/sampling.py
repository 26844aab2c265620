"""Sampling at computed positions: GridSample, AffineGrid, RoiAlign, DeformConv, Col2Im, NonMaxSuppression."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor
from onnxpress.train.operators.arrays.windows import torch_pads, window


@operator("GridSample")
def _grid_sample(context: NodeContext) -> Run:
    """Modes of versions 16 and 20 under torch's names."""
    mode = context.text("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    border, corners = context.text("padding_mode", "zeros"), bool(context.integer("align_corners"))
    return lambda x, grid: functional.grid_sample(x, grid, mode, border, corners)


@operator("AffineGrid", grad_inputs=(0,))
def _affine_grid(context: NodeContext) -> Run:
    corners, read = bool(context.integer("align_corners")), context.list_reader(1)
    return lambda theta, size: functional.affine_grid(theta, read(size) or [], corners)


def bilinear(planes: Tensor, y: Tensor, x: Tensor, clamp: bool) -> Tensor:
    """Values of planes [B, C, H, W] at y, x [B, P] -> [B, C, P].

    clamp: positions outside the plane repeat its border; otherwise they are 0.
    """
    height, width = planes.shape[2:]
    flat = planes.flatten(2)
    top, left = torch.floor(y), torch.floor(x)
    total = None
    for dy, dx in itertools.product((0, 1), (0, 1)):
        row, column = top + dy, left + dx
        weight = (1 - (y - row).abs()) * (1 - (x - column).abs())
        if not clamp:
            weight = weight * ((row >= 0) & (row < height) & (column >= 0) & (column < width))
        place = row.long().clamp(0, height - 1) * width + column.long().clamp(0, width - 1)
        part = flat.gather(2, place.unsqueeze(1).expand(-1, flat.shape[1], -1)) * weight.unsqueeze(1)
        total = part if total is None else total + part
    return total


@operator("RoiAlign", grad_inputs=(0,))
def _roi_align(context: NodeContext, shifted: bool = False) -> Run:
    """Before version 16 coordinates are not shifted by half a pixel."""
    shifted = context.version >= 16 and context.text("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    rows, columns = context.integer("output_height", 1), context.integer("output_width", 1)
    ratio, scale, mean = (
        context.integer("sampling_ratio"),
        context.number("spatial_scale", 1.0),
        context.text("mode", "avg") == "avg",
    )

    def one(plane: Tensor, roi: Sequence[float]) -> Tensor:
        shift = 0.5 if shifted else 0.0
        x1, y1, x2, y2 = (v * scale - shift for v in roi)
        high, wide = y2 - y1, x2 - x1
        if not shifted:
            high, wide = max(high, 1.0), max(wide, 1.0)
        ny, nx = (ratio, ratio) if ratio > 0 else (math.ceil(high / rows), math.ceil(wide / columns))
        y, valid_y, y_weights = _sampling_points(y1, high, rows, ny, plane.shape[1], plane)
        x, valid_x, x_weights = _sampling_points(x1, wide, columns, nx, plane.shape[2], plane)
        if mean:
            valid = (valid_y[:, None] & valid_x[None, :]).reshape(1, -1)
            yy, xx = y[:, None].expand(len(y), len(x)), x[None, :].expand(len(y), len(x))
            found = bilinear(plane[None], yy.reshape(1, -1), xx.reshape(1, -1), True)[0] * valid
            return found.reshape(-1, rows, ny, columns, nx).mean((2, 4))
        return _max_pool_bins(plane, (y, valid_y, y_weights), (x, valid_x, x_weights), (rows, ny, columns, nx))

    def run(x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
        if len(rois) == 0:
            return x.new_zeros(0, x.shape[1], rows, columns)
        return torch.stack([one(x[b], r) for b, r in zip(batch.tolist(), rois.tolist(), strict=True)])

    return run


def _sampling_points(
    start: float, extent: float, bins: int, count: int, size: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions along one axis [bins * count], whether they touch the plane, and the weight of the upper corner."""
    step = extent / bins
    places = torch.arange(bins * count, dtype=torch.float64)
    places = start + torch.div(places, count, rounding_mode="floor") * step + (places % count + 0.5) * step / count
    valid = (places >= -1) & (places <= size)
    places = places.clamp(0, size - 1)
    return places.to(like.dtype), valid, (places - places.floor()).to(like.dtype)


def _max_pool_bins(
    plane: Tensor, ys: Sequence[Tensor], xs: Sequence[Tensor], shape: tuple[int, int, int, int]
) -> Tensor:
    """Mode max: the largest weighted corner of the samples of a bin (as onnxruntime and the standard compute it)."""
    (y, valid_y, up), (x, valid_x, right) = ys, xs
    size_y, size_x = plane.shape[1:]
    best = None
    for dy, dx in itertools.product((0, 1), (0, 1)):
        row = (y.long() + dy).clamp(max=size_y - 1)
        column = (x.long() + dx).clamp(max=size_x - 1)
        weight = (up if dy else 1 - up)[:, None] * (right if dx else 1 - right)[None, :]
        part = plane[:, row][:, :, column] * weight * (valid_y[:, None] & valid_x[None, :])
        best = part if best is None else torch.maximum(best, part)
    rows, ny, columns, nx = shape
    assert best is not None
    return best.reshape(-1, rows, ny, columns, nx).amax((2, 4))


@operator("DeformConv")
def _deform_conv(context: NodeContext) -> Run:
    """2-D: every kernel position reads the input at its computed position, times its mask."""
    group, blocks = context.integer("group", 1), context.integer("offset_group", 1)

    def run(x: Tensor, w: Tensor, offset: Tensor, b: Tensor = None, mask: Tensor = None) -> Tensor:
        view = window(context, w.shape[2:])
        batch, channels = x.shape[:2]
        rows, columns = offset.shape[2:]
        count = math.prod(w.shape[2:])
        shifts = offset.reshape(batch * blocks, count, 2, rows, columns)
        kernel_y = torch.arange(w.shape[2]).repeat_interleave(w.shape[3]) * view.dilations[0]
        kernel_x = torch.arange(w.shape[3]).repeat(w.shape[2]) * view.dilations[1]
        base_y = torch.arange(rows) * view.strides[0] - view.pads[0]
        base_x = torch.arange(columns) * view.strides[1] - view.pads[1]
        y = shifts[:, :, 0] + (kernel_y[:, None] + base_y).reshape(1, count, rows, 1)
        z = shifts[:, :, 1] + (kernel_x[:, None] + base_x).reshape(1, count, 1, columns)
        planes = x.reshape(batch * blocks, channels // blocks, *x.shape[2:])
        seen = bilinear(planes, y.flatten(1), z.flatten(1), False).reshape(batch, blocks, -1, count, rows * columns)
        if mask is not None:
            seen = seen * mask.reshape(batch, blocks, 1, count, rows * columns)
        parts = seen.reshape(batch, group, channels // group * count, rows * columns)
        kernels = w.reshape(group, -1, channels // group * count)
        result = torch.einsum("bgkp,gok->bgop", parts, kernels).reshape(batch, -1, rows, columns)
        return result if b is None else result + b.reshape(-1, 1, 1)

    return run


@operator("Col2Im", grad_inputs=(0,))
def _col2im(context: NodeContext) -> Run:
    """Add blocks [N, C * kernel, L] into an image of any rank."""
    read_image, read_block = context.list_reader(1), context.list_reader(2)

    def run(x: Tensor, image: Tensor, kernel: Tensor) -> Tensor:
        sizes, view = read_image(image) or [], window(context, read_block(kernel) or [])
        n = len(sizes)
        wide = [s + view.pads[a] + view.pads[a + n] for a, s in enumerate(sizes)]
        place = torch.zeros([1] * (2 * n), dtype=torch.int64)  # kernel axes, then block axes
        for a in range(n):
            reach = (view.kernel[a] - 1) * view.dilations[a] + 1
            blocks = (wide[a] - reach) // view.strides[a] + 1
            k = torch.arange(view.kernel[a]).reshape([-1 if i == a else 1 for i in range(2 * n)]) * view.dilations[a]
            s = torch.arange(blocks).reshape([-1 if i == a + n else 1 for i in range(2 * n)]) * view.strides[a]
            place = place * wide[a] + k + s
        batch = x.shape[0]
        rows = x.reshape(batch, -1, place.numel())
        total = rows.new_zeros(*rows.shape[:2], math.prod(wide)).index_add(2, place.reshape(-1), rows)
        return functional.pad(total.reshape(*rows.shape[:2], *wide), torch_pads([-p for p in view.pads]))

    return run


@operator("NonMaxSuppression", grad_inputs=())
def _non_max_suppression(context: NodeContext) -> Run:
    centred = bool(context.integer("center_point_box"))

    def run(boxes: Tensor, scores: Tensor, most: Tensor = None, overlap: Tensor = None, least: Tensor = None) -> Tensor:
        limit = int(most) if most is not None else 0
        share = float(overlap) if overlap is not None else 0.0
        corners = _corners(boxes, centred)
        found = []
        for batch, kind in itertools.product(range(scores.shape[0]), range(scores.shape[1])):
            order = torch.argsort(scores[batch, kind], descending=True, stable=True).tolist()
            kept: list[int] = []
            for index in order:
                if len(kept) >= limit or (least is not None and scores[batch, kind, index] <= float(least)):
                    break
                if all(_overlap(corners[batch, index], corners[batch, k]) <= share for k in kept):
                    kept.append(index)
            found += [(batch, kind, k) for k in kept]
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)

    return run


def _corners(boxes: Tensor, centred: bool) -> Tensor:
    """Boxes as low and high corners [.., 4]."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centred:
        return torch.cat([first - second / 2, first + second / 2], -1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union."""
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    shared = sides.prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))

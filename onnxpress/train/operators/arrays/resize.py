"""Resize and Upsample: every mode as input positions and weights per output position of an axis.

Axes are independent, so an N-dimensional resize is one pass per axis.  Common cases (integer nearest, bilinear) use
torch's kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor


@dataclass(frozen=True)
class ResizeAttributes:
    """Attributes of a Resize.

    coordinate_mode: coordinate_transformation_mode.
    a: cubic coefficient.
    """

    mode: str
    coordinate_mode: str
    nearest: str = "round_prefer_floor"
    a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0


@dataclass(frozen=True)
class ResizedAxis:
    """One axis: sizes, the given scale, and the region of interest (tf_crop_and_resize)."""

    size: int
    target: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def coordinates(axis: ResizedAxis, style: ResizeAttributes) -> np.ndarray:
    """Position of each output on the input axis; float64 [target]."""
    out = np.arange(axis.target, dtype=np.float64)
    n, m, scale = axis.size, axis.target, axis.scale
    if style.coordinate_mode == "align_corners":
        return np.asarray(out * (n - 1) / (m - 1) if m > 1 else np.zeros(m))
    if style.coordinate_mode == "asymmetric":
        return np.asarray(out / scale)
    if style.coordinate_mode == "tf_crop_and_resize":
        if m > 1:
            return np.asarray(axis.start * (n - 1) + out * (axis.end - axis.start) * (n - 1) / (m - 1))
        return np.full(m, 0.5 * (axis.start + axis.end) * (n - 1))
    if style.coordinate_mode == "pytorch_half_pixel" and m == 1:
        return np.zeros(m)
    shift = n / 2 * (1 - m / (n * scale)) if style.coordinate_mode == "half_pixel_symmetric" else 0.0
    return np.asarray(shift + (out + 0.5) / scale - 0.5)


def _round(x: np.ndarray, nearest: str) -> np.ndarray:
    shift = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(nearest, 0.0)
    return np.asarray((np.floor if nearest in ("floor", "round_prefer_ceil") else np.ceil)(x + shift))


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def interpolation_weights(axis: ResizedAxis, style: ResizeAttributes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input positions [target, k], weights [target, k], and which outputs lie outside the input [target]."""
    x = coordinates(axis, style)
    outside = (x < 0) | (x > axis.size - 1)
    if style.mode == "nearest":
        return np.clip(_round(x, style.nearest), 0, axis.size - 1).astype(int)[:, None], np.ones((len(x), 1)), outside
    reach = 2 if style.mode == "cubic" else 1
    stretch = max(1.0, 1.0 / axis.scale) if style.antialias else 1.0
    half = math.ceil(reach * stretch)
    places = np.floor(x).astype(int)[:, None] + np.arange(1 - half, half + 1)
    distance = (places - x[:, None]) / stretch
    weights = _cubic(distance, style.a) if style.mode == "cubic" else np.maximum(0, 1 - np.abs(distance))
    if style.exclude_outside:
        weights = np.where((places >= 0) & (places < axis.size), weights, 0.0)
    if style.exclude_outside or style.antialias:
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(places, 0, axis.size - 1), weights, outside


def resize_axis(x: Tensor, dim: int, axis: ResizedAxis, style: ResizeAttributes) -> Tensor:
    """Resize one axis."""
    places, weights, outside = interpolation_weights(axis, style)
    if style.mode == "nearest":
        result = x.index_select(dim, torch.from_numpy(places[:, 0]))
    else:
        result = None
        shape = [-1] + [1] * (x.ndim - 1 - dim % x.ndim)
        kind = x.dtype if x.dtype.is_floating_point else torch.float32
        for column in range(places.shape[1]):
            if weights[:, column].any():
                picked = x.index_select(dim, torch.from_numpy(places[:, column].copy())).to(kind)
                part = picked * torch.tensor(weights[:, column], dtype=kind).reshape(shape)
                result = part if result is None else result + part
        assert result is not None  # weights of a position sum to 1
        result = result if kind == x.dtype else result.round().to(x.dtype)
    if style.coordinate_mode == "tf_crop_and_resize" and outside.any():
        mask = torch.from_numpy(outside).reshape([-1] + [1] * (x.ndim - 1 - dim % x.ndim))
        result = torch.where(mask, torch.tensor(style.extrapolation, dtype=result.dtype), result)
    return result


def resize(x: Tensor, axes: Sequence[tuple[int, ResizedAxis]], style: ResizeAttributes) -> Tensor:
    """Resize several axes.  axes: (axis of x, parameters); axes that do not change are skipped."""
    active = [
        (d, a) for d, a in axes if a.size != a.target or a.scale != 1.0 or style.coordinate_mode == "tf_crop_and_resize"
    ]
    mode = _torch_mode(x, active, style)
    if mode is not None:
        target = list(x.shape[2:])
        for dim, axis in active:
            target[dim - 2] = axis.target
        more: dict[str, Any] = {} if mode == "nearest" else {"align_corners": style.coordinate_mode == "align_corners"}
        return functional.interpolate(x, target, mode=mode, **more)
    for dim, axis in active:
        x = resize_axis(x, dim, axis, style)
    return x


def _torch_mode(x: Tensor, active: Sequence[tuple[int, ResizedAxis]], style: ResizeAttributes) -> str | None:
    """torch's equivalent mode, or None.  Integer upscaling by nearest is a repeat in every style but ceil."""
    if x.ndim not in (3, 4, 5) or not active or any(d < 2 for d, _ in active) or not x.dtype.is_floating_point:
        return None
    if style.mode == "nearest":
        floor = style.coordinate_mode == "asymmetric" and style.nearest == "floor"
        middle = style.coordinate_mode in ("half_pixel", "pytorch_half_pixel") and style.nearest.startswith("round")
        whole = all(a.target == a.size * a.scale and float(a.scale).is_integer() for _, a in active)
        return "nearest" if whole and (floor or middle) else None
    same = all(abs(a.target - a.size * a.scale) < 1e-6 for _, a in active)
    even = style.coordinate_mode in ("half_pixel", "pytorch_half_pixel") and all(a.target > 1 for _, a in active)
    if (
        style.mode == "linear"
        and not style.antialias
        and not style.exclude_outside
        and same
        and (even or style.coordinate_mode == "align_corners")
    ):
        return {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    return None


def _read_attributes(context: NodeContext) -> ResizeAttributes:
    return ResizeAttributes(
        context.text("mode", "nearest"),
        context.text("coordinate_transformation_mode", "half_pixel"),
        context.text("nearest_mode", "round_prefer_floor"),
        context.number("cubic_coeff_a", -0.75),
        bool(context.integer("exclude_outside")),
        bool(context.integer("antialias")),
        context.number("extrapolation_value"),
    )


def _scaled(x: Tensor, scales: Sequence[float], style: ResizeAttributes) -> Tensor:
    pairs = enumerate(zip(x.shape, scales, strict=True))
    return resize(x, [(d, ResizedAxis(n, math.floor(n * s), s)) for d, (n, s) in pairs], style)


@operator("Upsample", grad_inputs=(0,))
def _upsample(context: NodeContext) -> Run:
    """Scales as attribute (version 7) or input (version 9)."""
    style = ResizeAttributes(context.text("mode", "nearest"), "asymmetric", "floor")
    stated, read = context.numbers("scales"), context.list_reader(1)
    return lambda x, scales=None: _scaled(x, stated or read(scales) or [], style)


@operator("Resize", grad_inputs=(0,))
def _resize_10(context: NodeContext) -> Run:
    style, read = ResizeAttributes(context.text("mode", "nearest"), "asymmetric", "floor"), context.list_reader(1)
    return lambda x, scales: _scaled(x, read(scales) or [], style)


@operator("Resize", since=11, grad_inputs=(0,))
def _resize(context: NodeContext) -> Run:
    style, axes = _read_attributes(context), context.integers("axes")
    policy = context.text("keep_aspect_ratio_policy", "stretch")
    read_roi, read_scales, read_sizes = (context.list_reader(i) for i in (1, 2, 3))

    def run(x: Tensor, roi: Tensor = None, scales: Tensor = None, sizes: Tensor = None) -> Tensor:
        dims = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
        have = [x.shape[d] for d in dims]
        factors, want = read_scales(scales) or [], read_sizes(sizes) or []
        if want:
            factors = [w / h for w, h in zip(want, have, strict=True)]
            if policy != "stretch":
                one = (min if policy == "not_larger" else max)(factors)
                factors = [one] * len(have)
                want = [math.floor(one * h + 0.5) for h in have]
        else:
            want = [math.floor(h * f) for h, f in zip(have, factors, strict=True)]
        region = read_roi(roi) or [0.0] * len(dims) + [1.0] * len(dims)
        n = len(dims)
        return resize(
            x,
            [(d, ResizedAxis(have[i], want[i], factors[i], region[i], region[i + n])) for i, d in enumerate(dims)],
            style,
        )

    return run

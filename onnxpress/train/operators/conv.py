"""Convolutions: Conv, ConvTranspose, DeformConv, Col2Im; 1 to 3 spatial axes."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import Run, Site, operator
from onnxpress.train.graph.tensors import Tensor
from onnxpress.train.operators.windows import Window, padded, torch_pads, window

CONV: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED: dict[int, Any] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def convolution(site: Site, weight: int = 1) -> Run:
    """`run(x, w, b)`; weight: the input that holds the kernel.  Symmetric pads go to torch as they are."""
    group = site.integer("group", 1)
    ready: dict[tuple[int, ...], tuple[Any, Window]] = {}

    def prepare(kernel: tuple[int, ...]) -> tuple[Any, Window]:
        if len(kernel) not in CONV:
            raise site.problem(f"{len(kernel)} spatial axes, 1 to 3 are known")
        ready[kernel] = CONV[len(kernel)], window(site, kernel)
        return ready[kernel]

    def run(x: Tensor, w: Tensor, b: Tensor = None) -> Tensor:
        kernel = w.shape[2:]
        function, view = ready.get(kernel) or prepare(tuple(kernel))
        if view.symmetric:
            return function(x, w, b, view.strides, view.pads[: len(kernel)], view.dilations, group)
        return function(padded(x, view.placed(x.shape[2:])), w, b, view.strides, 0, view.dilations, group)

    return run


@operator("Conv")
def _conv(site: Site) -> Run:
    return convolution(site)


@operator("ConvTranspose")
def _conv_transpose(site: Site) -> Run:
    group, shape = site.integer("group", 1), site.integers("output_shape")

    def run(x: Tensor, w: Tensor, b: Tensor = None) -> Tensor:
        view = window(site, w.shape[2:])
        n = len(view.strides)
        extra = site.integers("output_padding") or [0] * n
        grown = [
            s * (i - 1) + d * (k - 1) + 1
            for i, s, d, k in zip(x.shape[2:], view.strides, view.dilations, view.kernel, strict=True)
        ]
        begins, sizes = _transposed_place(view, grown, extra, x.shape[2:], shape)
        function = TRANSPOSED[n]
        if (
            view.symmetric
            and not shape
            and all(e < max(s, d) for e, s, d in zip(extra, view.strides, view.dilations, strict=True))
        ):
            return function(x, w, b, view.strides, view.pads[:n], extra, group, view.dilations)
        full = function(x, w, None, view.strides, 0, 0, group, view.dilations)
        ends = [size + begin - have for size, begin, have in zip(sizes, begins, grown, strict=True)]
        cut = functional.pad(full, torch_pads([-p for p in begins] + ends))
        return cut if b is None else cut + b.reshape(-1, *[1] * n)

    return run


def _transposed_place(
    view: Window, grown: list[int], extra: list[int], sizes: Any, shape: list[int] | None
) -> tuple[list[int], list[int]]:
    """Where the output begins in the full transposed convolution, and its sizes."""
    n = len(grown)
    if shape:
        wanted = shape[-n:]
    elif view.auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [i * s for i, s in zip(sizes, view.strides, strict=True)]
    else:
        pads = view.pads
        return pads[:n], [g + e - pads[i] - pads[i + n] for i, (g, e) in enumerate(zip(grown, extra, strict=True))]
    totals = [max(g + e - w, 0) for g, e, w in zip(grown, extra, wanted, strict=True)]
    upper = view.auto == "SAME_UPPER"
    return [t // 2 if upper else t - t // 2 for t in totals], wanted


@operator("CausalConvWithState")
def _causal_conv(site: Site) -> Run:
    """Depthwise over [B, C, L], each position seeing k - 1 earlier ones; the last k - 1 are the state for the next call."""
    activated, many = site.text("activation", "none") in ("silu", "swish"), len(site.node.outputs) > 1

    def run(x: Tensor, w: Tensor, b: Tensor = None, past: Tensor = None) -> Any:
        reach = w.shape[2] - 1
        wide = functional.pad(x, [reach, 0]) if past is None else torch.cat([past, x], 2)
        result = functional.conv1d(wide, w, b, groups=x.shape[1])
        result = functional.silu(result) if activated else result
        return (result, wide.narrow(2, wide.shape[2] - reach, reach)) if many else result

    return run

"""Convolutions: Conv, ConvTranspose, CausalConvWithState; 1 to 3 spatial axes."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor
from onnxpress.train.operators.arrays.windows import Window, pad_spatial, torch_pads, window

CONV: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED: dict[int, Any] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def convolution(context: NodeContext, weight: int = 1) -> Run:
    """`run(x, w, b)`; weight: position of the kernel input.  Symmetric pads are passed to torch, others are applied
    before.
    """
    group = context.integer("group", 1)
    ready: dict[tuple[int, ...], tuple[Any, Window]] = {}

    def prepare(kernel: tuple[int, ...]) -> tuple[Any, Window]:
        if len(kernel) not in CONV:
            raise context.problem(f"{len(kernel)} spatial axes; 1 to 3 are supported")
        ready[kernel] = CONV[len(kernel)], window(context, kernel)
        return ready[kernel]

    def run(x: Tensor, w: Tensor, b: Tensor = None) -> Tensor:
        kernel = w.shape[2:]
        function, view = ready.get(kernel) or prepare(tuple(kernel))
        if view.symmetric:
            return function(x, w, b, view.strides, view.pads[: len(kernel)], view.dilations, group)
        return function(pad_spatial(x, view.pads_for(x.shape[2:])), w, b, view.strides, 0, view.dilations, group)

    return run


@operator("Conv")
def _conv(context: NodeContext) -> Run:
    return convolution(context)


@operator("ConvTranspose")
def _conv_transpose(context: NodeContext) -> Run:
    group, shape = context.integer("group", 1), context.integers("output_shape")

    def run(x: Tensor, w: Tensor, b: Tensor = None) -> Tensor:
        view = window(context, w.shape[2:])
        n = len(view.strides)
        extra = context.integers("output_padding") or [0] * n
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
    """Begin of the output in the full transposed convolution, and its sizes."""
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
def _causal_conv(context: NodeContext) -> Run:
    """Depthwise over [B, C, L], with k - 1 earlier positions; the last k - 1 positions are the state for the next
    call.
    """
    activated, many = context.text("activation", "none") in ("silu", "swish"), len(context.node.outputs) > 1

    def run(x: Tensor, w: Tensor, b: Tensor = None, past: Tensor = None) -> Any:
        reach = w.shape[2] - 1
        wide = functional.pad(x, [reach, 0]) if past is None else torch.cat([past, x], 2)
        result = functional.conv1d(wide, w, b, groups=x.shape[1])
        result = functional.silu(result) if activated else result
        return (result, wide.narrow(2, wide.shape[2] - reach, reach)) if many else result

    return run
